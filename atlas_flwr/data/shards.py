"""Which rows each client of a task trains on and is scored on."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.config.sections import DataSection
from atlas_flwr.data.partition import (
    deal_evaluation,
    deal_training,
    draw_mixes,
    draw_sizes,
    largest_remainder,
    stratified_part,
)
from atlas_flwr.data.tokenised import TokenisedTask
from atlas_flwr.errors import DataError
from atlas_flwr.seeding import rng_for

Table = Literal["train", "validation"]


@dataclass(frozen=True, eq=False)
class Shard:
    """One client's rows; the arrays are read-only and shared.

    Attributes:
        train: Rows of the task's train table, ascending.
        evaluation: The client's own slice of the evaluation table, ascending; may be empty.
        mix: The label mix the client realises, shape ``(C,)``.
        evaluation_table: The table that evaluation rows come from: ``train`` with a holdout.
        full_evaluation: All rows of the task's evaluation set, the same for each client: the
            validation rows, or the holdout, at most ``data.evaluation-rows`` of them.
    """

    train: NDArray[np.int64]
    evaluation: NDArray[np.int64]
    mix: NDArray[np.float64]
    evaluation_table: Table
    full_evaluation: NDArray[np.int64]


def deal_task(
    task: TokenisedTask,
    partitions: tuple[int, ...],
    data: DataSection,
    seed: int,
    task_name: str,
) -> dict[int, Shard]:
    """Return the shard of each client of a task; computed once per process.

    Mix, sizes, training rows and evaluation rows have a random stream each, so the mix does not
    change with ``samples-per-client`` unless a class runs out.

    Args:
        task: The task's tables.
        partitions: The clients that hold the task, ascending.
        data: The ``[data]`` section.
        seed: The run's seed.
        task_name: Part of every stream's role: two tasks are dealt independently.

    Raises:
        DataError: Too few rows or classes for what is asked; names the key.
    """
    return dict(_deal_task(task, partitions, data, seed, task_name))


@functools.lru_cache(maxsize=64)
def _deal_task(
    task: TokenisedTask,
    partitions: tuple[int, ...],
    data: DataSection,
    seed: int,
    task_name: str,
) -> tuple[tuple[int, Shard], ...]:
    pool, table, full = _tables(task, data.holdout, seed, task_name)
    held = (task.train if table == "train" else task.validation).labels
    full = _capped(full, held[full], data.evaluation_rows, rng_for(seed, f"scored/{task_name}"))
    labels = task.train.labels[pool]
    prior = np.bincount(labels, minlength=task.num_labels) / len(labels)
    try:
        mixes = draw_mixes(
            data.partitioner,
            prior,
            [rng_for(seed, f"label-mix/{task_name}", 0, p) for p in partitions],
            alpha=data.alpha,
            num_classes_per_partition=data.num_classes_per_partition,
        )
        sizes = draw_sizes(
            data.partitioner,
            data.samples_per_client,
            partitions,
            rng_for(seed, f"sizes/{task_name}"),
            alpha=data.alpha,
            min_partition_size=data.min_partition_size,
        )
        choice = rng_for(seed, f"training-rows/{task_name}")
        exact = data.partitioner == "pathological"
        hands, mixes = deal_training(labels, mixes, sizes, choice, every_class=exact)
    except DataError as error:
        raise DataError(f"{error} (task '{task_name}')") from error
    dealer = rng_for(seed, f"evaluation-rows/{task_name}")
    slices = deal_evaluation(held[full], mixes, prior, dealer)
    return tuple(
        (p, Shard(_fixed(pool[hand]), _fixed(full[own]), _fixed(mix), table, full))
        for p, hand, own, mix in zip(partitions, hands, slices, mixes, strict=True)
    )


def _tables(
    task: TokenisedTask, holdout: float, seed: int, task_name: str
) -> tuple[NDArray[np.int64], Table, NDArray[np.int64]]:
    """Return the rows to train on, the evaluation table and all its evaluation rows."""
    rows = np.arange(len(task.train), dtype=np.int64)
    if not holdout:
        return rows, "validation", _fixed(np.arange(len(task.validation), dtype=np.int64))
    part = stratified_part(task.train.labels, holdout, rng_for(seed, f"holdout/{task_name}"))
    if not part.size:
        raise DataError(
            f"data.holdout: {holdout} of the {len(rows)} training rows of task '{task_name}' is "
            "no row; use a larger share"
        )
    # A duplicate left in the pool would be trained on and tuned on.
    held = {task.train.key(row) for row in part}
    pool = np.array([r for r in np.setdiff1d(rows, part) if task.train.key(r) not in held], int)
    return pool, "train", _fixed(part)


def _capped(
    rows: NDArray[np.int64], labels: NDArray[np.int64], most: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return at most so many of the rows, ascending, each class by its share; 0 keeps all."""
    if not most or most >= len(rows):
        return rows
    counts = largest_remainder(np.bincount(labels).astype(np.float64), most)
    places = [
        rng.permutation(np.flatnonzero(labels == c))[:count] for c, count in enumerate(counts)
    ]
    return _fixed(rows[np.sort(np.concatenate(places))])


def _fixed(array: NDArray[Any]) -> NDArray[Any]:
    """Return the array made read-only, for it is shared."""
    array.setflags(write=False)
    return array
