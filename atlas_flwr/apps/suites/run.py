"""A suite of runs: finished ones are kept, the rest is run, one or several at a time."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.text import Text

from atlas_flwr.apps.suites.check import check_suite
from atlas_flwr.apps.suites.crew import Children, Crew, Ended, InProcess
from atlas_flwr.apps.suites.files import Score, SuiteFiles, at_the_end, choose, claimed
from atlas_flwr.apps.suites.folders import (
    difference,
    in_order,
    is_finished,
    set_aside,
    status,
    stopped_run,
)
from atlas_flwr.apps.suites.view import SuiteView
from atlas_flwr.config.suite import Pair
from atlas_flwr.config.suite_cells import Cell, Suite
from atlas_flwr.engine.launch_signals import signals_raise
from atlas_flwr.errors import RunFailed, RunStopped
from atlas_flwr.results.series import show, show_seconds
from atlas_flwr.results.suites.table import suite_table

__all__ = ["choose", "run_suite"]


def run_suite(suite: Suite, out: Path, console: Console, jobs: int = 1) -> None:
    """Run what is not finished; show how it goes on, and a table at the end.

    ``results.csv`` is replaced after every run, so a suite that is stopped keeps what it has; the
    same command goes on. A run that fails is reported at the end and does not stop the others.

    Args:
        suite: The suite.
        out: Its folder; runs lie in ``<setting>/<label>/seed-<n>``.
        console: Where to print.
        jobs: How many runs go on at a time. One runs in this process, more in one each; their
            rows and their bits are the same.

    Raises:
        UserError: Before anything ran: a config is wrong, or a folder holds another run.
        RunFailed: At the end: a run failed.
        RunStopped: It was stopped; the same command goes on, within a run too.
    """
    cells = check_suite(suite, out)
    with claimed(out), signals_raise():
        files = SuiteFiles(suite, out)
        files.write_provenance()
        files.save_rows()
        files.save_choices()
        view = SuiteView(console, cells, jobs)
        crew: Crew = InProcess(out, view.event) if jobs == 1 else Children(out, view.event, jobs)
        runner = _Runner(files, view, crew)
        try:
            with view, closing(crew):
                runner.run()
        except (KeyboardInterrupt, SystemExit) as error:
            told = "stopped; the same command goes on from here"
            console.print(Text(told, style="yellow"), soft_wrap=True)
            raise RunStopped("the same atlas suite command goes on from here") from error
        finally:
            console.print(suite_table(in_order(suite, files.rows)))
            console.print(Text(str(out / "results.csv"), style="bold"), soft_wrap=True)
        for line in _next_commands(out) if files.rows else ():
            console.print(Text(line), soft_wrap=True)
        runner.report()


def _next_commands(out: Path) -> list[str]:
    """Return the commands that make tables and pictures of a suite's folder."""
    folder, plots = shlex.quote(str(out)), shlex.quote(str(out / "plots"))
    return [f"table:  atlas table {folder}", f"plots:  atlas plot {folder} --out {plots}"]


