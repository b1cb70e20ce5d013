"""A client's own folder: ``{train,validation}.*``, whose rows are its shard and never leave it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from atlas_flwr.data.files import Columns, count_rows, read_columns, split_file
from atlas_flwr.data.labels import check_range, label_values, text_rows
from atlas_flwr.data.load import Rows, TaskRows, files_identity
from atlas_flwr.data.shards import Shard
from atlas_flwr.data.tasks import TaskSpec, mapped_names
from atlas_flwr.data.tokenised import FORMAT_VERSION, TokenisedTask, open_rows
from atlas_flwr.errors import DataError, did_you_mean

FACTS = "shard.json"
FULL = "full"
"""Split of the task's whole evaluation set, which a test deployment may hold and nobody else."""


@dataclass(frozen=True)
class FolderFacts:
    """What a folder says of itself without its rows being read.

    Attributes:
        task: Its task, by ``shard.json``; empty without one.
        labels: Names of the task's classes in the order of their numbers; empty likewise.
        train_rows: Rows to train on.
        score_rows: Rows of the client's own slice; may be 0.
    """

    task: str
    labels: tuple[str, ...]
    train_rows: int
    score_rows: int


def read_facts(folder: Path, partition: int) -> FolderFacts:
    """Return what a client's folder holds.

    Args:
        folder: The node's ``data-path``.
        partition: The node's partition: a shard that was cut for another one is refused.

    Raises:
        DataError: The folder, a file or what ``shard.json`` says is missing or wrong.
    """
    train, validation = (_file(folder, split) for split in ("train", "validation"))
    about = _about(folder / FACTS)
    if about and about["partition"] != partition:
        raise DataError(
            f"{folder / FACTS}: the shard of partition {about['partition']}, but this node's "
            f"partition-id is {partition}; give it its own folder"
        )
    rows = count_rows(train)
    if not rows:
        raise DataError(f"{train}: has no rows")
    labels = tuple(about.get("labels", ()))
    return FolderFacts(about.get("task", ""), labels, rows, count_rows(validation))


def folder_labels(facts: FolderFacts, spec: TaskSpec, folder: Path) -> tuple[str, ...]:
    """Return the names of a folder's classes: its own word, else what the task is known to have.

    Raises:
        DataError: The folder is of another task, or nobody says what the classes are.
    """
    if facts.task and facts.task != spec.name:
        raise DataError(f"{folder / FACTS}: of task '{facts.task}', this client's is '{spec.name}'")
    known = spec.label_names
    if known is not None and spec.label_map is not None:
        known = mapped_names(known, spec.label_map)
    if facts.labels and known is not None and facts.labels != known:
        raise DataError(
            f"{folder / FACTS}: labels {list(facts.labels)}, but '{spec.name}' has {list(known)}"
        )
    names = facts.labels or known
    if names is None:
        raise DataError(
            f"{folder / FACTS}: is missing; it names the classes of a task of one's own, e.g. "
            f'{{"task": "{spec.name}", "labels": ["no", "yes"], "partition": 0}}'
        )
    return names


def open_folder(
    folder: Path,
    spec: TaskSpec,
    partition: int,
    tokenizer: Any,
    tokenizer_key: str,
    max_length: int,
    cache_dir: Path | None = None,
) -> tuple[TokenisedTask, Shard]:
    """Return the token tables of a client's folder, and which of their rows are used how.

    All training rows are. Without a full evaluation set, the client's own slice is all it can
    score anything on.

    Args:
        folder: The node's ``data-path``.
        spec: The client's task.
        partition: The node's partition.
        tokenizer: A Hugging Face tokenizer.
        tokenizer_key: What names the tokenizer and its revision.
        max_length: Tokens kept of a row.
        cache_dir: Folder of the token cache.

    Raises:
        DataError: The folder is missing, of another task or partition, or its rows are wrong.
    """
    facts = read_facts(folder, partition)
    labels = folder_labels(facts, spec, folder)
    key = {
        "format": FORMAT_VERSION,
        "columns": [*spec.text, spec.label],
        "labels": labels,
        "source": files_identity(_files(folder)),
        "tokenizer": tokenizer_key,
        "max_length": max_length,
    }
    read = partial(read_folder, folder, spec, labels)
    task = open_rows(cache_dir, key, read, tokenizer, max_length)
    own, total = facts.score_rows, len(task.validation)
    counts = np.bincount(task.train.labels, minlength=task.num_labels)
    shard = Shard(
        train=np.arange(len(task.train), dtype=np.int64),
        evaluation=np.arange(own, dtype=np.int64),
        mix=counts / counts.sum(),
        evaluation_table="validation",
        full_evaluation=np.arange(own if total > own else 0, total, dtype=np.int64),
    )
    return task, shard


