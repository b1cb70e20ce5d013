"""One experiment on the engine it names, watched to its end."""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from atlas_flwr.apps.autopilot import AUTOPILOT, Shares, shares, workers_of
from atlas_flwr.apps.keeping import check_mirror
from atlas_flwr.apps.prepare import check_names, prepare, resolve
from atlas_flwr.apps.record import EVENTS, Watcher, close_unfinished
from atlas_flwr.apps.resume import AGAIN, DEPLOYED, Resumable, status_of
from atlas_flwr.apps.server import disk_errors, execute
from atlas_flwr.config.load import dump_config
from atlas_flwr.config.schema import Config
from atlas_flwr.engine.inline import InlineGrid
from atlas_flwr.engine.launch import EngineOutcome, run_on_ray
from atlas_flwr.engine.launch_signals import signals_raise, who_stopped
from atlas_flwr.engine.lock import CLAIM, LOCK, held
from atlas_flwr.errors import ConfigError, RunFailed, RunStopped, UserError
from atlas_flwr.results.events import append_event, cut_events, follow_events
from atlas_flwr.results.record import Status
from atlas_flwr.results.store import prepare as prepare_out

Launcher = Callable[[Config, Path, str], EngineOutcome]
"""Runs a resolved experiment file from where it is told on, over processes of its own."""


def run_experiment(
    config: Config,
    watch: Watcher,
    going_on: Resumable | None = None,
    deployed: Launcher | None = None,
) -> Path:
    """Run an experiment and return its run directory.

    Args:
        config: The experiment; ``run.out`` is set.
        watch: Called with every event while the run goes on.
        going_on: The run to go on with; None begins one.
        deployed: Runs it on a deployment instead of the engine it names.

    Raises:
        UserError: The input is wrong; nothing was started or overwritten.
        RunFailed: The run stopped before its end; its directory says why.
        RunStopped: The run was stopped, and can be resumed.
    """
    if config.run.out is None:
        raise ConfigError("run.out: is required here")
    out = Path(config.run.out)
    check_names(config)
    config = _resolved(config)
    how = AGAIN if deployed else f"atlas resume {out}"
    made = _claimed(out) if going_on else _made(out)
    with _told_how_to_go_on(out, how), signals_raise(), made:
        check_mirror(config, out, fresh=going_on is None)
        if deployed is not None:
            _on_flower(config, watch, going_on, deployed, DEPLOYED)
        elif config.engine.kind == "inline":
            # Imported here: the ClientApp registers its handlers when it is imported.
            from atlas_flwr.apps.client import app  # noqa: PLC0415

            grid = InlineGrid(app, config.run.clients)
            execute(grid, config, "inline", sys.argv, watch, going_on)
        else:
            prepare(config)
            chosen = shares(config, out)
            if chosen.micro_batch is not None:  # the clients read it in the config
                engine = config.engine.model_copy(update={"micro_batch": chosen.micro_batch})
                config = config.model_copy(update={"engine": engine})
            _on_flower(config, watch, going_on, partial(_on_ray, chosen), "ray")
    return out


@contextmanager
def _told_how_to_go_on(out: Path, how: str) -> Iterator[None]:
    """Say how to go on with a run that is stopped, whoever stopped it."""
    try:
        yield
    except (RunStopped, KeyboardInterrupt, SystemExit) as error:
        if not (out / "config.toml").exists():
            raise RunStopped(f"{who_stopped(error)}, before the run had begun") from error
        raise RunStopped(f"{who_stopped(error)}; go on with: {how}") from error


@contextmanager
def _claimed(out: Path) -> Iterator[None]:
    """Be the only command that runs in a directory.

    Raises:
        ResultError: Another one does.
    """
    taken = f"{out}: another run is writing there; name another --out"
    with held(out / CLAIM, 0, taken):
        yield


