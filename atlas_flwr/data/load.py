"""A task's rows as checked text and labels: from the hub, a local root, a package or own files."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.data.files import Columns, first_line, read_columns, task_files
from atlas_flwr.data.labels import (
    check_classes,
    check_range,
    encode_labels,
    label_values,
    text_rows,
)
from atlas_flwr.data.packaged import packaged_version, read_packaged, row_key
from atlas_flwr.data.partition import stratified_part
from atlas_flwr.data.tasks import TaskSpec, mapped_names
from atlas_flwr.errors import DataError, did_you_mean
from atlas_flwr.seeding import rng_for

VALIDATION_SHARE = 0.2
"""Share of the rows that becomes the validation set where the source has none."""
PACKAGED_VALIDATION_ROWS = 600
"""A packaged set is scored every round of a demo: its validation set is no larger than this."""

SPLITS = ("train", "validation")


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts, one or two a row, and their labels, int64, shape ``(n,)``."""

    texts: list[tuple[str, ...]]
    labels: NDArray[np.int64]

    def take(self, indices: NDArray[Any]) -> Rows:
        """Return the rows at the indices, in their order."""
        return Rows([self.texts[i] for i in indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class TaskRows:
    """One task, read and checked; no train row equals a validation row."""

    train: Rows
    validation: Rows
    num_labels: int
    label_names: tuple[str, ...]


def load_rows(spec: TaskSpec, root: str | None, seed: int) -> TaskRows:
    """Read, check and split a task's rows.

    Train rows that equal a validation row, case and white space apart, are removed. A packaged or
    one-file task is split 80/20 by seed, each class apart (a packaged one keeps at most
    ``PACKAGED_VALIDATION_ROWS`` for validation); the split depends on the task's source and not on
    its name, so a task and its relabelled twin share it.

    Args:
        spec: The task.
        root: Folder with ``<task>/{train,validation}.parquet`` for hub tasks, or ``None``.
        seed: The run's seed.

    Raises:
        DataError: A source, file, column, label or row is missing or wrong; one line.
    """
    if spec.package is not None:
        rows = _packaged(spec, seed)
    elif spec.path is not None:
        rows = _own(spec, Path(spec.path), seed)
    else:
        rows = _hub_task(spec, root)
    return _mapped(_disjoint(rows, spec), spec)


def is_split_by_seed(spec: TaskSpec) -> bool:
    """Tell whether the seed decides which rows are validation rows."""
    return spec.package is not None or (spec.path is not None and not Path(spec.path).is_dir())


def source_identity(spec: TaskSpec, root: str | None) -> list[str]:
    """Return what changes when the task's source does, without reading its rows.

    Files: path, size and modification time; packages: version; hub: the builder's hash, which
    holds the revision.

    Raises:
        DataError: The source is missing.
    """
    if spec.package is not None:
        return [spec.package, packaged_version(spec)]
    if spec.path is not None:
        files: Sequence[Path] = task_files(Path(spec.path), spec.name)
    elif root is not None:
        files = _root_files(spec, root)
    else:
        assert spec.hub is not None
        return [*spec.hub, _hub_hash(*spec.hub)]
    return files_identity(files)


def files_identity(files: Sequence[Path]) -> list[str]:
    """Return what changes when one of some files does: path, size and modification time."""
    stats = [(file.resolve(), file.stat()) for file in files]
    return [f"{path}:{stat.st_size}:{stat.st_mtime_ns}" for path, stat in stats]


# ------------------------------------------------------------------ sources


def _packaged(spec: TaskSpec, seed: int) -> TaskRows:
    texts, labels = read_packaged(spec)
    assert spec.label_names is not None
    rows = Rows(texts, np.array(labels, dtype=np.int64))
    return _split(rows, spec, spec.label_names, seed)


def _own(spec: TaskSpec, path: Path, seed: int) -> TaskRows:
    files = task_files(path, spec.name)
    read = [read_columns(file, (*spec.text, spec.label)) for file in files]
    texts = [text_rows(c, spec.text, str(f)) for c, f in zip(read, files, strict=True)]
    values = [
        label_values(c[spec.label], spec.label, str(f)) for c, f in zip(read, files, strict=True)
    ]
    # One file is its own validation file until it is split.
    places = (str(files[0]), str(files[-1]))
    train, validation, names = encode_labels(values[0], values[-1], spec.label, places)
    check_classes(train, spec.label, places[0], names)
    if len(files) == 1:
        return _split(Rows(texts[0], train), spec, names, seed)
    return TaskRows(Rows(texts[0], train), Rows(texts[1], validation), len(names), names)


def _hub_task(spec: TaskSpec, root: str | None) -> TaskRows:
    if root is not None:
        files = _root_files(spec, root)
        columns = [read_columns(file, (*spec.text, spec.label)) for file in files]
        places = [str(file) for file in files]
    else:
        assert spec.hub is not None
        columns = _hub_columns(spec, *spec.hub)
        places = [f"{'/'.join(spec.hub)} ({split})" for split in SPLITS]
    train, validation = (_known(c, spec, p) for c, p in zip(columns, places, strict=True))
    check_classes(train.labels, spec.label, places[0])
    assert spec.label_names is not None
    return TaskRows(train, validation, len(spec.label_names), spec.label_names)


def _known(columns: Columns, spec: TaskSpec, place: str) -> Rows:
    """Check the columns of a task whose classes are known."""
    texts = text_rows(columns, spec.text, place)
    values = label_values(columns[spec.label], spec.label, place)
    labels = [label for label in values if isinstance(label, int)]
    if len(labels) < len(values):  # words: a column never mixes them with numbers
        raise DataError(
            f"{place}: column '{spec.label}', row 1: label {str(values[0])[:40]!r} is not an "
            f"integer; '{spec.source}' has labels 0..{(spec.num_labels or 0) - 1}"
        )
    check_range(labels, spec.num_labels, spec.label, place)
    return Rows(texts, np.array(labels, dtype=np.int64))


def _root_files(spec: TaskSpec, root: str) -> list[Path]:
    files = [Path(root) / spec.source / f"{split}.parquet" for split in SPLITS]
    for file in files:
        if not file.is_file():
            raise DataError(
                f"data.root: {file} does not exist; '{spec.source}' is read from "
                "<data.root>/<task>/{train,validation}.parquet"
            )
    return files


# ------------------------------------------------------------------ the hub


def _hub_columns(spec: TaskSpec, repo: str, name: str) -> list[Columns]:
    import datasets  # noqa: PLC0415 - takes seconds, and most runs never ask the hub

    with _hub_errors(repo, name):
        loaded = datasets.load_dataset(repo, name)
    columns = []
    for split in SPLITS:
        place = f"{repo}/{name}"
        if split not in loaded:
            raise DataError(f"{place}: has no split '{split}'; splits: {', '.join(loaded)}")
        for column in (*spec.text, spec.label):
            if column not in loaded[split].column_names:
                near = did_you_mean(column, loaded[split].column_names)
                raise DataError(f"{place}: no column '{column}'{near} in split '{split}'")
        if not len(loaded[split]):
            raise DataError(f"{place}: split '{split}' has no rows")
        columns.append({c: list(loaded[split][c]) for c in (*spec.text, spec.label)})
    return columns


@functools.lru_cache
def _hub_hash(repo: str, name: str) -> str:
    import datasets  # noqa: PLC0415

    with _hub_errors(repo, name):
        return str(datasets.load_dataset_builder(repo, name).hash)


@contextlib.contextmanager
def _hub_errors(repo: str, name: str) -> Iterator[None]:
    """Turn whatever a failed look-up raises into one line; the library has no common base."""
    try:
        yield
    except Exception as error:
        raise DataError(
            f"data.tasks: dataset {repo} ({name}) can't be had from the hub or its cache "
            f"({type(error).__name__}: {first_line(error)}); offline, set data.root to a folder "
            "with <task>/{train,validation}.parquet, or use the packaged tasks 'bbc' and 'tweets'"
        ) from error


# ------------------------------------------------------------------ split, disjoint, mapped


def _split(rows: Rows, spec: TaskSpec, names: tuple[str, ...], seed: int) -> TaskRows:
    """Cut a validation set out, each class apart."""
    share = VALIDATION_SHARE
    if spec.package:
        share = min(share, PACKAGED_VALIDATION_ROWS / max(1, len(rows.labels)))
    part = stratified_part(rows.labels, share, rng_for(seed, f"split/{spec.source}"))
    inside = np.zeros(len(rows.labels), dtype=bool)
    inside[part] = True
    train, validation = rows.take(np.flatnonzero(~inside)), rows.take(np.flatnonzero(inside))
    if not part.size:
        raise DataError(
            f"task.{spec.name}.path: {len(rows.labels)} rows are too few to split 80/20; each of "
            f"the {len(names)} classes in column '{spec.label}' needs two rows or more"
        )
    return TaskRows(train, validation, len(names), names)


def _disjoint(rows: TaskRows, spec: TaskSpec) -> TaskRows:
    """Remove the train rows that are also validation rows, and refuse what is left too small."""
    held = {row_key(texts) for texts in rows.validation.texts}
    keep = [i for i, texts in enumerate(rows.train.texts) if row_key(texts) not in held]
    train = rows.train.take(np.array(keep, dtype=np.int64))
    place = f"data.tasks: '{spec.name}', train without validation's rows"
    check_classes(train.labels, spec.label, place)
    return TaskRows(train, rows.validation, rows.num_labels, rows.label_names)


def _mapped(rows: TaskRows, spec: TaskSpec) -> TaskRows:
    """Apply the label map."""
    if spec.label_map is None:
        return rows
    table = np.array(spec.label_map, dtype=np.int64)
    train = Rows(rows.train.texts, table[rows.train.labels])
    validation = Rows(rows.validation.texts, table[rows.validation.labels])
    check_classes(train.labels, spec.label, f"task.{spec.name}.label-map (train)")
    names = mapped_names(rows.label_names, spec.label_map)
    return TaskRows(train, validation, len(names), names)
