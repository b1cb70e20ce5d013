"""One experiment on the engine it names, watched to its end."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from atlas_flwr.apps.prepare import check_names, prepare, resolve
from atlas_flwr.apps.record import EVENTS, Watcher, close_unfinished
from atlas_flwr.apps.server import execute
from atlas_flwr.config.load import dump_config
from atlas_flwr.config.schema import Config
from atlas_flwr.engine.inline import InlineGrid
from atlas_flwr.engine.launch import run_on_ray
from atlas_flwr.errors import ConfigError, ResultError, RunFailed, UserError
from atlas_flwr.results.events import follow_events
from atlas_flwr.results.store import prepare as prepare_out


def run_experiment(config: Config, watch: Watcher) -> Path:
    """Run an experiment and return its run directory.

    Args:
        config: The experiment; ``run.out`` is set.
        watch: Called with every event while the run goes on.

    Raises:
        UserError: The input is wrong; nothing was started or overwritten.
        RunFailed: The run stopped before its end; its directory says why.
    """
    if config.run.out is None:
        raise ConfigError("run.out: is required here")
    out = Path(config.run.out)
    check_names(config)
    config = _resolved(config)
    with _made(out):
        if config.engine.kind == "inline":
            # Imported here: the ClientApp registers its handlers when it is imported.
            from atlas_flwr.apps.client import app  # noqa: PLC0415

            grid = InlineGrid(app, config.run.clients)
            execute(grid, config, "inline", sys.argv, watch)
        else:
            prepare(config)
            _on_ray(config, out, watch)
    return out


@contextmanager
def _made(out: Path) -> Iterator[None]:
    """Make and claim the run directory; input refused before a run began leaves nothing behind."""
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    prepare_out(out)
    events = out / EVENTS
    try:
        events.open("x").close()  # of two runs that start at once, one makes it
    except FileExistsError as error:
        raise ResultError(f"{out}: another run is writing there; name another --out") from error
    try:
        yield
    except UserError:
        if not events.stat().st_size:
            events.unlink()
        for folder in new:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


def _resolved(config: Config) -> Config:
    """Return the config with the strategy's options and the number of workers spelled out."""
    workers = 1 if config.engine.kind == "inline" else workers_of(config)
    engine = config.engine.model_copy(update={"workers": workers})
    return resolve(config).model_copy(update={"engine": engine})


def workers_of(config: Config) -> int:
    """Return how many clients run at a time."""
    fit = max(1, (os.cpu_count() or 1) // config.engine.threads)
    return min(config.run.clients, config.engine.workers or fit)


def gpus_per_client(config: Config) -> float:
    """Return each client's share of a GPU: an equal part where CUDA is there, unless set.

    Flower's default share is 0, which hides the GPU from every client.
    """
    share = config.engine.gpus_per_client
    if share != "auto":
        return float(share)
    if config.engine.device == "cpu" or not torch.cuda.is_available():
        return 0.0
    # Ray gives a client one whole GPU or a share of one, never parts of two.
    return 1.0 / math.ceil(workers_of(config) / torch.cuda.device_count())


def _on_ray(config: Config, out: Path, watch: Watcher) -> None:
    """Run on Flower's Ray engine, passing on the events the ServerApp writes."""
    with tempfile.TemporaryDirectory(prefix="atlas-") as folder:
        resolved = Path(folder) / "config.toml"
        resolved.write_text(dump_config(config), encoding="utf-8")
        with _closing(config, out), _following(out / EVENTS, watch):
            outcome = run_on_ray(
                resolved,
                out,
                supernodes=config.run.clients,
                workers=workers_of(config),
                threads=config.engine.threads,
                gpus_per_client=gpus_per_client(config),
            )
    if outcome.status != "completed":
        raise RunFailed(f"{outcome.details} (log: {outcome.log})")


@contextmanager
def _closing(config: Config, out: Path) -> Iterator[None]:
    """Make sure that the run directory says how the run ended, also when its server was killed."""
    began, told = time.monotonic(), "the engine ended without a summary"
    try:
        yield
    except BaseException as error:
        told = str(error) or type(error).__name__
        raise
    finally:
        close_unfinished(config, out, "ray", told.splitlines()[0], time.monotonic() - began)


@contextmanager
def _following(path: Path, watch: Watcher) -> Iterator[None]:
    """Pass on the events of another process while the block runs."""
    done = threading.Event()

    def follow() -> None:
        for event in follow_events(path, done.is_set):
            watch(event)

    thread = threading.Thread(target=follow, name="events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
