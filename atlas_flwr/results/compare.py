"""Several runs side by side: on one axis only when they share the task set."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import rich.table
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Group, RenderableType
from rich.text import Text

from atlas_flwr.errors import ResultError
from atlas_flwr.results import seeds
from atlas_flwr.results.compare_page import ERROR, comparison_html
from atlas_flwr.results.plots import STYLE, layout, paint, save
from atlas_flwr.results.plots_lines import DASHES, shown_label
from atlas_flwr.results.plots_maps import MARKERS
from atlas_flwr.results.provenance import without_home
from atlas_flwr.results.series import (
    PALETTE,
    show,
    show_bytes,
    show_error,
    show_seconds,
    tasks_of,
)
from atlas_flwr.results.store import RunResult
from atlas_flwr.results.sweeps import NOT_COMPARED, keys_of, sweep_figures
from atlas_flwr.results.writing import atomic_write

_SCORES = ("accuracy", "worst_client_accuracy", "loss")
COLUMNS = (
    *("run", "strategy", "model", "tasks", "seed", "status", "rounds", "accuracy"),
    *("worst_client_accuracy", "loss", "aggregation_error", "bytes", "seconds"),
    "peak_memory_mb",
)


@dataclass(frozen=True)
class Row:
    """One run as tables show it: ``words`` that name it, then ``numbers`` as text."""

    words: Sequence[str]
    numbers: Sequence[str]


@dataclass(frozen=True)
class Panel:
    """Runs that may share one axis, for they share their tasks.

    Attributes:
        tasks: The task set, in alphabetical order.
        runs: The runs by label, in the order given.
        differences: ``{dotted config key: one value per run}``, keys that agree left out.
    """

    tasks: tuple[str, ...]
    runs: Mapping[str, RunResult]
    differences: Mapping[str, tuple[str, ...]]

    @property
    def title(self) -> str:
        """The panel's heading."""
        return ", ".join(self.tasks)

    def rows(self) -> list[Row]:
        """Return the runs as rows of a table."""
        found = []
        for label, run in self.runs.items():
            row = _row(label, run)
            words = [label, *(str(row[key]) for key in ("strategy", "seed", "status"))]
            found.append(Row(words, _numbers(row)))
        return found


@dataclass(frozen=True)
class Comparison:
    """What a comparison shows.

    Attributes:
        panels: One per task set.
        text: Says whether the runs share an axis, and why not.
    """

    panels: tuple[Panel, ...]
    text: str

    def rows(self) -> list[dict[str, Any]]:
        """Return one row of `COLUMNS` per run, panel by panel; an absent number is ``None``."""
        return [_row(label, run) for panel in self.panels for label, run in panel.runs.items()]


def compare(runs: Sequence[RunResult]) -> Comparison:
    """Group runs by task set; runs of one set share an axis, others never do.

    Raises:
        ResultError: No run was given.
    """
    if not runs:
        raise ResultError("compare: no run directory was given")
    grouped: dict[tuple[str, ...], dict[str, RunResult]] = {}
    for label, run in zip(_labels(runs), runs, strict=True):
        grouped.setdefault(tuple(sorted(tasks_of(run))), {})[label] = run
    panels = tuple(
        Panel(tasks, group, _differences(list(group.values()))) for tasks, group in grouped.items()
    )
    if len(panels) == 1:
        text = f"All {len(runs)} runs share the task set ({panels[0].title}): one axis."
    else:
        text = (
            f"These {len(runs)} runs have {len(panels)} different task sets. Accuracies on "
            "different tasks can't be compared, so each task set has its own panel."
        )
    return Comparison(panels, text)


def write_comparison(runs: Sequence[RunResult], out: Path) -> Comparison:
    """Write ``comparison.html``, ``.csv`` and ``.png`` into a folder.

    Raises:
        ResultError: No run was given, or the folder holds a run or can't be written.
    """
    found = compare(runs)
    try:
        # Its pictures would lie among the run's, and look like them.
        if any((out / name).exists() for name in ("summary.json", "config.toml")):
            raise ResultError(f"{out}: holds a run; name another --out")
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "comparison.csv", _csv(found))
        atomic_write(out / "comparison.html", comparison_html(found))
        _png(found, out / "comparison.png")
        _sweeps(found, out)
    except OSError as error:
        raise ResultError(f"{out}: can't be written ({error.strerror or error})") from error
    return found


