"""What the terminal shows of a suite: lines as runs end, and below them how it goes on."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from atlas_flwr.config.suite_cells import Cell
from atlas_flwr.results.console import PHASE_WORDS, LiveView
from atlas_flwr.results.series import count, show, show_seconds

WIDE, NARROW = 96, 64  # columns for a run's phase, and for its bar


@dataclass
class Going:
    """A run that goes on, as its events tell of it.

    Attributes:
        cell: Which.
        began: When, by the view's clock.
        rounds: Rounds that have ended.
        before: Those of them that had ended when it was resumed.
        accuracy: Of the last round.
        phase: What it does.
    """

    cell: Cell
    began: float
    rounds: int = 0
    before: int = 0
    accuracy: float | None = None
    phase: str = "starting"


@dataclass
class Pace:
    """How long runs take: seconds for a row that one client reads in one round.

    Attributes:
        measured: Paces of the runs that ended, by label.
    """

    measured: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def learn(self, label: str, work: float, seconds: float) -> None:
        """Take in a run that took so long."""
        self.measured[label].append(seconds / work)

    def seconds(self, left: Iterable[tuple[str, float]], jobs: int) -> float | None:
        """Return how long the rest takes, None before any run has ended.

        A label's pace is the median of its own runs; while it has none, the median over all.

        Args:
            left: ``(label, rounds × clients × rows)`` of what is still to do.
            jobs: How many runs go on at a time.
        """
        paces = [pace for found in self.measured.values() for pace in found]
        if not paces:
            return None
        overall = statistics.median(paces)
        total = 0.0
        for label, work in left:
            own = self.measured.get(label)
            total += work * (statistics.median(own) if own else overall)
        return total / jobs


def work_of(cell: Cell, rounds: int | None = None) -> float:
    """Return rounds × clients × rows of a run, or of so many of its rounds."""
    config = cell.config
    asked = config.run.rounds if rounds is None else rounds
    return float(asked * config.run.clients * config.data.samples_per_client)


class SuiteView(LiveView):
    """Shows a suite going on: a live display in a terminal, a line for each run elsewhere.

    Use it as a context manager. `event` may be called by any thread, the rest by one.

    Args:
        console: Where to print.
        cells: Every run of the suite, tuning too.
        jobs: How many go on at a time.
        clock: Seconds since some moment.
    """

    def __init__(
        self,
        console: Console,
        cells: Sequence[Cell],
        jobs: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(console)
        self._jobs, self._clock = jobs, clock
        self._left = {cell.folder: cell for cell in cells}
        self._total, self._done, self._began_count = len(cells), 0, 0
        self._failed = 0
        self._began = clock()
        self._pace = Pace()
        self._going: dict[str, Going] = {}
        # One run at a time and nothing that can be redrawn: its line begins when it does.
        self._heads = jobs == 1 and not console.is_terminal

    def begin(self, cell: Cell) -> None:
        """Tell that a run's turn has come."""
        self._began_count += 1
        self._left.pop(cell.folder, None)
        self._going[str(cell.folder)] = Going(cell, self._clock())
        if self._heads:
            head = f"[{self._began_count}/{self._total}] {cell.title} … "
            self.console.print(Text(head), end="", soft_wrap=True)

    def event(self, cell: Cell, event: Mapping[str, Any]) -> None:
        """Take in what a run tells of itself."""
        going = self._going.get(str(cell.folder))
        if going is None:
            return
        if event["event"] == "start":
            resumed = event.get("resumed", [])
            going.rounds = going.before = len(resumed)
            going.accuracy = resumed[-1] if resumed else None
        elif event["event"] == "round":
            going.rounds, going.accuracy = event["round"], event["accuracy"]
        elif event["event"] == "phase":
            going.phase = PHASE_WORDS.get(event["phase"], event["phase"])

    def end(self, cell: Cell, text: str, style: str = "", seconds: float | None = None) -> None:
        """Tell how a run ended.

        Args:
            cell: Which.
            text: The end of its line.
            style: Of the text.
            seconds: How long it took; None where it did not run now.
        """
        going = self._going.pop(str(cell.folder))
        self._done += 1
        self._failed += style == "bold red"
        if seconds is not None:
            ran = cell.config.run.rounds - going.before
            self._pace.learn(cell.label, work_of(cell, max(ran, 1)), seconds)
        head = "" if self._heads else f"[{self._done}/{self._total}] {cell.title} … "
        self.console.print(Text.assemble(head, (text, style)), soft_wrap=True)

    def say(self, text: str, style: str = "") -> None:
        """Print one line; markup in it is text, and it is never wrapped or cut."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    # -------------------------------------------------------------- live

    def eta(self) -> float | None:
        """Return the seconds that are left, None before any run has ended."""
        left = [(cell.label, work_of(cell)) for cell in list(self._left.values())]
        for going in list(self._going.values()):
            rest = going.cell.config.run.rounds - going.rounds
            left.append((going.cell.label, work_of(going.cell, rest)))
        return self._pace.seconds(left, max(1, min(self._jobs, len(left))))

    def render(self) -> RenderableType:
        """Return the live display as it is now."""
        elapsed, eta = self._clock() - self._began, self.eta()
        rest = "ETA after the first run" if eta is None else f"about {show_seconds(eta)} left"
        parts = [f"{self._done}/{count(self._total, 'run')}", f"{show_seconds(elapsed)} so far"]
        if self._failed:
            parts.append(f"{self._failed} failed")
        head = Table.grid(padding=(0, 2))
        bar = ProgressBar(self._total, self._done, width=20)
        head.add_row(bar, Text("  ·  ".join([*parts, rest])))
        return Group(head, self._runs())

    def _runs(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(overflow="fold")  # all the others are never cut
        for _ in range(4):
            grid.add_column(no_wrap=True)
        wide, narrow = self.console.width >= WIDE, self.console.width < NARROW
        for going in list(self._going.values()):
            rounds = going.cell.config.run.rounds
            accuracy = show(going.accuracy)
            grid.add_row(
                Text(going.cell.title, style="bold"),
                "" if narrow else ProgressBar(rounds, going.rounds, width=10),
                f"round {min(going.rounds + 1, rounds)}/{rounds}",
                accuracy if narrow else f"accuracy {accuracy}",
                Text(going.phase if wide else "", style="dim"),
            )
        return grid
