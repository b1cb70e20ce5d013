"""When runs of a suite first reach a number, in rounds and in bytes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from atlas_flwr.errors import ResultError
from atlas_flwr.results.suites.rows import SuiteRun

TARGETS = {
    "accuracy": "accuracy",
    "own_accuracy": "accuracy",
    "worst_client_accuracy": "worst_client_accuracy",
    "worst_own_accuracy": "worst_client_accuracy",
    "loss": "loss",
    "own_loss": "loss",
}


@dataclass(frozen=True)
class Target:
    """When runs first reach a number on the clients' own rows.

    Attributes:
        reached: How many runs do.
        runs: How many have a run directory to tell.
        rounds: Median over runs of the first such round; None where half of them never do.
        bytes: Median of the bytes moved up to that round's end, both ways; None likewise.
    """

    reached: int
    runs: int
    rounds: float | None
    bytes: float | None


def check_target(metric: str, target: float) -> None:
    """Refuse a target of a metric that is not measured every round, or that it can't have.

    Raises:
        ResultError: Names what can be asked.
    """
    if metric not in TARGETS:
        raise ResultError(
            f"--target: {metric} is not measured every round; --metric takes {', '.join(TARGETS)}"
        )
    most = math.inf if TARGETS[metric] == "loss" else 1.0
    if not (0 < target <= most and math.isfinite(target)):
        kind = "a number above 0" if most > 1 else "a share above 0, at most 1, e.g. 0.70"
        raise ResultError(f"--target: {target:g}: {metric} is {kind}")


def time_to(runs: Sequence[SuiteRun], key: str, target: float) -> Target | None:
    """Return when runs first reach a target; None where no run directory can tell.

    A run that never reaches it counts as later than all that do.

    Args:
        runs: Of one label in one setting.
        key: A key of ``rounds.jsonl``; a ``loss`` has to fall to the target.
        target: The number to reach.
    """
    rounds, moved = list[float](), list[float]()
    for run in runs:
        if run.result is None:
            continue
        at, sent = first_reach(run.result.rounds, key, target)
        rounds.append(at)
        moved.append(sent)
    if not rounds:
        return None
    reached = sum(math.isfinite(at) for at in rounds)
    return Target(reached, len(rounds), _median(rounds), _median(moved))


def first_reach(
    rounds: Iterable[Mapping[str, Any]], key: str, target: float
) -> tuple[float, float]:
    """Return the first round that reaches a target and the bytes moved until its end.

    >>> first_reach([{"round": 1, "accuracy": 0.5, "bytes_up": 2, "bytes_down": 3}], "accuracy", .5)
    (1.0, 5.0)
    >>> first_reach([], "accuracy", 0.5)
    (inf, inf)
    """
    moved = 0.0
    for record in rounds:
        moved += record["bytes_up"] + record["bytes_down"]
        value = record.get(key)
        if value is not None and (value <= target if key == "loss" else value >= target):
            return float(record["round"]), moved
    return math.inf, math.inf


def _median(values: Sequence[float]) -> float | None:
    middle = statistics.median(values)
    return middle if math.isfinite(middle) else None