def comparison_table(found: Comparison) -> RenderableType:
    """Return the comparison for the terminal, a section per task set."""
    caption = f"{found.text} {ERROR}"
    table = rich.table.Table(caption=caption, caption_justify="left")
    table.add_column("run", overflow="fold", min_width=10)
    table.add_column("strategy", overflow="fold", min_width=9)
    for name in ("accuracy", "worst", "error", "moved", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for panel in found.panels:
        table.add_section()
        if len(found.panels) > 1:
            table.add_row(Text(f"tasks: {panel.title}", style="bold"))
        for label, run in panel.runs.items():
            row = _row(label, run)
            accuracy, worst, _, *rest = _numbers(row)
            table.add_row(Text(label), Text(str(row["strategy"])), accuracy, worst, *rest)
    groups = [g for panel in found.panels for g in seeds.groups_of(panel.runs) if g.size > 1]
    return Group(table, *([_seeds_table(groups)] if groups else []))


def _seeds_table(groups: Sequence[seeds.Group]) -> rich.table.Table:
    """Return what runs that differ in their seed alone are together."""
    table = rich.table.Table(caption=seeds.seeds_line(groups), caption_justify="left")
    table.add_column("runs", overflow="fold")
    for name in ("n", "accuracy", "worst client", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        scores = (group.score(key) for key in _SCORES)
        table.add_row(Text(group.name), str(group.size), *scores)
    return table


def _numbers(row: Mapping[str, Any]) -> list[str]:
    return [
        *(show(row[key], 4) for key in ("accuracy", "worst_client_accuracy", "loss")),
        show_error(row["aggregation_error"]),
        show_bytes(row["bytes"]),
        show_seconds(row["seconds"]),
    ]


def _row(label: str, run: RunResult) -> dict[str, Any]:
    s = run.summary
    final, last = s["final"], run.rounds[-1] if run.rounds else {}
    values = (
        *(label, s["strategy"], without_home(str(s["model"])), "+".join(sorted(tasks_of(run)))),
        *(s["seed"], s["status"], s["rounds_completed"], final["accuracy"]),
        *(final["worst_client_accuracy"], final["loss"], last.get("aggregation_error")),
        *(s["bytes"]["up"] + s["bytes"]["down"], s["seconds"], s["peak_memory_mb"]),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _labels(runs: Sequence[RunResult]) -> list[str]:
    """Return a name per run: the experiment's, with folder and number where names repeat."""
    names = [str(run.summary["experiment"]) for run in runs]
    details = ([run.path.name for run in runs], [f"#{i + 1}" for i in range(len(runs))])
    for detail in details:
        counts = Counter(names)
        names = [
            f"{name} ({more})" if counts[name] > 1 else name
            for name, more in zip(names, detail, strict=True)
        ]
    return names


def _differences(runs: Sequence[RunResult]) -> dict[str, tuple[str, ...]]:
    trees = [keys_of(run) for run in runs]
    keys = sorted(set().union(*trees) - set(NOT_COMPARED))
    values = {key: tuple(without_home(tree.get(key, "–")) for tree in trees) for key in keys}
    return {key: row for key, row in values.items() if len(set(row)) > 1}


def _csv(found: Comparison) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found.rows())
    return buffer.getvalue()


def _png(found: Comparison, path: Path) -> None:
    count = len(found.panels)
    lines = max(len(seeds.groups_of(panel.runs)) for panel in found.panels)
    height = max(4.2, 1.0 + 0.25 * lines)  # inches; the legend has a row for each line
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, height * count), layout=layout())
        FigureCanvasAgg(figure)
        for index, panel in enumerate(found.panels):
            _draw(figure.add_subplot(count, 1, index + 1), panel)
        save(figure, path)


def _sweeps(found: Comparison, out: Path) -> None:
    """Draw what runs that differ in one thing show, a file a figure."""
    for index, panel in enumerate(found.panels):
        number = f"-{index + 1}" if len(found.panels) > 1 else ""
        for figure in sweep_figures(panel.runs):
            run = next(iter(panel.runs.values()))
            named = replace(figure, name=f"comparison-{figure.name}{number}")
            paint(named, out, run)


def _draw(axes: Axes, panel: Panel) -> None:
    for index, group in enumerate(seeds.groups_of(panel.runs)):
        style: dict[str, Any] = {
            "color": PALETTE[index % len(PALETTE)],
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": DASHES[index // len(PALETTE) % len(DASHES)],
        }
        line = group.line("accuracy")
        xs, means = [x for x, _, _ in line], [mean for _, mean, _ in line]
        axes.plot(xs, means, label=shown_label(group.title), **style)
        if group.size > 1:
            low, high = ([m + way * s for _, m, s in line] for way in (-1, 1))
            axes.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_title(f"Accuracy on own validation rows: {panel.title}")
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
