"""What one run is remembered by: a record per round and one summary, from its clients' rows.

Pure: numbers in, numbers out. A metric that does not exist is ``None``, never 0; a value that is
not finite (a diverged model) makes every mean it enters ``None`` instead of being left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from atlas_flwr.results.rows import (
    COLUMNS,
    KINDS,
    MB,
    PHASES,
    Bytes,
    ClientRow,
    Measured,
    compact_ranks,
)

__all__ = [
    "COLUMNS",
    "KINDS",
    "MB",
    "METRICS",
    "PHASES",
    "Bytes",
    "ClientRow",
    "Measured",
    "RoundRecord",
    "RunFacts",
    "Status",
    "compact_ranks",
    "final_scores",
    "round_record",
    "summary",
    "weighted_mean",
]

# What clocks and memory counters say: all that differs between a run and its repetition, or one
# that was killed and resumed. Everything else is the same to the bit on one machine's CPU.
MEASURED_FIELDS = ("time_seconds", "seconds", "memory_mb", "peak_memory_mb")
METRICS = ("accuracy", "f1", "macro_f1", "mcc", "loss")
Status = Literal["completed", "stopped", "failed"]


@dataclass(frozen=True)
class RoundRecord:
    """One line of ``rounds.jsonl`` and one item of ``summary.json``'s ``round_results``.

    Attributes:
        round: Round number, from 1.
        accuracy: Example-weighted mean over clients, each on its own validation slice.
        loss: The same mean of the evaluation loss; ``train_loss`` that of the training loss.
        time_seconds: Wall time of the round on the server.
        memory_mb: The highest peak a client measured.
        communication_mb: Up + down of the round, MB = 10⁶ bytes.
        aggregation_error: How far the merge was from the exact mean, where there is one; see
            `Measured` for this, ``truncation_error``, ``compression_error``, ``effective_rank``,
            ``step_loss``, ``eta``, ``eta_loss``, ``shares`` and ``epsilon``.
        by_task: ``{task: {accuracy, f1, macro_f1, mcc, loss}}``, weighted like ``accuracy``.
        participants: Partitions that trained; ``lost`` those lost or rejected in any phase.
    """

    round: int
    accuracy: float | None
    loss: float | None
    train_loss: float | None
    time_seconds: float
    memory_mb: float | None
    communication_mb: float
    aggregation_error: float | None
    truncation_error: Mapping[str, float | None] | None
    compression_error: Mapping[str, float | None] | None
    effective_rank: float | None
    step_loss: Mapping[str, float | None] | None
    eta: Mapping[str, float | None] | None
    eta_loss: Mapping[str, Mapping[str, float | None] | None] | None
    shares: Mapping[str, float | None] | None
    epsilon: Mapping[str, float | None] | None
    by_task: Mapping[str, Mapping[str, float | None]]
    worst_client_accuracy: float | None
    bytes_up: int
    bytes_down: int
    by_kind_up: Mapping[str, int]
    by_kind_down: Mapping[str, int]
    participants: Sequence[int]
    lost: Sequence[int]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def round_record(
    round_: int,
    rows: Sequence[ClientRow],
    moved: Bytes,
    seconds: float,
    measured: Measured = Measured(),  # noqa: B008 - frozen
) -> RoundRecord:
    """Fold one round's rows and bytes into its record.

    Args:
        round_: Round number, from 1.
        rows: The round's rows of all phases; ``"final"`` ones are ignored.
        moved: All bytes of the round.
        seconds: Wall time of the round.
        measured: How good the merge was.
    """
    scored = [row for row in rows if row.phase == "evaluate"]
    trained = [row for row in rows if row.phase == "train"]
    peaks = [row.peak_memory_mb for row in rows if row.peak_memory_mb is not None]
    tasks = sorted({row.task for row in scored})
    return RoundRecord(
        round=round_,
        accuracy=weighted_mean(scored, "accuracy"),
        loss=weighted_mean(scored, "loss"),
        train_loss=weighted_mean(trained, "loss"),
        time_seconds=float(seconds),
        memory_mb=max(peaks, default=None),
        communication_mb=(moved.up + moved.down) / MB,
        **measured.to_dict(),
        by_task={t: _weighted_scores([r for r in scored if r.task == t]) for t in tasks},
        worst_client_accuracy=_worst(scored),
        bytes_up=moved.up,
        bytes_down=moved.down,
        by_kind_up=dict(moved.by_kind_up),
        by_kind_down=dict(moved.by_kind_down),
        participants=sorted({row.partition for row in trained if row.status == "ok"}),
        lost=sorted({row.partition for row in rows if row.status != "ok"}),
    )


def weighted_mean(rows: Iterable[ClientRow], metric: str) -> float | None:
    """Return the example-weighted mean of a metric over the rows that have it.

    A row counts when its status is ok, it used at least one example and the metric exists. No such
    row, or one whose value is not finite, gives ``None``.
    """
    pairs = [
        (value, row.num_examples)
        for row in rows
        if row.status == "ok" and row.num_examples and (value := getattr(row, metric)) is not None
    ]
    if not pairs:
        return None
    values, weights = np.array(pairs, dtype=np.float64).T
    return _finite(float(np.average(values, weights=weights)))


def final_scores(final_rows: Sequence[ClientRow], own_rows: Sequence[ClientRow]) -> dict[str, Any]:
    """Return ``summary.json``'s ``final``: the last models on whole evaluation sets, and ``own``.

    ``by_task`` is the plain mean over the task's clients; ``accuracy`` and ``loss`` the unweighted
    mean over tasks, and null when a task has none (fewer tasks would be another number);
    ``worst_client_accuracy`` the lowest of all clients. ``own`` holds the same models on the
    clients' own slices: inside a task the example-weighted mean (an empty slice leaves it), over
    tasks the unweighted mean of those that have one.

    Args:
        final_rows: One ``"final"`` row per *client*, scores copied from the model it holds.
        own_rows: The same models' rows on the clients' own slices (``"evaluate"``).
    """
    tasks = _by_task(final_rows)
    own_tasks = _by_task(own_rows)
    by_task = {task: {m: _mean(_scores(rows, m)) for m in METRICS} for task, rows in tasks.items()}
    own = {task: _weighted_scores(rows) for task, rows in own_tasks.items()}
    return {
        "accuracy": _mean_of_all([scores["accuracy"] for scores in by_task.values()]),
        "loss": _mean_of_all([scores["loss"] for scores in by_task.values()]),
        "worst_client_accuracy": _worst(final_rows),
        "by_task": by_task,
        "own": {
            "accuracy": _mean([s["accuracy"] for s in own.values() if s["accuracy"] is not None]),
            "loss": _mean([s["loss"] for s in own.values() if s["loss"] is not None]),
            "worst_client_accuracy": _worst(own_rows),
            "by_task": own,
        },
    }


@dataclass(frozen=True)
class RunFacts:
    """What ran: the names ``summary.json`` opens with."""

    experiment: str
    strategy: str
    model: str
    engine: str
    seed: int


def summary(
    facts: RunFacts,
    status: Status,
    rounds: Sequence[RoundRecord | Mapping[str, Any]],
    final: Mapping[str, Any],
    moved: Bytes,
    seconds: float,
    peak_memory_mb: float | None,
) -> dict[str, Any]:
    """Return ``summary.json``'s content, exactly the contract's keys.

    Args:
        facts: What ran.
        status: How it ended.
        rounds: The records of the rounds, in order; plain ones (read back on resume) may mix in.
        final: From `final_scores`; of empty lists when the run did not get there.
        moved: All bytes of the run, those outside rounds (final evaluation) included.
        seconds: Wall time of the whole run.
        peak_memory_mb: The highest peak measured in any process of the run.
    """
    return {
        **{item.name: getattr(facts, item.name) for item in fields(facts)},
        "status": status,
        "rounds_completed": len(rounds),
        "final": dict(final),
        "bytes": {"up": moved.up, "down": moved.down, "by_kind": moved.by_kind},
        "seconds": float(seconds),
        "peak_memory_mb": _finite(peak_memory_mb),
        "round_results": [r.to_dict() if isinstance(r, RoundRecord) else dict(r) for r in rounds],
    }


def _by_task(rows: Iterable[ClientRow]) -> dict[str, list[ClientRow]]:
    """Return rows by task, tasks in alphabetical order."""
    grouped: dict[str, list[ClientRow]] = {}
    for row in rows:
        grouped.setdefault(row.task, []).append(row)
    return dict(sorted(grouped.items()))


def _scores(rows: Iterable[ClientRow], metric: str) -> list[float]:
    """Return the metric of the rows that answered and have it."""
    found = (getattr(row, metric) for row in rows if row.status == "ok")
    return [float(value) for value in found if value is not None]


def _weighted_scores(rows: Sequence[ClientRow]) -> dict[str, float | None]:
    """Return the example-weighted mean of every metric."""
    return {metric: weighted_mean(rows, metric) for metric in METRICS}


def _mean(values: Sequence[float]) -> float | None:
    """Return the plain mean; of nothing, ``None``."""
    return _finite(float(np.mean(values))) if values else None


def _mean_of_all(values: Sequence[float | None]) -> float | None:
    """Return the plain mean, ``None`` when one is absent."""
    there = [value for value in values if value is not None]
    return _mean(there) if len(there) == len(values) else None


def _worst(rows: Iterable[ClientRow]) -> float | None:
    """Return the lowest accuracy of a client with rows."""
    there = (row for row in rows if row.num_examples != 0)
    return _finite(min(_scores(there, "accuracy"), default=None))


def _finite(value: float | None) -> float | None:
    """Return the value as a float, ``None`` when absent or not finite."""
    return float(value) if value is not None and math.isfinite(value) else None
