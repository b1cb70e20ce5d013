"""`atlas watch`: looks at a run, or at a folder of runs, until all have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from atlas_flwr.engine.lock import CLAIM, LOCK
from atlas_flwr.errors import ResultError
from atlas_flwr.results.console import round_line
from atlas_flwr.results.watch import EXITS, Seen, look, runs_in
from atlas_flwr.results.watch_view import doing, lines, panel

SUITE_LOCK = ".lock"
_LOCKS = Path("/proc/locks")
STOPPED = EXITS["stopped"]


def watch(console: Console, folder: Path, once: bool = False, interval: float = 1.0) -> int:
    """Show runs until they have ended; return the exit code that theirs would be.

    Ctrl-C ends the watching with 0, and leaves the runs alone.

    Args:
        console: Where; one that is no terminal gets plain lines.
        folder: A run directory, a mirror, or a folder of runs.
        once: Look once; what still goes on counts as 0.
        interval: Seconds between looks.

    Raises:
        ResultError: There is no run.
    """
    _look(folder)
    try:
        if once or not console.is_terminal or console.is_dumb_terminal:
            return _plain(console, folder, once, interval)
        with Live(console=console, auto_refresh=False) as live:

            def show(runs: list[Seen]) -> None:
                live.update(_view(console, folder, runs), refresh=True)

            return _until_ended(folder, interval, show)
    except KeyboardInterrupt:
        return 0


def _until_ended(
    folder: Path, interval: float, show: Callable[[list[Seen]], object], once: bool = False
) -> int:
    """Look and show until every run has ended or nobody writes; return the exit code."""
    idle = 0
    while True:
        runs = _look(folder)
        show(runs)
        going = [seen for seen in runs if seen.status is None]
        written = [writes(seen.folder) for seen in going]
        # Between two runs of a suite none is going on.
        more = not (folder / "config.toml").exists() and held(folder / SUITE_LOCK)
        # Twice: a run that ends lets go of its lock just after it has said how it ended.
        idle = idle + 1 if going and not more and written.count(False) == len(going) else 0
        if once or idle > 1 or not (going or more):
            codes = {EXITS.get(seen.status or "", 0 if once else STOPPED) for seen in runs}
            return next((code for code in (1, STOPPED) if code in codes), 0)
        time.sleep(interval)


def _look(folder: Path) -> list[Seen]:
    """Look at every run of a folder that is still there; a suite that has just begun has none."""
    found = []
    try:
        runs = runs_in(folder)
    except ResultError:
        if not held(folder / SUITE_LOCK):
            raise
        runs = []
    for run in runs:
        try:
            found.append(look(run))
        except ResultError:
            # A suite renames what it runs again.
            if run == folder or (run / "config.toml").is_file():
                raise
    return found


def writes(folder: Path) -> bool | None:
    """Tell whether a process writes a run; None where the system does not say."""
    told = [held(folder / name) for name in (CLAIM, LOCK)]
    return None if None in told else any(told)


def held(path: Path) -> bool | None:
    """Tell whether a lock file is held, without touching it; None where the system can't say."""
    try:
        inode = path.stat().st_ino
    except OSError:
        return False
    try:
        table = _LOCKS.read_text(encoding="ascii")
    except OSError:
        return None
    return any(line.split()[-3].endswith(f":{inode}") for line in table.splitlines() if line)


def _view(console: Console, folder: Path, runs: Sequence[Seen]) -> RenderableType:
    unicode = (console.encoding or "").lower().startswith("utf")
    if len(runs) == 1:
        return panel(runs[0], unicode, writes(runs[0].folder))
    return lines(runs, folder, unicode, [writes(seen.folder) for seen in runs])


def _plain(console: Console, folder: Path, once: bool, interval: float) -> int:
    """Print what is new since the last look, one line each."""
    if once:
        return _until_ended(folder, 0.0, lambda r: console.print(_view(console, folder, r)), once)
    code = _until_ended(folder, interval, _Lines(console, folder))
    for seen in _look(folder):
        if seen.status is None:
            console.print(Text(f"{seen.name}  {doing(seen, False)}"), soft_wrap=True)
    return code


class _Lines:
    """Prints rounds, notes and ends that have not been printed."""

    def __init__(self, console: Console, root: Path) -> None:
        self._console, self._root = console, root
        self._rounds: dict[Path, int] = {}
        self._said: set[tuple[Path, str]] = set()

    def __call__(self, runs: Sequence[Seen]) -> None:
        for seen in runs:
            name = seen.name if len(runs) == 1 else str(seen.folder.relative_to(self._root))
            told = self._rounds.get(seen.folder, 0)
            # Fewer than before: it was gone on with from an earlier round.
            new = seen.rounds[min(told, len(seen.rounds)) :]
            said = [round_line(record, seen.planned) for record in new]
            self._rounds[seen.folder] = len(seen.rounds)
            said += [f"note  {text}" for text in self._new(seen, seen.notes)]
            if seen.status is not None:
                said += self._new(seen, [doing(seen).plain])
            for line in said:
                self._console.print(Text(f"{name}  {line}"), soft_wrap=True)

    def _new(self, seen: Seen, texts: Sequence[str]) -> list[str]:
        new = [text for text in texts if (seen.folder, text) not in self._said]
        self._said |= {(seen.folder, text) for text in new}
        return new
