"""Who runs a suite's cells: this process, or several children, one run each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil

from atlas_flwr.apps.record import EVENTS
from atlas_flwr.apps.resume import Resumable
from atlas_flwr.apps.run import run_experiment
from atlas_flwr.config.load import dump_config, with_out
from atlas_flwr.config.suite_cells import Cell
from atlas_flwr.engine.launch_signals import signals_wait
from atlas_flwr.engine.orphan import PARENT
from atlas_flwr.errors import AtlasError, RunStopped
from atlas_flwr.results.events import cut_events, follow_events
from atlas_flwr.results.writing import atomic_write

LOG = "errors.log"
JOBS = ".jobs"
POLL_SECONDS = 0.1
STOP_SECONDS = 60.0  # a stopped run writes its summary; Ray takes its time
Watch = Callable[[Cell, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Ended:
    """A run that is over.

    Attributes:
        cell: Which.
        error: The one line of its error; None where it completed.
        seconds: How long it took.
    """

    cell: Cell
    error: str | None
    seconds: float


class Crew(Protocol):
    """Runs cells."""

    @property
    def free(self) -> bool:
        """Whether another run may begin."""

    @property
    def busy(self) -> bool:
        """Whether a run goes on, or has ended and was not asked about."""

    def start(self, cell: Cell, going_on: Resumable | None) -> None:
        """Begin a run, or go on with it from where it stands."""

    def ended(self) -> list[Ended]:
        """Wait until a run has ended; return those that have."""

    def close(self) -> None:
        """Stop what still goes on."""


class InProcess:
    """Runs one cell at a time in this process.

    Args:
        out: The suite's folder.
        watch: Called with every event of every run.
    """

    def __init__(self, out: Path, watch: Watch) -> None:
        self._out, self._watch = out, watch
        self._ended: list[Ended] = []

    @property
    def free(self) -> bool:
        """Whether the last run's end was asked about."""
        return not self._ended

    @property
    def busy(self) -> bool:
        """Whether a run has ended that was not asked about."""
        return bool(self._ended)

    def start(self, cell: Cell, going_on: Resumable | None) -> None:
        """Run a cell to its end.

        Raises:
            KeyboardInterrupt: It was stopped, by whatever; the suite is then, too.
        """
        began = time.monotonic()
        config = with_out(cell.config, str(self._out / cell.folder))
        try:
            error = run_told(
                lambda: run_experiment(config, lambda e: self._watch(cell, e), going_on),
                cell.title,
                self._out / LOG,
            )
        except RunStopped as stopped:
            raise SystemExit(str(stopped)) from stopped
        self._ended.append(Ended(cell, error, time.monotonic() - began))

    def ended(self) -> list[Ended]:
        """Return the run that has ended."""
        found, self._ended = self._ended, []
        return found

    def close(self) -> None:
        """Do nothing: no run outlives `start`."""


def run_told(run: Callable[[], object], title: str, log: Path) -> str | None:
    """Run something; return the one line of its error, whose trace goes to a log.

    Raises:
        RunStopped: It was stopped.
    """
    try:
        run()
    except RunStopped:
        raise
    except AtlasError as error:
        return " ".join(str(error).split())
    except Exception as error:  # the runs that follow are other experiments
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{title}\n{traceback.format_exc()}\n")
        line = " ".join(str(error).split())
        return f"{type(error).__name__}: {line} (trace: {log})"
    return None


@dataclass
class _Child:
    cell: Cell
    process: subprocess.Popen[bytes]
    base: Path
    began: float = field(default_factory=time.monotonic)
    over: threading.Event = field(default_factory=threading.Event)
    follower: threading.Thread | None = None


class Children:
    """Runs several cells at a time, each in a process of its own.

    A child is handed its whole experiment as a file and ends when this process does, however that
    comes about. Each has a session of its own: Ctrl-C reaches this process alone, which then stops
    them in order.

    Args:
        out: The suite's folder.
        watch: Called with every event of every run, in threads.
        jobs: How many at a time.
    """

    def __init__(self, out: Path, watch: Watch, jobs: int) -> None:
        self._out, self._watch, self._jobs = out, watch, jobs
        self._children: list[_Child] = []
        (out / JOBS).mkdir(exist_ok=True)

    @property
    def free(self) -> bool:
        """Whether another run may begin."""
        return len(self._children) < self._jobs

    @property
    def busy(self) -> bool:
        """Whether a run goes on."""
        return bool(self._children)

    def start(self, cell: Cell, going_on: Resumable | None) -> None:
        """Begin a run, or go on with it from where it stands."""
        folder = self._out / cell.folder
        base = self._out / JOBS / re.sub(r"[^A-Za-z0-9._-]", "-", cell.folder.as_posix())
        _forget(base)
        config = dump_config(with_out(cell.config, str(folder)))
        atomic_write(base.with_name(f"{base.name}.toml"), config)
        told = {
            "config": f"{base}.toml",
            "ended": f"{base}.json",
            "title": cell.title,
            "log": str(self._out / LOG),
            "going_on": going_on is not None,
            "argv": sys.argv,
        }
        events = folder / EVENTS
        before = cut_events(events) if going_on else 0
        with signals_wait(), Path(f"{base}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "atlas_flwr.apps.suites.child", json.dumps(told)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=os.environ | {PARENT: str(os.getpid())},
                start_new_session=True,
            )
            child = _Child(cell, process, base)
            self._children.append(child)
        self._follow(child, events, before)

    def _follow(self, child: _Child, events: Path, before: int) -> None:
        def follow() -> None:
            for event in follow_events(events, child.over.is_set, interval=0.3, position=before):
                self._watch(child.cell, event)

        child.follower = threading.Thread(target=follow, name="events", daemon=True)
        child.follower.start()

    def ended(self) -> list[Ended]:
        """Wait until a run has ended; return those that have.

        Raises:
            SystemExit: Somebody stopped a child; the others are to be stopped with it.
        """
        while not (over := [c for c in self._children if c.process.poll() is not None]):
            time.sleep(POLL_SECONDS)
        found = []
        for child in over:
            seconds = time.monotonic() - child.began
            self._let_go(child)
            error, stopped = _how_it_ended(child)
            if stopped:
                raise SystemExit(str(error))
            found.append(Ended(child.cell, error, seconds))
        return found

    def _let_go(self, child: _Child) -> None:
        self._children.remove(child)
        child.over.set()
        if child.follower is not None:
            child.follower.join()

    def close(self) -> None:
        """Stop what still goes on as Ctrl-C stops a run; what does not heed that is killed."""
        with signals_wait():
            for child in self._children:
                child.process.terminate()
            end = time.monotonic() + STOP_SECONDS
            for child in list(self._children):
                try:
                    child.process.wait(max(0.0, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    _kill(child.process)
                self._let_go(child)


def _how_it_ended(child: _Child) -> tuple[str | None, bool]:
    """Return the one line of a child's error, if there is one, and whether it was stopped."""
    try:
        told = json.loads(Path(f"{child.base}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        code = child.process.returncode
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return f"its process ended {how} (log: {child.base}.log)", False
    if told["error"] is None:
        _forget(child.base)
    return told["error"], told["stopped"]


def _forget(base: Path) -> None:
    for suffix in (".toml", ".json", ".log"):
        base.with_name(f"{base.name}{suffix}").unlink(missing_ok=True)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all it started."""
    try:
        found = psutil.Process(process.pid)
        family = [found, *found.children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for each in family:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
