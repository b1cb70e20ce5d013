"""The run directory: written atomically, never over another run, and read back with checks."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from atlas_flwr.errors import ResultError
from atlas_flwr.results.csv_row import csv_row
from atlas_flwr.results.record import COLUMNS, ClientRow, RoundRecord
from atlas_flwr.results.watch import runs_below
from atlas_flwr.results.writing import append_synced, atomic_write

REPORT = "report.html"
RUN_FILES = ("config.toml", "provenance.json", "rounds.jsonl", "clients.parquet", "summary.json")
SUMMARY_KEYS = (
    *("experiment", "strategy", "model", "engine", "seed", "status", "rounds_completed"),
    *("final", "bytes", "seconds", "peak_memory_mb", "round_results"),
)
_INTS = ("round", "partition", "cluster", "num_examples", "bytes_up", "bytes_down")
_TEXTS = ("task", "phase", "ranks", "precision", "status", "error")
SCHEMA = pa.schema(
    (name, pa.int64() if name in _INTS else pa.string() if name in _TEXTS else pa.float64())
    for name in COLUMNS
)


def prepare(out: Path) -> None:
    """Make sure that a new run may be written to ``out``, and create the folder.

    Raises:
        ResultError: ``out`` is a file, can't be written, or already holds a run.
    """
    if out.exists() and not out.is_dir():
        raise ResultError(f"{out}: is a file; --out takes a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        held = [name for name in (*RUN_FILES, "checkpoints") if (out / name).exists()]
    except OSError as error:
        raise ResultError(f"{out}: can't be written ({error.strerror or error})") from error
    if held not in ([], ["provenance.json"]):  # which comes before there is a run
        if _completed(out / "summary.json"):
            raise ResultError(
                f"{out}: already holds a finished run ({held[0]}): name another --out"
            )
        raise ResultError(
            f"{out}: already holds a run that did not finish ({held[0]}): go on with it by atlas "
            f"resume {out}, or name another --out"
        )


class RunWriter:
    """Writes one run directory; call `prepare` first for a new run.

    A round is on disk before the next one starts: its line in ``rounds.jsonl`` is synced, and
    ``clients.parquet`` is replaced with the rows so far.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self._rows: list[dict[str, Any]] = []

    @classmethod
    def reopen(cls, out: Path, rounds: int) -> RunWriter:
        """Go on with a run after ``rounds`` rounds; what later rounds had written is dropped.

        Raises:
            ResultError: ``out`` holds no run, or lacks one of those rounds.
        """
        _need(out / "config.toml")
        writer = cls(out)
        lines = _lines(out / "rounds.jsonl") if rounds else []
        if len(lines) < rounds:
            raise ResultError(f"{out / 'rounds.jsonl'}: holds {len(lines)} rounds, needs {rounds}")
        if rounds:
            table = _table(out / "clients.parquet")
            writer._rows = [
                row
                for row in table.to_pylist()
                if row["round"] <= rounds and row["phase"] != "final"
            ]
        atomic_write(out / "rounds.jsonl", "".join(f"{line}\n" for line in lines[:rounds]))
        _rounds(out / "rounds.jsonl")
        return writer

    def write_config(self, toml_text: str) -> None:
        """Write ``config.toml``; whoever writes it first owns the directory.

        Raises:
            ResultError: Another run wrote it in the meantime.
        """
        path = self.out / "config.toml"
        if path.exists():
            raise ResultError(f"{path}: exists; another run owns it, name another --out")
        atomic_write(path, toml_text)

    def replace_config(self, toml_text: str) -> None:
        """Write ``config.toml`` of a run that goes on: where things lie may have changed."""
        atomic_write(self.out / "config.toml", toml_text)

    def rounds_so_far(self) -> list[dict[str, Any]]:
        """Return the records of the rounds that ended."""
        path = self.out / "rounds.jsonl"
        return _rounds(path) if path.exists() else []

    def rows_so_far(self) -> list[ClientRow]:
        """Return the rows kept for ``clients.parquet``."""
        return [ClientRow.from_dict(row) for row in self._rows]

    def write_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Write ``provenance.json``."""
        atomic_write(self.out / "provenance.json", to_json(provenance, indent=2) + "\n")

    def add_rows(self, rows: Iterable[ClientRow]) -> None:
        """Keep rows for ``clients.parquet``."""
        self._rows += [row.to_dict() for row in rows]

    def append_round(self, record: RoundRecord) -> None:
        """Append one synced line to ``rounds.jsonl`` and save the rows so far."""
        append_synced(self.out / "rounds.jsonl", to_json(record.to_dict()) + "\n")
        self.save_rows()

    def save_rows(self) -> None:
        """Replace ``clients.parquet`` with the rows so far."""
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(self._rows, schema=SCHEMA), buffer)
        atomic_write(self.out / "clients.parquet", buffer.getvalue())

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Write ``clients.parquet``, ``summary.csv`` and, last of all, ``summary.json``.

        Raises:
            ValueError: The summary lacks a key, has one too many, or holds a NaN.
        """
        if set(summary) != set(SUMMARY_KEYS):
            raise ValueError(f"summary keys differ: {sorted(set(summary) ^ set(SUMMARY_KEYS))}")
        text = to_json(summary, indent=2) + "\n"
        rounds = self.out / "rounds.jsonl"
        if not rounds.exists():
            atomic_write(rounds, "")
        self.save_rows()
        row = csv_row(summary, tomllib.loads(_text(self.out / "config.toml")))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, row, lineterminator="\n")
        writer.writeheader()
        writer.writerow(row)
        atomic_write(self.out / "summary.csv", buffer.getvalue())
        atomic_write(self.out / "summary.json", text)


