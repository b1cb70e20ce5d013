"""Reading columns of parquet, csv, tsv and jsonl files; what can't be read is named in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from atlas_flwr.errors import DataError, did_you_mean

SUFFIXES = (".parquet", ".csv", ".tsv", ".jsonl")
_BLOCK_BYTES = 64 * 2**20  # a row can't be longer than a block

Columns = dict[str, list[Any]]


def task_files(path: Path, name: str) -> tuple[Path, ...]:
    """Return ``(train, validation)`` files of a folder, or the single file a path names.

    Raises:
        DataError: Nothing is there, the suffix is unknown, or a split is missing or there twice.
    """
    if path.is_dir():
        return tuple(
            split_file(path, split, f"task.{name}.path") for split in ("train", "validation")
        )
    if not path.exists():
        raise DataError(f"task.{name}.path: {path} does not exist")
    if path.suffix not in SUFFIXES:
        raise DataError(f"task.{name}.path: {path} is not one of {', '.join(SUFFIXES)}")
    return (path,)


def split_file(folder: Path, split: str, key: str) -> Path:
    """Return the one file of a folder that holds a split.

    Args:
        folder: The folder.
        split: Its name without a suffix.
        key: What named the folder, for the message.

    Raises:
        DataError: There is none, or more than one.
    """
    found = [p for p in (folder / f"{split}{suffix}" for suffix in SUFFIXES) if p.is_file()]
    if not found:
        raise DataError(f"{key}: {folder} has no {split}.* file ({', '.join(SUFFIXES)})")
    if len(found) > 1:
        both = " and ".join(p.name for p in found)
        raise DataError(f"{key}: {folder} has {both}; keep one")
    return found[0]


def read_columns(path: Path, names: Sequence[str], *, empty: bool = False) -> Columns:
    """Return the named columns of a file as lists; a missing value is ``None``.

    Csv and tsv cells are all text (``"NA"`` stays ``"NA"``); tsv is read without quoting, as GLUE
    writes it. Parquet and jsonl keep their types.

    Args:
        path: The file.
        names: Columns wanted.
        empty: Whether a file without rows is fine.

    Raises:
        DataError: The file is missing or broken, lacks a column, or has no rows.
    """
    if not path.is_file():
        raise DataError(f"{path}: does not exist")
    reader = {".parquet": _parquet, ".jsonl": _jsonl}.get(path.suffix, _delimited)
    try:
        columns = reader(path, names)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        line = first_line(error)
        mend = "; save the file as UTF-8" if "utf" in line.lower() else ""
        raise DataError(f"{path}: can't be read: {line}{mend}") from error
    if not columns[names[0]] and not empty:
        raise DataError(f"{path}: has no rows")
    return columns


def count_rows(path: Path) -> int:
    """Return how many rows a file has; a parquet file's are not read.

    Raises:
        DataError: The file can't be read.
    """
    try:
        if path.suffix == ".parquet":
            return int(pq.read_metadata(path).num_rows)
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as lines:
                return sum(bool(line.strip()) for line in lines)
        parse = pacsv.ParseOptions(
            delimiter="\t" if path.suffix == ".tsv" else ",",
            quote_char=False if path.suffix == ".tsv" else '"',
            newlines_in_values=path.suffix != ".tsv",
        )
        return int(pacsv.read_csv(path, parse_options=parse).num_rows)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's text, or its type, for one-line messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _check_columns(path: Path, known: Sequence[str], wanted: Sequence[str]) -> None:
    for name in wanted:
        if name not in known:
            raise DataError(
                f"{path}: no column '{name}'{did_you_mean(name, known)}; "
                f"columns: {', '.join(known)}{_separator(known)}"
            )
        if list(known).count(name) > 1:
            raise DataError(f"{path}: column '{name}' is there twice; keep one")


def _separator(known: Sequence[str]) -> str:
    """Return what a header that is one cell may mean: another separator than the comma."""
    for mark, name in ((";", "semicolons"), ("\t", "tabs")):
        if len(known) == 1 and mark in known[0]:
            return f"; cells seem to be separated by {name}: a csv needs commas, a tsv tabs"
    return ""


def _parquet(path: Path, names: Sequence[str]) -> Columns:
    _check_columns(path, pq.read_schema(path).names, names)
    table = pq.read_table(path, columns=list(names))
    return {name: table.column(name).to_pylist() for name in names}


def _delimited(path: Path, names: Sequence[str]) -> Columns:
    """Read csv or tsv; a row with the wrong number of cells is an error, never skipped."""
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "skip"  # raised below: an exception can't pass through the parser

    tabs = path.suffix == ".tsv"
    parse = pacsv.ParseOptions(
        delimiter="\t" if tabs else ",",
        quote_char=False if tabs else '"',
        newlines_in_values=not tabs,
        invalid_row_handler=note,
    )
    # One thread: only then does the parser know row numbers.
    read = pacsv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
    with pacsv.open_csv(path, read_options=read, parse_options=parse) as stream:
        known = stream.schema.names
    _check_columns(path, known, names)
    ragged.clear()
    convert = pacsv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()),
        include_columns=list(names),
        strings_can_be_null=False,
    )
    table = pacsv.read_csv(path, read_options=read, parse_options=parse, convert_options=convert)
    if ragged:
        row = ragged[0]
        raise DataError(
            f"{path}: line {row.number} has {row.actual_columns} cells, "
            f"the header {row.expected_columns}"
        )
    return {name: table.column(name).to_pylist() for name in names}


def _jsonl(path: Path, names: Sequence[str]) -> Columns:
    """Read one JSON object a line; the keys of the first line are the columns."""
    rows: list[dict[str, Any]] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}: line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}: line {number} is not a JSON object")
            rows.append(row)
    if rows:
        _check_columns(path, list(rows[0]), names)
    return {name: [row.get(name) for row in rows] for name in names}
