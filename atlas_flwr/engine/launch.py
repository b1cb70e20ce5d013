"""Run an experiment on Flower's own simulation engine (Ray), owned by us for that one run.

A real SuperLink is started on a private port, the run is submitted with `flwr run`, watched until
Flower says how it ended, and every process is stopped again. `flwr run --stream` is not used: it
exits 0 whether the run failed or not.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from atlas_flwr.engine.launch_area import (
    AppRefs,
    environment_for,
    federation_words,
    private_area,
    write_app,
    write_connection,
)
from atlas_flwr.engine.launch_daemon import start_superlink
from atlas_flwr.engine.launch_session import EngineOutcome, Session
from atlas_flwr.engine.launch_signals import signals_raise, signals_wait
from atlas_flwr.errors import RunFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["AppRefs", "EngineOutcome", "run_on_ray"]

_SIMULATION = "flwr-simulation"


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
    resume: str = "",
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
        resume: From where the run goes on, as the ServerApp is told.
        apps: The apps to run; atlas-flwr's own unless given.

    Raises:
        RunFailed: Flower could not be started, refused the run, died, or left a process behind.
    """
    refs = apps or AppRefs()
    with private_area() as area, signals_raise():
        env = environment_for(area, threads, refs, os.environ)
        run = Session(area, env, on_tick or (lambda: None))
        try:
            write_app(area, refs, config_file.resolve(), out.resolve(), resume)
            port = start_superlink(area, env, run.trees.append, run.tick)
            write_connection(area, port)
            words = federation_words(supernodes, workers, threads, gpus_per_client)
            run.submit("--federation-config", words)
            outcome = run.watch(out, _SIMULATION, timeout)
        except RunFailed as error:
            run.fail(out, str(error))
        finally:
            with signals_wait():
                left = run.stop()
    if left:
        raise RunFailed(f"processes of the run could not be stopped: {left}")
    return outcome