class _Runner:
    """Gives cells to a crew seed by seed, tuning before the runs that need it.

    Attributes:
        failures: A line for each run that failed now, or could not be tried.
    """

    def __init__(self, files: SuiteFiles, view: SuiteView, crew: Crew) -> None:
        self.files, self.view, self.crew = files, view, crew
        self.failures: list[str] = []
        self._failed_tuning: list[Cell] = []
        self._suite, self._out = files.suite, files.out
        self._tuning = self._suite.tuning()
        # Seed by seed: a suite that is stopped half-way compares all labels on the seeds it has.
        seeds = self._suite.seeds
        self._runs = sorted(self._suite.cells(), key=lambda c: seeds.index(c.config.run.seed))
        self._groups: dict[Pair, list[Cell]] = {}
        for cell in self._tuning:
            self._groups.setdefault(cell.tuned_as, []).append(cell)
        self._scores: dict[Path, Score] = {}
        # Until a pair's tuning has ended its runs wait; those of the others do not.
        self._waiting = set(self._groups)

    def run(self) -> None:
        """Run everything to its end.

        Raises:
            ResultError: A folder holds a finished run with other tuned values.
        """
        for run in self._runs:
            if run.tuned_as not in self._waiting:
                is_finished(self._out / run.folder, run.config)
        while True:
            while self.crew.free and (cell := self._next()) is not None:
                self._begin(cell)
            if not self.crew.busy:
                return
            for ended in self.crew.ended():
                self._end(ended)

    def report(self) -> None:
        """Say what failed.

        Raises:
            RunFailed: Something did.
        """
        if not self.failures:
            return
        for line in self.failures:
            self.view.say(f"failed  {line}", "bold red")
        again = "the same command runs them again"
        # What was refused before it began left no folder, and is tried again.
        if any(status(self._out / cell.folder) == "failed" for cell in self._failed_tuning):
            again += ", but not the tuned values"
        raise RunFailed(f"{len(self.failures)} failed; {again}")

    def _next(self) -> Cell | None:
        """Take the first cell whose values are known; while there is none, None."""
        if self._tuning:
            return self._tuning.pop(0)
        ready = (i for i, cell in enumerate(self._runs) if cell.tuned_as not in self._waiting)
        index = next(ready, None)
        return None if index is None else self._runs.pop(index)

    # -------------------------------------------------------------- one run

    def _begin(self, cell: Cell) -> None:
        """Give a cell to the crew unless it is finished, or can't be run."""
        folder = self._out / cell.folder
        if (
            not cell.tuning
            and cell.tuned_as in self._groups
            and cell.tuned_as not in self.files.choices
        ):
            self.view.begin(cell)
            self.view.end(cell, "not run: its tuning has no score", "yellow")
            return
        failed = self._failed_before(cell)
        if failed is not None:
            self.view.begin(cell)
            self.view.end(cell, f"failed before: {failed}", "yellow")
            self._scored(cell, self.files.score(cell, failed))
            return
        if is_finished(folder, cell.config):
            self.view.begin(cell)
            self._done(cell, "finished before")
            return
        going_on = stopped_run(folder, cell.config)
        aside = None if going_on else set_aside(folder)
        if aside is not None:
            place = folder.relative_to(self._out)
            self.view.say(f"{place}: did not finish; kept as {aside.name}", "yellow")
        self.view.begin(cell)
        self.crew.start(cell, going_on)

    def _failed_before(self, cell: Cell) -> str | None:
        """Return what a tuned value failed of in an earlier call; it would do so again."""
        failed = self.files.failed_before(cell) if cell.tuning else None
        folder = self._out / cell.folder
        if status(folder) == "completed" or difference(folder, cell.config) is not None:
            return None
        return failed

    def _end(self, ended: Ended) -> None:
        """Take in how a run ended: its line, its row, its score."""
        if ended.error is None:
            self._done(ended.cell, f"in {show_seconds(ended.seconds)}", ended.seconds)
            return
        self.view.end(ended.cell, f"failed: {ended.error}", "bold red")
        self.failures.append(f"{ended.cell.title}: {ended.error}")
        if ended.cell.tuning:
            self._failed_tuning.append(ended.cell)
            self._scored(ended.cell, self.files.score(ended.cell, ended.error))

    def _done(self, cell: Cell, took: str, seconds: float | None = None) -> None:
        found = self.files.score(cell, None) if cell.tuning else self.files.add_row(cell)
        self.view.end(cell, f"{show(found['accuracy'])} {took}", seconds=seconds)
        if cell.tuning:
            self._scored(cell, found)

    # -------------------------------------------------------------- tuning

    def _scored(self, cell: Cell, score: Score) -> None:
        """Keep a score; with the pair's last one choose, and lay out its runs."""
        pair = cell.tuned_as
        self._scores[cell.folder] = score
        folders = [each.folder for each in self._groups[pair]]
        if not all(folder in self._scores for folder in folders):
            return
        self._waiting.remove(pair)
        scores = [self._scores[folder] for folder in folders]
        if not self.files.choose(cell, scores):
            self.failures.append(f"{'/'.join(pair)}: no value of [tune] has a score")
            return
        for key in at_the_end(self.files.choices[pair], scores):
            value = self.files.choices[pair][key]
            self.view.say(
                f"{'/'.join(pair)}: {key} = {value:g} is an end of its grid in [tune]; what lies "
                "beyond may be better",
                "yellow",
            )
        chosen = {c.folder: c for c in self._suite.cells(self.files.choices, pair)}
        for place in chosen.values():
            is_finished(self._out / place.folder, place.config)
        self._runs = [chosen.get(c.folder, c) for c in self._runs]
