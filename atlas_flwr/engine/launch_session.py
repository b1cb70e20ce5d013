"""One run of Flower that we own: its `flwr` commands, how it is handed over, watched and ended."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from atlas_flwr.engine.launch_area import CONNECTION, program_folder
from atlas_flwr.engine.launch_daemon import ProcessTree, lives
from atlas_flwr.engine.launch_log import failure_line, keep_log
from atlas_flwr.errors import RunFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import psutil

    from atlas_flwr.engine.launch_area import Area

TICK_SECONDS = 0.2
APPEAR_SECONDS = 120.0
CLI_SECONDS = 120.0
_FINISHED = {"finished:completed", "finished:failed", "finished:stopped"}


@dataclass(frozen=True)
class EngineOutcome:
    """How a run ended, by Flower's word.

    Attributes:
        status: "completed", or "failed" when the ServerApp raised, was stopped or was killed.
        details: Empty when completed, else one line: the error's name and message.
        log: The kept log of a failed run; None when completed.
    """

    status: Literal["completed", "failed"]
    details: str
    log: Path | None


@dataclass
class Session:
    """One run in progress: its folders, environment, processes and clock.

    Attributes:
        area: The run's folders.
        env: The environment of the `flwr` commands and of the SuperLink.
        tick: Called a few times a second while waiting.
        trees: The SuperLinks started; earlier ones had found their port taken.
        others: What was started beside them.
        run_id: Flower's number of the run, once it was handed over.
    """

    area: Area
    env: dict[str, str]
    tick: Callable[[], None]
    trees: list[ProcessTree] = field(default_factory=list)
    others: list[ProcessTree] = field(default_factory=list)
    run_id: str = ""

    def flwr(self, *words: str) -> tuple[int, str]:
        """Run the `flwr` program, ticking; return its exit code and all it printed."""
        printed = self.area.root / "flwr.out"
        command = [str(program_folder() / "flwr"), *words]
        with printed.open("wb") as file:
            child = subprocess.Popen(
                command,
                env=self.env,
                cwd=self.area.cwd,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        deadline = time.monotonic() + CLI_SECONDS
        try:
            while child.poll() is None and time.monotonic() < deadline:
                self.tick()
                time.sleep(TICK_SECONDS / 4)
        finally:
            child.kill()  # does nothing to a child that has ended
            child.wait()
        return child.returncode, printed.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> list[int]:
        """Stop every process of the run and return the pids that would not go."""
        return [pid for tree in (*self.others, *self.trees) for pid in tree.stop()]

    def submit(self, *words: str) -> None:
        """Hand the area's app to the SuperLink.

        Args:
            words: More words for `flwr run`.

        Raises:
            RunFailed: Flower refused the run.
        """
        app = str(self.area.app)
        code, printed = self.flwr("run", app, CONNECTION, *words, "--format", "json")
        answer = last_json(printed)
        if code != 0 or not answer.get("run-id"):
            reason = answer.get("error-message") or printed
            raise RunFailed(f"Flower refused the run: {' '.join(str(reason).split())}")
        self.run_id = str(answer["run-id"])

    def watch(self, out: Path, program: str, timeout: float | None) -> EngineOutcome:
        """Wait until the run has ended.

        The run is a process of its own, which reports its end before it ends; so Flower is asked
        (1 s of CPU) only once that process has gone.

        Args:
            out: The run directory.
            program: The run's process: the simulation, or the ServerApp.
            timeout: Seconds after which the run is called failed; None for no limit.

        Raises:
            RunFailed: The SuperLink died, or the run's process never came.
        """
        started = time.monotonic()
        process: psutil.Process | None = None
        link = self.superlink
        while timeout is None or time.monotonic() - started < timeout:
            if link.daemon.poll() is not None:
                raise RunFailed("Flower's SuperLink died during the run")
            if process is None:
                process = link.find(program)
                if process is None and time.monotonic() - started > APPEAR_SECONDS:
                    raise RunFailed(f"{program} did not start within {APPEAR_SECONDS:.0f} s")
            elif not lives(process):
                return self._ended(out, program)
            self.tick()
            time.sleep(TICK_SECONDS)
        return self._failed(out, f"stopped after the time limit of {timeout:g} s")

    @property
    def superlink(self) -> ProcessTree:
        """The SuperLink that serves the run."""
        return self.trees[-1]

    def _ended(self, out: Path, program: str) -> EngineOutcome:
        """Ask Flower how the run ended, once its process has gone."""
        for _ in range(3):
            code, printed = self.flwr("ls", CONNECTION, "--run-id", self.run_id, "--format", "json")
            runs = last_json(printed).get("runs") or [{}]
            status, details = runs[0].get("status", ""), runs[0].get("status-details", "")
            if code == 0 and status == "finished:completed":
                return EngineOutcome("completed", "", None)
            if code == 0 and status in _FINISHED:
                return self._failed(out, details or status)
            time.sleep(1.0)
        return self._failed(out, f"the process {program} was killed (out of memory?)")

    def _failed(self, out: Path, details: str) -> EngineOutcome:
        """Keep the log of a failed run and put the error it ends with into the outcome."""
        run_log = self._run_log()
        line = failure_line(run_log)
        return EngineOutcome("failed", line or details, keep_log(self.area, out, run_log))

    def fail(self, out: Path, reason: str) -> NoReturn:
        """Raise RunFailed with the reason, the error in the log and where the log is."""
        alive = bool(self.trees) and self.superlink.daemon.poll() is None
        kept = keep_log(self.area, out, self._run_log() if alive else "")
        line = failure_line(kept.read_text(encoding="utf-8"))
        raise RunFailed(f"{reason}{f' ({line})' if line else ''}; see {kept}")

    def _run_log(self) -> str:
        """Return what the run printed, as the SuperLink kept it; empty before there was a run."""
        if not self.run_id:
            return ""
        return self.flwr("log", self.run_id, CONNECTION, "--show")[1]


def last_json(printed: str) -> dict[str, Any]:
    """Return the JSON object that a `flwr … --format json` printed, or an empty one."""
    start = printed.find("{")
    try:
        answer = json.loads(printed[start:]) if start >= 0 else {}
    except json.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}