def read_folder(folder: Path, spec: TaskSpec, labels: Sequence[str]) -> TaskRows:
    """Read a client's rows; evaluation rows are its own slice, then the whole set if it is here.

    Labels are the task's numbers ``0..C-1`` (after its label map) or its class names.

    Args:
        folder: The node's ``data-path``.
        spec: The task, for the names of its columns.
        labels: Names of its classes.

    Raises:
        DataError: A file, column, text or label is missing or wrong; one line.
    """
    train = _rows(_file(folder, "train"), spec, labels)
    own = _rows(_file(folder, "validation"), spec, labels)
    full = _rows(path, spec, labels) if (path := _full_file(folder)) else Rows([], own.labels[:0])
    both = Rows(own.texts + full.texts, np.concatenate([own.labels, full.labels]))
    return TaskRows(train, both, len(labels), tuple(labels))


def write_shard(
    folder: Path, spec: TaskSpec, rows: TaskRows, shard: Shard, partition: int, full: bool
) -> None:
    """Write one client's folder, so that it holds what the simulation deals to that client.

    Args:
        folder: Where; made if it is not there.
        spec: The task, for the names of its columns.
        rows: The task's rows, labels mapped.
        shard: The client's rows.
        partition: Which client it is.
        full: Also write the task's whole evaluation set.

    Raises:
        DataError: The folder holds a shard already, or can't be written.
    """
    held = rows.train if shard.evaluation_table == "train" else rows.validation
    splits = {"train": rows.train.take(shard.train), "validation": held.take(shard.evaluation)}
    if full:
        splits[FULL] = held.take(shard.full_evaluation)
    about = {"task": spec.name, "labels": list(rows.label_names), "partition": partition}
    if (folder / FACTS).exists():
        raise DataError(f"{folder}: holds a shard already; name another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for split, part in splits.items():
            pq.write_table(_table(part, spec), folder / f"{split}.parquet")
        text = json.dumps(about, ensure_ascii=False, indent=2)
        (folder / FACTS).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder}: can't be written ({error.strerror or error})") from error


def _table(rows: Rows, spec: TaskSpec) -> Any:
    columns = {
        name: pa.array([texts[i] for texts in rows.texts], pa.string())
        for i, name in enumerate(spec.text)
    }
    return pa.table(columns | {spec.label: pa.array(rows.labels)})


def _rows(file: Path, spec: TaskSpec, labels: Sequence[str]) -> Rows:
    columns = read_columns(file, (*spec.text, spec.label), empty=True)
    numbers = _numbers(columns, spec, labels, str(file))
    return Rows(text_rows(columns, spec.text, str(file)), numbers)


def _numbers(columns: Columns, spec: TaskSpec, labels: Sequence[str], place: str) -> Any:
    """Return the labels as numbers; a class nobody knows is refused."""
    values: Sequence[int | str] = label_values(columns[spec.label], spec.label, place)
    numbers: list[int] = []
    for row, value in enumerate(values, start=1):
        if isinstance(value, str) and value not in labels:
            raise DataError(
                f"{place}: column '{spec.label}', row {row}: label {value[:40]!r} is unknown"
                f"{did_you_mean(value, labels)}; '{spec.name}' has {', '.join(labels)}"
            )
        numbers.append(list(labels).index(value) if isinstance(value, str) else int(value))
    check_range(numbers, len(labels), spec.label, place)
    return np.array(numbers, dtype=np.int64)


def _file(folder: Path, split: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"data-path: {folder} is not a folder on this machine")
    return split_file(folder, split, "data-path")


def holds_full(folder: Path) -> bool:
    """Say whether a folder has its task's whole evaluation set beside the client's own slice."""
    return _full_file(folder) is not None


def _files(folder: Path) -> list[Path]:
    full = _full_file(folder)
    return [_file(folder, s) for s in ("train", "validation")] + ([full] if full else [])


def _full_file(folder: Path) -> Path | None:
    return next((p for p in sorted(folder.glob(f"{FULL}.*")) if p.is_file()), None)


@lru_cache(maxsize=16)
def _about(path: Path) -> dict[str, Any]:
    """Return what ``shard.json`` says; nothing where there is none."""
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        task, labels, partition = about["task"], about["labels"], about["partition"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{path}: can't be read ({error!r})") from error
    named = isinstance(labels, list) and all(isinstance(name, str) for name in labels)
    if not isinstance(task, str) or not named or len(set(labels)) < 2:
        raise DataError(f"{path}: needs a task and at least two labels, all of them names")
    return {"task": task, "labels": labels, "partition": partition}
