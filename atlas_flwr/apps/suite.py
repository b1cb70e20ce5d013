"""A suite of runs, one after the other: finished ones are kept, the rest is run, all is tabled."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from rich.console import Console
from rich.text import Text

from atlas_flwr.apps.resume import Resumable
from atlas_flwr.apps.run import run_experiment
from atlas_flwr.apps.suite_check import check_suite
from atlas_flwr.apps.suite_folders import (
    difference,
    finished_rows,
    in_order,
    is_finished,
    read_json,
    row_of,
    set_aside,
    status,
    stopped_run,
)
from atlas_flwr.config.load import with_out
from atlas_flwr.config.suite_cells import Cell, Suite
from atlas_flwr.errors import AtlasError, ResultError, RunFailed, RunStopped
from atlas_flwr.results.provenance import provenance
from atlas_flwr.results.series import show, show_seconds
from atlas_flwr.results.store import read_run, to_json
from atlas_flwr.results.suite_table import suite_csv, suite_table
from atlas_flwr.results.writing import atomic_write

LOG = "errors.log"
SCORE = "final.own.accuracy on data.holdout"
Score = dict[str, Any]


def run_suite(suite: Suite, out: Path, console: Console) -> None:
    """Run what is not finished, one run after the other; print a line for each and a table.

    ``results.csv`` is replaced after every run, so a suite that is stopped keeps what it has; the
    same command goes on. A run that fails is reported at the end and does not stop the others.

    Args:
        suite: The suite.
        out: Its folder; runs lie in ``<setting>/<label>/seed-<n>``.
        console: Where to print.

    Raises:
        UserError: Before anything ran: a config is wrong, or a folder holds another run.
        RunFailed: At the end: a run failed.
        RunStopped: It was stopped; the same command goes on, within a run too.
    """
    total = len(check_suite(suite, out))
    with _claimed(out):
        runner = _Runner(suite, out, console, total)
        runner.write_provenance()
        runner.save_rows()
        choices = runner.tune()
        cells = suite.cells(choices)
        for cell in cells:
            is_finished(out / cell.folder, cell.config)
        try:
            runner.run_all(cells, choices)
        finally:
            console.print(suite_table(in_order(suite, runner.rows)))
            console.print(Text(str(out / "results.csv"), style="bold"), soft_wrap=True)
        runner.report()


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Make the suite's folder and keep other suites out of it; a killed one holds nothing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ResultError(f"{out}: another suite is writing there; name another --out") from error
    except OSError as error:
        raise ResultError(f"{out}: can't be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        lock.release()


class _Runner:
    """Runs cells and keeps the suite's files in step.

    Attributes:
        rows: Every completed run's row by its folder.
        failures: A line for each run that failed now, or could not be tried.
    """

    def __init__(self, suite: Suite, out: Path, console: Console, total: int) -> None:
        self.suite, self.out, self.console = suite, out, console
        self.rows = finished_rows(suite, out)
        self.failures: list[str] = []
        self._total, self._count = total, 0

    def write_provenance(self) -> None:
        """Write ``provenance.json``: the suite, its base and this call; earlier calls are kept."""
        path = self.out / "provenance.json"
        told = read_json(path)
        earlier = told.pop("earlier", [])
        if told:
            earlier.append({k: v for k, v in told.items() if k not in ("suite", "base")})
        now = provenance(sys.argv, self.suite.seeds[0])
        del now["seed"]
        texts = {"suite": self.suite.text, "base": self.suite.base.read_text(encoding="utf-8")}
        told = {**now, "seeds": list(self.suite.seeds), **texts, "earlier": earlier}
        atomic_write(path, to_json(told, indent=2) + "\n")

    def save_rows(self) -> None:
        """Replace ``results.csv``."""
        atomic_write(self.out / "results.csv", suite_csv(in_order(self.suite, self.rows)))

    # -------------------------------------------------------------- tuning

    def tune(self) -> dict[tuple[str, str], dict[str, Any]]:
        """Try every value; return those chosen by pair and write all scores to ``tuned.json``.

        A value whose run failed has no score and is not tried again unless its folder is removed:
        a rate at which training diverges does so every time.
        """
        path = self.out / "tuned.json"
        told = read_json(path)
        pairs: dict[str, Any] = told.get("pairs", {})
        choices = {}
        for (setting, label), group in groupby(
            self.suite.tuning(), key=lambda cell: (cell.setting, cell.label)
        ):
            name, scores = f"{setting}/{label}", []
            failed = {s["path"]: s["error"] for s in pairs.get(name, {}).get("scores", ())}
            for cell in group:
                scores.append(self._score(cell, failed.get(cell.folder.as_posix())))
            chosen = choose(scores)
            run, data = cell.config.run, cell.config.data
            facts = {"seed": run.seed, "rounds": run.rounds, "holdout": data.holdout}
            pairs[name] = {"chosen": chosen, **facts, "scores": scores}
            atomic_write(path, to_json({"score": SCORE, "pairs": pairs}, indent=2) + "\n")
            if chosen is None:
                self.failures.append(f"{name}: no value of [tune] has a score")
            else:
                choices[setting, label] = chosen
        return choices

    def _score(self, cell: Cell, failed: str | None) -> Score:
        """Return a tuned value's score; of one that failed before, what it failed of."""
        folder = self.out / cell.folder
        again = failed is None or status(folder) == "completed"
        again = again or difference(folder, cell.config) is not None
        error = self._run(cell) if again else self._say_failed_before(cell, str(failed))
        accuracy = None
        if error is None:
            accuracy = read_run(folder).summary["final"]["own"]["accuracy"]
        path = cell.folder.as_posix()
        return {"values": dict(cell.values), "accuracy": accuracy, "error": error, "path": path}

    def _say_failed_before(self, cell: Cell, failed: str) -> str:
        self._begin(cell)
        self._say(f"failed before: {failed}", "yellow")
        return failed

    # -------------------------------------------------------------- runs

    def run_all(
        self, cells: Sequence[Cell], choices: Mapping[tuple[str, str], Mapping[str, Any]]
    ) -> None:
        """Run the cells whose values are known; after each, its row is on disk."""
        tuned = {(cell.setting, cell.label) for cell in self.suite.tuning()}
        for cell in cells:
            pair = (cell.setting, cell.label)
            if pair in tuned and pair not in choices:
                self._begin(cell)
                self._say("not run: its tuning has no score", "yellow")
            elif self._run(cell) is None:
                self.rows[cell.folder] = row_of(self.out, cell.folder, *pair)
                self.save_rows()

    def _run(self, cell: Cell) -> str | None:
        """Run a cell unless it is finished; return what it failed of."""
        folder = self.out / cell.folder
        finished = is_finished(folder, cell.config)
        going_on = None if finished else stopped_run(folder, cell.config)
        aside = None if finished or going_on else set_aside(folder)
        if aside is not None:
            place = folder.relative_to(self.out)
            self._say(f"{place}: did not finish; kept as {aside.name}", "yellow")
        self._begin(cell)
        began, error = time.monotonic(), None
        if not finished:
            error = self._try(cell, folder, going_on)
        if error is not None:
            self._say(f"failed: {error}", "bold red")
            self.failures.append(f"{cell.title}: {error}")
            return error
        final = read_run(folder).summary["final"]
        accuracy = show((final["own"] if cell.tuning else final)["accuracy"])
        took = "finished before" if finished else f"in {show_seconds(time.monotonic() - began)}"
        self._say(f"{accuracy} {took}")
        return None

    def _try(self, cell: Cell, folder: Path, going_on: Resumable | None) -> str | None:
        """Run a cell; return the one line of its error, whose trace goes to ``errors.log``.

        Raises:
            RunStopped: The run was stopped, and the suite with it.
        """
        try:
            run_experiment(with_out(cell.config, str(folder)), lambda event: None, going_on)
        except (KeyboardInterrupt, RunStopped) as error:
            self._say("stopped; the same command goes on from here", "yellow")
            raise RunStopped("the same atlas suite command goes on from here") from error
        except AtlasError as error:
            return " ".join(str(error).split())
        except Exception as error:  # the runs that follow are other experiments
            with (self.out / LOG).open("a", encoding="utf-8") as log:
                log.write(f"{cell.title}\n{traceback.format_exc()}\n")
            line = " ".join(str(error).split())
            return f"{type(error).__name__}: {line} (trace: {self.out / LOG})"
        return None

    def report(self) -> None:
        """Say what failed.

        Raises:
            RunFailed: Something did.
        """
        if not self.failures:
            return
        for line in self.failures:
            self._say(f"failed  {line}", "bold red")
        raise RunFailed(f"{len(self.failures)} failed; the same command runs them again")

    def _begin(self, cell: Cell) -> None:
        self._count += 1
        head = f"[{self._count}/{self._total}] {cell.title} … "
        self.console.print(Text(head), end="", soft_wrap=True)

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)


def choose(scores: Sequence[Score]) -> dict[str, Any] | None:
    """Return the values with the highest accuracy; of equals those nearest the middle of the list.

    Without any accuracy there is no choice: ``None``.
    """
    there = [(i, score) for i, score in enumerate(scores) if score["accuracy"] is not None]
    if not there:
        return None
    middle = (len(scores) - 1) / 2
    _, best = max(there, key=lambda item: (item[1]["accuracy"], -abs(item[0] - middle)))
    return dict(best["values"])
