"""A suite's runs by round: means over seeds with their spread, and each client's last accuracy."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from atlas_flwr.results.series import client_accuracies
from atlas_flwr.results.shapes import Group, HeatMap, Scale
from atlas_flwr.results.store import RunResult
from atlas_flwr.results.suites.rows import MB, SuiteRun


@dataclass(frozen=True)
class Band:
    """A label's curve over its seeds.

    Attributes:
        label: The suite's entry.
        n: How many seeds.
        rounds: The rounds that every seed has a number for.
        mb: Mean MB moved until each round's end, both ways.
        mean: Over seeds; `std` the sample standard deviation, empty for one seed.
    """

    label: str
    n: int
    rounds: Sequence[int]
    mb: Sequence[float]
    mean: Sequence[float]
    std: Sequence[float]


def bands(runs: Sequence[SuiteRun], key: str) -> list[Band]:
    """Return a curve for each label that has run directories.

    Args:
        runs: Of one setting.
        key: A key of ``rounds.jsonl``.
    """
    found = []
    for label in dict.fromkeys(run.label for run in runs):
        curves = [
            _curve(run.result, key) for run in runs if run.label == label and run.result is not None
        ]
        shared = [at for at in (curves[0] if curves else {}) if all(at in c for c in curves)]
        if not shared:
            continue
        values = [[curve[at][0] for curve in curves] for at in shared]
        found.append(
            Band(
                label,
                len(curves),
                shared,
                [statistics.fmean(curve[at][1] for curve in curves) for at in shared],
                [statistics.fmean(each) for each in values],
                [statistics.stdev(each) for each in values] if len(curves) > 1 else [],
            )
        )
    return found


def _curve(run: RunResult, key: str) -> dict[int, tuple[float, float]]:
    """Return the number and the MB so far by round, rounds without a number left out."""
    moved, found = 0.0, {}
    for record in run.rounds:
        moved += (record["bytes_up"] + record["bytes_down"]) / MB
        if record.get(key) is not None:
            found[int(record["round"])] = (float(record[key]), moved)
    return found


def client_map(runs: Sequence[SuiteRun], setting: str) -> HeatMap | None:
    """Return each client's accuracy after the last round under each label; None without runs.

    Args:
        runs: Of one setting; means are over the seeds that have a run directory.
        setting: Its name.
    """
    cells: dict[str, dict[tuple[str, int], list[float]]] = {}
    for run in runs:
        if run.result is None:
            continue
        for key, accuracy in _last_accuracies(run.result).items():
            cells.setdefault(run.label, {}).setdefault(key, []).append(accuracy)
    clients = sorted({key for found in cells.values() for key in found}, key=lambda key: key[1])
    if not clients:
        return None
    tasks = list(dict.fromkeys(task for task, _ in clients))
    clients.sort(key=lambda key: (tasks.index(key[0]), key[1]))
    values = [
        [statistics.fmean(found[key]) if key in found else None for key in clients]
        for found in cells.values()
    ]
    there = [value for row in values for value in row if value is not None]
    low, high = min(there), max(there)
    shades = [low, (low + high) / 2, high] if high > low else [low]
    legend: list[tuple[str, float | None]] = [(f"{value:.2f}", value) for value in shades]
    if any(value is None for row in values for value in row):
        legend.append(("none", None))
    seeds = max(len(each) for found in cells.values() for each in found.values())
    return HeatMap(
        name="clients",
        title=f"Each client's own accuracy: {setting}",
        caption=(
            "After the last round, on the client's own validation rows"
            + (f"; mean over {seeds} seeds." if seeds > 1 else "; one seed.")
        ),
        rows=list(cells),
        columns=[str(partition) for _, partition in clients],
        values=values,
        scale=Scale(low, high),
        key=legend,
        what="accuracy",
        column_groups=[Group(t, sum(task == t for task, _ in clients)) for t in tasks],
        digits=2,
        sides=("strategy", "client"),
    )


def _last_accuracies(run: RunResult) -> dict[tuple[str, int], float]:
    """Return the accuracies of the last round in which each client was scored."""
    last: dict[tuple[str, int], tuple[int, float]] = {}
    tasks: list[Any] = run.clients["task"].dropna().unique().tolist()
    for task in tasks:
        for number, partition, accuracy in client_accuracies(run.clients, task, "evaluate"):
            at = (str(task), partition)
            last[at] = max(last.get(at, (0, 0.0)), (number, accuracy), key=lambda pair: pair[0])
    return {at: accuracy for at, (_, accuracy) in last.items()}
