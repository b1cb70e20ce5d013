"""Suites read back: the rows of their ``results.csv``, and the run directories where there are."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from atlas_flwr.errors import ResultError, did_you_mean
from atlas_flwr.results.store import RunResult, read_run

NEEDED = ("setting", "label", "seed")
_TEXTS = (*NEEDED, "strategy", "ranks", "precision", "status", "commit", "version", "path")
# What an older results.csv does not have, from the run's summary.
_FROM_SUMMARY: Mapping[str, Callable[[Mapping[str, Any]], float | None]] = {
    "loss": lambda s: s["final"]["loss"],
    "own_loss": lambda s: s["final"]["own"]["loss"],
    "worst_own_accuracy": lambda s: s["final"]["own"]["worst_client_accuracy"],
    "peak_memory_mb": lambda s: s["peak_memory_mb"],
}
_LESS_IS_BETTER = ("bytes", "loss", "own_loss", "seconds", "peak_memory")
_ERRORS = ("aggregation_error", "truncation_error", "compression_error")
MB = 1e6


@dataclass(frozen=True)
class SuiteRun:
    """A completed run of a suite.

    Attributes:
        setting: The suite's setting; ``label`` its entry's.
        seed: The run's seed.
        values: The row's other fields, as written.
        folder: The run directory; None where it is not there.
    """

    setting: str
    label: str
    seed: int
    values: Mapping[str, str]
    folder: Path | None

    @cached_property
    def result(self) -> RunResult | None:
        """The run read back; None without its directory.

        Raises:
            ResultError: A file of it is broken.
        """
        return None if self.folder is None else read_run(self.folder)

    def value(self, metric: str) -> float | None:
        """Return a number of the run; None where it has none.

        ``bytes`` is up and down together; ``loss`` and others that an older ``results.csv`` has
        not are read from the run directory.

        Raises:
            ResultError: The field is no number.
        """
        if metric == "bytes":
            parts = [self.value("bytes_up"), self.value("bytes_down")]
            return sum(p for p in parts if p is not None) if None not in parts else None
        text = self.values.get(metric)
        if text is None and metric in _FROM_SUMMARY and self.result is not None:
            return _FROM_SUMMARY[metric](self.result.summary)
        if not text:
            return None
        try:
            number = float(text)
        except ValueError as error:
            where = f"{self.setting}/{self.label} seed {self.seed}"
            raise ResultError(f"{where}: {metric}: '{text}' is no number") from error
        return number if math.isfinite(number) else None


def read_suites(paths: Sequence[Path]) -> list[SuiteRun]:
    """Return the completed runs of suites, in the suites' order.

    Args:
        paths: Suite folders, or ``results.csv`` files without run directories.

    Raises:
        ResultError: A path holds no suite, a row is broken, or two suites have the same run.
    """
    runs: dict[tuple[str, str, int], SuiteRun] = {}
    homes: dict[tuple[str, str, int], Path] = {}
    for path in paths:
        file = _csv_of(path)
        for run in _read(file):
            key = (run.setting, run.label, run.seed)
            if key in runs:
                name = f"{run.setting}/{run.label} seed {run.seed}"
                if homes[key] == file:
                    raise ResultError(
                        f"{file}: {name} is there twice; leave one line, and name a folder once"
                    )
                raise ResultError(f"{file}: {name} is in {homes[key]} too; give one of them")
            runs[key], homes[key] = run, file
    if not runs:
        raise ResultError(f"{', '.join(map(str, paths))}: no finished run; run atlas suite first")
    return list(runs.values())


def _csv_of(path: Path) -> Path:
    file = path / "results.csv" if path.is_dir() else path
    if not file.is_file():
        raise ResultError(
            f"{path}: holds no suite (no results.csv); give the folder that atlas suite wrote"
        )
    return file


def _read(file: Path) -> Iterable[SuiteRun]:
    try:
        # A spreadsheet puts a mark before the first name.
        with file.open(encoding="utf-8-sig", newline="") as opened:
            reader = csv.DictReader(opened, strict=True)
            rows, columns = list(reader), reader.fieldnames or ()
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultError(f"{file}: can't be read ({error})") from error
    missing = [name for name in NEEDED if name not in columns]
    if missing:
        raise ResultError(f"{file}: is no suite's results.csv (no column '{missing[0]}')")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values() or not row["seed"].isdecimal():
            raise ResultError(f"{file}: line {number} is no suite's row")
        if row.get("status", "completed") != "completed":
            continue
        folder = file.parent / row["path"] if row.get("path") else None
        there = folder if folder is not None and (folder / "summary.json").is_file() else None
        yield SuiteRun(row["setting"], row["label"], int(row["seed"]), row, there)


def metrics_of(runs: Sequence[SuiteRun]) -> list[str]:
    """Return the metrics that a table can be made of, in the order of the columns."""
    columns = dict.fromkeys(key for run in runs for key in run.values if key not in _TEXTS)
    extra = [*_FROM_SUMMARY] if any(run.folder for run in runs) else []
    return list(dict.fromkeys([*columns, "bytes", *extra]))


def check_metric(runs: Sequence[SuiteRun], metric: str) -> None:
    """Refuse a metric that no run has.

    Raises:
        ResultError: It is unknown, or every run lacks it.
    """
    known = metrics_of(runs)
    if metric not in known:
        near = did_you_mean(metric, known)
        raise ResultError(f"--metric: unknown metric '{metric}'{near}; known: {', '.join(known)}")
    if all(run.value(metric) is None for run in runs):
        raise ResultError(f"--metric: no run has a number for '{metric}'")


def chosen(
    runs: Sequence[SuiteRun], settings: Sequence[str] = (), only: Sequence[str] = ()
) -> list[SuiteRun]:
    """Return the runs of some settings and labels; without a name all of them.

    Raises:
        ResultError: A name is unknown.
    """
    for option, names, known in (
        ("--setting", settings, [run.setting for run in runs]),
        ("--only", only, [run.label for run in runs]),
    ):
        for name in names:
            check_name(option, name, known)
    return [
        run
        for run in runs
        if (not settings or run.setting in settings) and (not only or run.label in only)
    ]


def check_name(option: str, name: str, known: Iterable[str]) -> None:
    """Refuse a name that is not there.

    Raises:
        ResultError: Says which are.
    """
    names = list(dict.fromkeys(known))
    if name not in names:
        near = did_you_mean(name, names)
        raise ResultError(f"{option}: unknown name '{name}'{near}; known: {', '.join(names)}")


def less_is_better(metric: str) -> bool:
    """Whether a smaller number of the metric is the better one.

    >>> less_is_better("bytes_up"), less_is_better("accuracy"), less_is_better("accuracy_no_error")
    (True, False, False)
    """
    return metric.startswith(_LESS_IS_BETTER) or metric in _ERRORS


def unit_of(metric: str) -> tuple[float, str, int]:
    """Return what a metric is divided by to be shown, its unit, and the decimals shown.

    >>> unit_of("bytes_up"), unit_of("accuracy")
    ((1000000.0, 'MB', 2), (1.0, '', 4))
    """
    if metric.startswith("bytes"):
        return MB, "MB", 2
    if metric == "peak_memory_mb":
        return 1.0, "MB", 0
    if metric == "seconds":
        return 1.0, "s", 1
    return 1.0, "", 4


def words(metric: str) -> str:
    """Return a metric's name as people read it, with its unit.

    >>> words("worst_client_accuracy"), words("bytes_up")
    ('worst client accuracy', 'bytes up (MB)')
    """
    unit = unit_of(metric)[1]
    name = metric.removesuffix("_mb").replace("_", " ")
    return f"{name} ({unit})" if unit else name


def heading(metric: str) -> str:
    """Return a metric's words as they begin a line; its unit stays as it is.

    >>> heading("bytes_up")
    'Bytes up (MB)'
    """
    text = words(metric)
    return text[:1].upper() + text[1:]
