"""Run an experiment on Flower's own simulation engine (Ray), owned by us for that one run.

A real SuperLink is started on a private port, the run is submitted with `flwr run`, watched until
Flower says how it ended, and every process is stopped again. `flwr run --stream` is not used: it
exits 0 whether the run failed or not.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from atlas_flwr.engine.launch_area import (
    CONNECTION,
    AppRefs,
    Area,
    environment_for,
    federation_words,
    private_area,
    program_folder,
    write_app,
    write_connection,
)
from atlas_flwr.engine.launch_daemon import ProcessTree, lives, start_superlink
from atlas_flwr.engine.launch_log import failure_line, keep_log
from atlas_flwr.engine.launch_signals import signals_raise, signals_wait
from atlas_flwr.errors import RunFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import psutil

TICK_SECONDS = 0.2
APPEAR_SECONDS = 120.0
CLI_SECONDS = 120.0
_SIMULATION = "flwr-simulation"
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
class _Run:
    """One run in progress: its folders, environment, processes and clock."""

    area: Area
    env: dict[str, str]
    tick: Callable[[], None]
    trees: list[ProcessTree] = field(default_factory=list)
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
        return [pid for tree in self.trees for pid in tree.stop()]


def run_on_ray(  # noqa: PLR0913 - a run's size is five numbers, and each has one home in the config
    config_file: Path,
    out: Path,
    supernodes: int,
    workers: int,
    threads: int,
    gpus_per_client: float,
    on_tick: Callable[[], None] | None = None,
    timeout: float | None = None,
    *,
    apps: AppRefs | None = None,
) -> EngineOutcome:
    """Run one experiment on Flower's Ray engine and wait for its end.

    Whatever happens (an error, Ctrl-C, SIGTERM, SIGHUP), every process started here is stopped
    before this returns or raises, and the temporary folder is removed.

    Args:
        config_file: The resolved experiment file.
        out: The run directory, which the ServerApp writes; `engine.log` is put there on failure.
        supernodes: How many clients the federation has.
        workers: How many clients may run at once.
        threads: CPU threads of each client.
        gpus_per_client: The share of a GPU that each client holds; 0 hides CUDA from clients.
        on_tick: Called a few times a second by the calling thread.
        timeout: Seconds after which the run is stopped and called failed; None for no limit.
        apps: The apps to run; atlas-flwr's own unless given.

    Raises:
        RunFailed: Flower could not be started, refused the run, died, or left a process behind.
    """
    refs = apps or AppRefs()
    with private_area() as area, signals_raise():
        env = environment_for(area, threads, refs, os.environ)
        run = _Run(area, env, on_tick or (lambda: None))
        try:
            words = federation_words(supernodes, workers, threads, gpus_per_client)
            _submit(run, refs, config_file, out, words)
            outcome = _watch(run, out, timeout)
        except RunFailed as error:
            _fail(run, out, str(error))
        finally:
            with signals_wait():
                left = run.stop()
    if left:
        raise RunFailed(f"processes of the run could not be stopped: {left}")
    return outcome


def _submit(run: _Run, apps: AppRefs, config_file: Path, out: Path, federation: str) -> None:
    """Start the SuperLink and hand it the run."""
    write_app(run.area, apps, config_file.resolve(), out.resolve())
    port = start_superlink(run.area, run.env, run.trees.append, run.tick)
    write_connection(run.area, port)
    code, printed = run.flwr(
        "run", str(run.area.app), CONNECTION, "--federation-config", federation, "--format", "json"
    )
    answer = _last_json(printed)
    if code != 0 or not answer.get("run-id"):
        reason = answer.get("error-message") or printed
        raise RunFailed(f"Flower refused the run: {' '.join(str(reason).split())}")
    run.run_id = str(answer["run-id"])


def _watch(run: _Run, out: Path, timeout: float | None) -> EngineOutcome:
    """Wait until the run has ended.

    The simulation is a process of its own, which reports its end before it ends; so Flower is
    asked (1 s of CPU) only once that process has gone.
    """
    started = time.monotonic()
    simulation: psutil.Process | None = None
    while timeout is None or time.monotonic() - started < timeout:
        if run.trees[-1].daemon.poll() is not None:
            raise RunFailed("Flower's SuperLink died during the run")
        if simulation is None:
            simulation = run.trees[-1].find(_SIMULATION)
            if simulation is None and time.monotonic() - started > APPEAR_SECONDS:
                raise RunFailed(f"the simulation did not start within {APPEAR_SECONDS:.0f} s")
        elif not lives(simulation):
            return _ended(run, out)
        run.tick()
        time.sleep(TICK_SECONDS)
    return _failed(run, out, f"stopped after the time limit of {timeout:g} s")


def _ended(run: _Run, out: Path) -> EngineOutcome:
    """Ask Flower how the run ended, once its process has gone."""
    for _ in range(3):
        code, printed = run.flwr("ls", CONNECTION, "--run-id", run.run_id, "--format", "json")
        runs = _last_json(printed).get("runs") or [{}]
        status, details = runs[0].get("status", ""), runs[0].get("status-details", "")
        if code == 0 and status == "finished:completed":
            return EngineOutcome("completed", "", None)
        if code == 0 and status in _FINISHED:
            return _failed(run, out, details or status)
        time.sleep(1.0)
    return _failed(run, out, "the simulation's process was killed (out of memory?)")


def _failed(run: _Run, out: Path, details: str) -> EngineOutcome:
    """Keep the log of a failed run and put the error it ends with into the outcome."""
    run_log = _run_log(run)
    line = failure_line(run_log)
    return EngineOutcome("failed", line or details, keep_log(run.area, out, run_log))


def _fail(run: _Run, out: Path, reason: str) -> NoReturn:
    """Raise RunFailed with the reason, the error in the log and where the log is."""
    run_log = _run_log(run) if run.trees and run.trees[-1].daemon.poll() is None else ""
    kept = keep_log(run.area, out, run_log)
    line = failure_line(kept.read_text(encoding="utf-8"))
    raise RunFailed(f"{reason}{f' ({line})' if line else ''}; see {kept}")


def _run_log(run: _Run) -> str:
    """Return what the run printed, as the SuperLink kept it; empty before there was a run."""
    if not run.run_id:
        return ""
    return run.flwr("log", run.run_id, CONNECTION, "--show")[1]


def _last_json(printed: str) -> dict[str, Any]:
    """Return the JSON object that a `flwr … --format json` printed, or an empty one."""
    start = printed.find("{")
    try:
        answer = json.loads(printed[start:]) if start >= 0 else {}
    except json.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}
