"""Several runs side by side: on one axis only when they share the task set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atlas_flwr.errors import ResultError
from atlas_flwr.results.provenance import without_home
from atlas_flwr.results.series import show, show_bytes, show_error, show_seconds, tasks_of
from atlas_flwr.results.store import RunResult
from atlas_flwr.results.sweeps import NOT_COMPARED, keys_of

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
            row = values_of(label, run)
            words = [label, *(str(row[key]) for key in ("strategy", "seed", "status"))]
            found.append(Row(words, numbers(row)))
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
        return [values_of(label, run) for panel in self.panels for label, run in panel.runs.items()]


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


def numbers(row: Mapping[str, Any]) -> list[str]:
    """Return one run's numbers as tables show them: scores, error, bytes, time."""
    return [
        *(show(row[key], 4) for key in ("accuracy", "worst_client_accuracy", "loss")),
        show_error(row["aggregation_error"]),
        show_bytes(row["bytes"]),
        show_seconds(row["seconds"]),
    ]


def values_of(label: str, run: RunResult) -> dict[str, Any]:
    """Return one run's row of `COLUMNS`."""
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
