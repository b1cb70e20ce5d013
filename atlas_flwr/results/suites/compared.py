"""What suites show: means over seeds, differences from a baseline, cost, rounds to a target."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from atlas_flwr.results.series import count
from atlas_flwr.results.stats import Paired, holm, paired
from atlas_flwr.results.suites.rows import SuiteRun, check_metric, check_name, less_is_better
from atlas_flwr.results.suites.targets import TARGETS, Target, check_target, time_to

Test = Literal["t", "wilcoxon"]


@dataclass(frozen=True)
class Line:
    """A label in a setting.

    Attributes:
        setting: The suite's setting; ``label`` its entry.
        strategy: Its strategy.
        values: The metric by seed, absent numbers left out.
        mean: Over seeds; ``std`` the sample standard deviation, None below two seeds.
        best: Whether no mean of the setting is better, of those over as many seeds as any.
        against: The comparison with the baseline; None for the baseline itself.
        holm: Corrected p by test: ``{"t": …, "wilcoxon": …}``.
        worst: Mean of the worst client's accuracy.
        up: Mean bytes to the server; ``down`` from it.
        target: When the target is reached; None where nobody asked, or nothing can tell.
    """

    setting: str
    label: str
    strategy: str
    values: Mapping[int, float]
    mean: float | None
    std: float | None
    best: bool = False
    against: Paired | None = None
    holm: Mapping[str, float | None] | None = None
    worst: float | None = None
    up: float | None = None
    down: float | None = None
    target: Target | None = None

    @property
    def n(self) -> int:
        """How many seeds have a number."""
        return len(self.values)


@dataclass(frozen=True)
class Analysis:
    """All lines, and what they are about.

    Attributes:
        metric: The column that is compared.
        baseline: The label that others are compared with.
        settings: In the suite's order; ``labels`` as well.
        lines: By setting and label.
        family: How many tests were corrected together, by test.
        confidence: Of the intervals.
        target: The number to reach; None if nobody asked.
        notes: What is missing, a sentence each.
    """

    metric: str
    baseline: str
    settings: tuple[str, ...]
    labels: tuple[str, ...]
    lines: Mapping[tuple[str, str], Line]
    family: Mapping[str, int]
    confidence: float
    target: float | None = None
    notes: tuple[str, ...] = ()

    def of(self, setting: str) -> list[Line]:
        """Return a setting's lines, in the suite's order."""
        return [
            self.lines[setting, label] for label in self.labels if (setting, label) in self.lines
        ]


def analyse(
    runs: Sequence[SuiteRun],
    metric: str = "accuracy",
    baseline: str | None = None,
    target: float | None = None,
    confidence: float = 0.95,
) -> Analysis:
    """Compare a suite's labels by one metric.

    Differences are label minus baseline, paired by seed within a setting. Holm's correction is
    over all comparisons of the analysis, one family for each kind of test.

    Args:
        runs: The completed runs.
        metric: A column of ``results.csv``, ``bytes`` or ``loss``.
        baseline: The label to compare with; by default the first.
        target: A number that runs are to reach by rounds, on the clients' own rows.
        confidence: Of the intervals.

    Raises:
        ResultError: The metric or the baseline is unknown, or can't be followed by round.
    """
    check_metric(runs, metric)
    labels = tuple(dict.fromkeys(run.label for run in runs))
    settings = tuple(dict.fromkeys(run.setting for run in runs))
    if baseline is not None:
        check_name("--baseline", baseline, labels)
    if target is not None:
        check_target(metric, target)
    chosen = baseline or labels[0]
    groups: dict[tuple[str, str], list[SuiteRun]] = {}
    for run in runs:
        groups.setdefault((run.setting, run.label), []).append(run)
    lines = {key: _line(group, metric, target) for key, group in groups.items()}
    lines = _compared(_with_best(lines, metric), chosen, confidence)
    lines, family = _corrected(lines)
    notes = _notes(runs, lines, chosen, target)
    return Analysis(
        metric, chosen, settings, labels, lines, family, confidence, target, tuple(notes)
    )


def _line(runs: Sequence[SuiteRun], metric: str, target: float | None) -> Line:
    values = {run.seed: value for run in runs if (value := run.value(metric)) is not None}
    first, numbers = runs[0], list(values.values())
    reached = None if target is None else time_to(runs, TARGETS[metric], target)
    return Line(
        first.setting,
        first.label,
        first.values.get("strategy", first.label),
        values,
        statistics.fmean(numbers) if numbers else None,
        statistics.stdev(numbers) if len(numbers) > 1 else None,
        worst=_mean(run.value("worst_client_accuracy") for run in runs),
        up=_mean(run.value("bytes_up") for run in runs),
        down=_mean(run.value("bytes_down") for run in runs),
        target=reached,
    )


def _with_best(lines: Mapping[tuple[str, str], Line], metric: str) -> dict[tuple[str, str], Line]:
    """Mark the best mean of each setting, among those over as many seeds as any has."""
    sign = -1.0 if less_is_better(metric) else 1.0
    ranked = {
        key: (len(line.values), sign * line.mean)
        for key, line in lines.items()
        if line.mean is not None
    }
    best: dict[str, tuple[int, float]] = {}
    for (setting, _), rank in ranked.items():
        best[setting] = max(best.get(setting, rank), rank)
    return {
        key: replace(line, best=key in ranked and ranked[key] == best[key[0]])
        for key, line in lines.items()
    }


def _compared(
    lines: Mapping[tuple[str, str], Line], baseline: str, confidence: float
) -> dict[tuple[str, str], Line]:
    found = {}
    for (setting, label), line in lines.items():
        base = lines.get((setting, baseline))
        against = None
        if label != baseline and base is not None:
            against = paired(line.values, base.values, confidence)
        found[setting, label] = replace(line, against=against)
    return found


def _corrected(
    lines: Mapping[tuple[str, str], Line],
) -> tuple[dict[tuple[str, str], Line], dict[str, int]]:
    keys = [key for key, line in lines.items() if line.against is not None]
    pairs = [against for key in keys if (against := lines[key].against) is not None]
    raw = {"t": [p.t_p for p in pairs], "wilcoxon": [p.wilcoxon_p for p in pairs]}
    corrected = {test: holm(values) for test, values in raw.items()}
    found = dict(lines)
    for i, key in enumerate(keys):
        found[key] = replace(lines[key], holm={test: corrected[test][i] for test in raw})
    return found, {test: sum(p is not None for p in values) for test, values in raw.items()}


def _notes(
    runs: Sequence[SuiteRun],
    lines: Mapping[tuple[str, str], Line],
    baseline: str,
    target: float | None,
) -> list[str]:
    notes = []
    without = [s for s in dict.fromkeys(run.setting for run in runs) if (s, baseline) not in lines]
    if without:
        notes.append(f"The baseline {baseline} has no run in {', '.join(without)}.")
    for key, line in lines.items():
        every = sum((run.setting, run.label) == key for run in runs)
        if line.n < every:
            notes.append(
                f"{'/'.join(key)}: {every - line.n} of {count(every, 'run')} without this number; "
                "its mean is over the others."
            )
    dropped = sum(line.against.dropped for line in lines.values() if line.against)
    if dropped:
        notes.append(f"Seeds that only one of the two has, in no difference: {dropped}.")
    gone = sum(run.folder is None for run in runs)
    if target is not None and gone:
        notes.append(
            f"{gone} of {len(runs)} runs have no run directory beside results.csv: when they reach "
            "the target is not known."
        )
    return [*notes, *_formats(runs)]


def _formats(runs: Sequence[SuiteRun]) -> list[str]:
    """Say in which settings runs were trained in different number formats."""
    found: dict[str, dict[str, set[int]]] = {}
    for run in runs:
        if told := run.values.get("precision"):
            found.setdefault(run.setting, {}).setdefault(told, set()).add(run.seed)
    return [
        f"{setting}: trained in "
        + " and in ".join(
            f"{name} (seed {', '.join(map(str, sorted(seeds)))})" for name, seeds in formats.items()
        )
        + "; part of a difference between them may be the number format's."
        for setting, formats in found.items()
        if len(formats) > 1
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None