@dataclass(frozen=True)
class RunResult:
    """One run read back.

    Attributes:
        summary: ``summary.json``.
        rounds: ``rounds.jsonl``, one mapping a round.
        clients: ``clients.parquet``; whole numbers are nullable ``Int64``.
        config: ``config.toml`` parsed, and ``config_text`` as written.
        path: The directory.
        provenance: ``provenance.json``; this and those below are empty when the run has none.
        clusters: ``clusters.json``: how clusters were found.
        ranks: ``ranks.json``: the rank of each module of each client, and why.
    """

    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    clients: pd.DataFrame
    config: dict[str, Any]
    path: Path = Path()
    config_text: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)
    clusters: dict[str, Any] = field(default_factory=dict)
    ranks: dict[str, Any] = field(default_factory=dict)


def read_run(path: Path) -> RunResult:
    """Read a run directory that has ended (completed, stopped or failed).

    Raises:
        ResultError: Names the file that is missing, broken or not ours.
    """
    if not path.is_dir():
        raise ResultError(f"{path}: no such run directory")
    summary = _json(path / "summary.json")
    if not isinstance(summary, dict) or set(SUMMARY_KEYS) - set(summary):
        raise ResultError(f"{path / 'summary.json'}: not a run's summary")
    config_text = _text(path / "config.toml")
    try:
        config = tomllib.loads(config_text)
    except tomllib.TOMLDecodeError as error:
        raise ResultError(f"{path / 'config.toml'}: not valid TOML: {error}") from error
    rounds = _rounds(path / "rounds.jsonl")
    if len(rounds) < summary["rounds_completed"]:
        raise ResultError(
            f"{path / 'rounds.jsonl'}: holds {len(rounds)} rounds, "
            f"the summary has {summary['rounds_completed']}"
        )
    clients = _table(path / "clients.parquet").to_pandas(
        types_mapper={pa.int64(): pd.Int64Dtype()}.get
    )
    told = [read_extra(path / f"{name}.json") for name in ("provenance", "clusters", "ranks")]
    return RunResult(summary, rounds, clients, config, path, config_text, *told)


def read_extra(path: Path) -> dict[str, Any]:
    """Read a JSON object that not every run has; empty when there is no such file.

    Raises:
        ResultError: The file is broken, or no object.
    """
    found = _json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise ResultError(f"{path}: not a JSON object")
    return found


def to_json(value: Any, indent: int | None = None) -> str:
    """Return JSON text.

    Raises:
        ValueError: A number is not finite; JSON has no word for it.
    """
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent)


def _completed(summary: Path) -> bool:
    """Tell whether the file is the summary of a completed run."""
    try:
        return bool(json.loads(summary.read_text(encoding="utf-8"))["status"] == "completed")
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _need(path: Path) -> None:
    if not path.is_file():
        folder = path.parent
        below = "" if (folder / "config.toml").is_file() else runs_below(folder)
        raise ResultError(f"{path}: missing; not the directory of a run that has ended{below}")


def _text(path: Path) -> str:
    _need(path)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultError(f"{path}: can't be read ({error})") from error


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise ResultError(f"{path}: truncated or not JSON ({error})") from error


def _lines(path: Path) -> list[str]:
    """Return a file's lines; not by `splitlines`, for a name may hold what else splits them."""
    text = _text(path).removesuffix("\n")
    return text.split("\n") if text else []


def _rounds(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in _lines(path)]
    except json.JSONDecodeError as error:
        raise ResultError(f"{path}: truncated or not JSON lines ({error})") from error


def _table(path: Path) -> pa.Table:
    _need(path)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise ResultError(f"{path}: truncated or not Parquet ({reason})") from error
    if "precision" not in table.schema.names and len(table.schema) == len(COLUMNS) - 1:
        unknown = pa.nulls(len(table), pa.string())  # a run from before clients told it
        table = table.add_column(COLUMNS.index("precision"), SCHEMA.field("precision"), unknown)
    if table.schema.names != list(COLUMNS):
        raise ResultError(f"{path}: not a run's client rows (columns differ)")
    return table
