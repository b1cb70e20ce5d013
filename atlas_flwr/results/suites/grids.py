"""A suite's analysis as tables of text: what every format shows, in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from atlas_flwr.results.series import show
from atlas_flwr.results.stats import Paired
from atlas_flwr.results.suites.compared import Analysis, Line
from atlas_flwr.results.suites.rows import MB, heading, less_is_better, unit_of, words

ABSENT = "–"
MINUS = "−"


@dataclass(frozen=True)
class Text:
    """A cell.

    Attributes:
        text: What it says; `bold` whether in bold.
    """

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Grid:
    """A table of text.

    Attributes:
        name: For a label in a document.
        title: The heading.
        columns: Names; the first column is words, the others numbers.
        sections: A heading (None without one) and its rows.
        caption: What the numbers are.
    """

    name: str
    title: str
    columns: Sequence[str]
    sections: Sequence[tuple[str | None, Sequence[Sequence[Text]]]]
    caption: str


def grids(found: Analysis, mark: str = "bold") -> list[Grid]:
    """Return the tables of an analysis: the scores, the differences, the cost.

    Args:
        found: The analysis.
        mark: What the best mean is marked by, for the caption.
    """
    shown = [_scores(found, mark)]
    if len(found.labels) > 1:
        shown.append(_differences(found))
    return [*shown, _cost(found)]


def _scores(found: Analysis, mark: str) -> Grid:
    """Rows: labels; columns: settings."""
    rows = []
    for label in found.labels:
        cells = [Text(label)]
        for setting in found.settings:
            line = found.lines.get((setting, label))
            cells.append(Text(ABSENT) if line is None else Text(_spread(found, line), line.best))
        rows.append(cells)
    side = "lowest" if less_is_better(found.metric) else "highest"
    caption = (
        f"Mean ± sample standard deviation over seeds, (n) their number; {mark}: the {side} mean. "
        "One seed has no spread."
    )
    columns = ("strategy", *found.settings)
    return Grid("scores", heading(found.metric), columns, [(None, rows)], caption)


def _spread(found: Analysis, line: Line) -> str:
    if line.mean is None:
        return ABSENT
    per, _, digits = unit_of(found.metric)
    spread = "" if line.std is None else f" ± {show(line.std / per, digits)}"
    return f"{show(line.mean / per, digits)}{spread} ({line.n})"


def _differences(found: Analysis) -> Grid:
    sections = []
    for setting in found.settings:
        rows = [_difference(found, line) for line in found.of(setting) if line.against is not None]
        if rows:
            sections.append((setting if len(found.settings) > 1 else None, rows))
    percent = f"{100 * found.confidence:g} %"
    less = less_is_better(found.metric)
    caption = (
        f"Label minus {found.baseline}, paired by seed, n pairs; [ ] {percent} confidence interval "
        f"(t). p: paired t-test, p signed-rank: Wilcoxon, exact; both after Holm's correction over "
        f"all tests shown ({_family(found)}). g: mean over standard deviation of the differences, "
        "bias-corrected (Hedges), from three pairs on; r: matched rank-biserial. W-L-T: seeds in "
        f"which it is higher, lower, equal{' (lower is better)' if less else ''}. n = 1 can't be "
        "tested; same: every seed has the same difference, so t is undefined."
    )
    columns = (
        *("strategy", "n", "difference", "p", "p signed-rank", "g", "r", "W-L-T"),
    )  # fmt: skip
    title = f"Difference from {found.baseline}: {words(found.metric)}"
    return Grid("differences", title, columns, sections, caption)


def _family(found: Analysis) -> str:
    t, wilcoxon = found.family["t"], found.family["wilcoxon"]
    return f"{t} each" if t == wilcoxon else f"{t} and {wilcoxon}"


def _difference(found: Analysis, line: Line) -> list[Text]:
    against, corrected = line.against, line.holm or {}
    assert against is not None  # only such lines are shown
    per, _, digits = unit_of(found.metric)
    cells = [line.label, str(against.n), _interval(against, per, digits)]
    if against.n < 2:
        cells += [f"n = {against.n}", f"n = {against.n}", ABSENT, ABSENT]
    else:
        cells += [
            "same" if against.same else show_p(corrected.get("t")),
            show_p(corrected.get("wilcoxon")),
            signed(against.g_z, 2),
            signed(against.rank_biserial, 2),
        ]
    cells.append(f"{against.wins}-{against.losses}-{against.ties}" if against.n else ABSENT)
    return [Text(cell) for cell in cells]


def _interval(against: Paired, per: float, digits: int) -> str:
    if against.mean is None:
        return ABSENT
    mean = signed(against.mean / per, digits)
    if against.low is None or against.high is None:
        return mean
    return f"{mean} [{signed(against.low / per, digits)}, {signed(against.high / per, digits)}]"


def signed(value: float | None, digits: int) -> str:
    """Return a number with its sign; of nothing a dash.

    >>> signed(0.5, 2), signed(-0.5, 2), signed(0.001, 2), signed(None, 2)
    ('+0.50', '−0.50', '0.00', '–')
    """
    if value is None:
        return ABSENT
    text = f"{abs(value):,.{digits}f}"
    if not float(text.replace(",", "")):
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def show_p(value: float | None) -> str:
    """Return a p value as people read it.

    >>> show_p(0.0312), show_p(2e-5), show_p(1.0), show_p(None)
    ('0.031', '< 0.001', '1', '–')
    """
    if value is None:
        return ABSENT
    if value < 0.001:
        return "< 0.001"
    return "1" if value > 0.9995 else f"{value:.3f}"


def _cost(found: Analysis) -> Grid:
    asked = found.target is not None
    columns = ["strategy", "worst client", "MB up", "MB down"]
    columns += ["reached", "rounds", "MB"] if asked else []
    sections = []
    for setting in found.settings:
        rows = [_costs(line, asked) for line in found.of(setting)]
        sections.append((setting if len(found.settings) > 1 else None, rows))
    caption = "Means over seeds. worst client: the lowest accuracy of a client; MB = 10⁶ bytes."
    if asked:
        caption += (
            f" reached: runs that reach {found.target:g} on the clients' own rows; rounds and MB: "
            "medians over runs until they do, those that never do counted as later than all."
        )
    if found.notes:
        caption += " " + " ".join(found.notes)
    title = "Cost" + (f", and when {found.target:g} is reached on own rows" if asked else "")
    return Grid("cost", title, columns, sections, caption)


def _costs(line: Line, asked: bool) -> list[Text]:
    cells = [
        line.label,
        show(line.worst, 4),
        show(None if line.up is None else line.up / MB, 2),
        show(None if line.down is None else line.down / MB, 2),
    ]
    if asked and line.target is None:
        cells += ["unknown", ABSENT, ABSENT]
    elif line.target is not None:
        target = line.target
        cells += [
            f"{target.reached}/{target.runs}",
            show(target.rounds, 0 if target.rounds is None or target.rounds % 1 == 0 else 1),
            show(None if target.bytes is None else target.bytes / MB, 2),
        ]
    return [Text(cell) for cell in cells]