@contextmanager
def _made(out: Path) -> Iterator[None]:
    """Make and claim the run directory; input refused before a run began leaves nothing behind."""
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    prepare_out(out)
    try:
        with _claimed(out):
            prepare_out(out)  # of two that begin at once, the second finds the first one's run
            (out / EVENTS).write_bytes(b"")
            yield
    except UserError:
        if not (out / "config.toml").exists():
            for name in (EVENTS, CLAIM, LOCK, AUTOPILOT):
                (out / name).unlink(missing_ok=True)
        for folder in new:
            if any(folder.iterdir()):
                break
            folder.rmdir()
        raise


def _resolved(config: Config) -> Config:
    """Return the config with options, number of workers and the mirror's place spelled out.

    A mirror starts from the current folder, as ``run.out`` does: Flower's programs run elsewhere.
    """
    workers = 1 if config.engine.kind == "inline" else workers_of(config)
    engine = config.engine.model_copy(update={"workers": workers})
    mirror = config.run.mirror
    if mirror is not None:
        mirror = str(Path(mirror).expanduser().absolute())
    run = config.run.model_copy(update={"mirror": mirror})
    return resolve(config).model_copy(update={"engine": engine, "run": run})


def _on_flower(
    config: Config, watch: Watcher, going_on: Resumable | None, launch: Launcher, engine: str
) -> None:
    """Run on an engine of Flower's, passing on the events the ServerApp writes."""
    out = Path(str(config.run.out))
    with tempfile.TemporaryDirectory(prefix="atlas-") as folder:
        resolved = Path(folder) / "config.toml"
        resolved.write_text(dump_config(config), encoding="utf-8")
        before = _summary(out)
        again = AGAIN if engine == DEPLOYED else None
        with (
            disk_errors(out, again),
            _closing(config, out, engine),
            _following(out / EVENTS, watch),
        ):
            outcome = launch(config, resolved, _resume_word(going_on))
    if outcome.status != "completed":
        # One that is as it was tells of an earlier end: the server didn't get that far.
        if _summary(out) != before and status_of(out) == "stopped":
            raise RunStopped(outcome.details.removeprefix("RunStopped: "))
        raise RunFailed(f"{outcome.details} (log: {outcome.log})")


def _summary(out: Path) -> bytes | None:
    path = out / "summary.json"
    return path.read_bytes() if path.exists() else None


def _on_ray(chosen: Shares, config: Config, resolved: Path, resume: str) -> EngineOutcome:
    out = Path(str(config.run.out))
    for line in chosen.told:
        append_event(out / EVENTS, {"event": "note", "partition": None, "text": line})
    return run_on_ray(
        resolved,
        out,
        supernodes=config.run.clients,
        workers=chosen.workers,
        threads=config.engine.threads,
        gpus_per_client=chosen.fraction,
        resume=resume,
    )


def _resume_word(going_on: Resumable | None) -> str:
    """Return what the ServerApp is told of where the run goes on from."""
    if going_on is None:
        return ""
    return "auto" if going_on.commit is None else str(going_on.commit.round)


@contextmanager
def _closing(config: Config, out: Path, engine: str) -> Iterator[None]:
    """Make sure that the run directory says how the run ended, also when its server was killed."""
    began, told = time.monotonic(), "the engine ended without a summary"
    status: Status = "failed"
    try:
        yield
    except BaseException as error:
        told = who_stopped(error)
        if isinstance(error, KeyboardInterrupt | SystemExit):
            status = "stopped"
        raise
    finally:
        seconds = time.monotonic() - began
        close_unfinished(config, out, engine, told.splitlines()[0], seconds, status)


@contextmanager
def _following(path: Path, watch: Watcher) -> Iterator[None]:
    """Pass on the events of another process while the block runs, but for those of before."""
    done, before = threading.Event(), cut_events(path)

    def follow() -> None:
        for event in follow_events(path, done.is_set, position=before):
            watch(event)

    thread = threading.Thread(target=follow, name="events", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
