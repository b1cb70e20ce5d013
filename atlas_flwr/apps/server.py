"""The ServerApp: one experiment from its config to its run directory, over any Flower grid."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid
from safetensors import SafetensorError

from atlas_flwr.apps import guard  # noqa: F401 - checks, before the next lines import
from atlas_flwr.apps.export import export_models
from atlas_flwr.apps.facts import facts_of
from atlas_flwr.apps.prepare import prepare, resolve
from atlas_flwr.apps.record import Recorder, Watcher
from atlas_flwr.apps.resume import (
    AGAIN,
    DEPLOYED,
    Resumable,
    check_engine,
    check_same,
    find_run,
    status_of,
    stored_config,
)
from atlas_flwr.config.load import load_config, with_out
from atlas_flwr.config.schema import Config
from atlas_flwr.engine.files import passed
from atlas_flwr.engine.launch_signals import who_stopped
from atlas_flwr.engine.lock import only_writer
from atlas_flwr.engine.orphan import watch_parent
from atlas_flwr.errors import ConfigError, RunFailed, RunStopped
from atlas_flwr.results.record import Bytes
from atlas_flwr.results.report import publish
from strategies.rounds.federation import HELLO_SECONDS, Federation
from strategies.rounds.nodes import holdings
from strategies.rounds.rules import Limits

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run-config names: ``config``, ``out``, ``overrides``."""
    watch_parent()
    told = context.run_config
    if not told.get("config"):
        raise ConfigError(
            "config: name the experiment file, e.g. --run-config \"config='/a.toml'\""
        )
    overrides = [item for item in str(told.get("overrides", "")).split(";") if item.strip()]
    config = load_config(Path(str(told["config"])), overrides)
    if not (told.get("out") or config.run.out):
        raise ConfigError("out: name the run directory, e.g. --run-config \"out='/abs/runs/a'\"")
    config = with_out(config, str(told["out"]) if told.get("out") else None)
    # Whatever the file says, these clients run where Flower runs them.
    engine = config.engine.model_copy(update={"kind": "ray"})
    config = resolve(config).model_copy(update={"engine": engine})
    if config.run.mirror is not None and not Path(config.run.mirror).expanduser().is_absolute():
        raise ConfigError(f"run.mirror: must be an absolute path here, got '{config.run.mirror}'")
    kind = "ray" if isinstance(grid, InMemoryGrid) else DEPLOYED
    if _is_finished(config, told):
        print(f"{config.run.out} is finished: nothing to go on with")  # for `flwr log`
        return
    execute(grid, config, engine=kind, argv=sys.argv, going_on=_going_on(config, told, kind))


def _is_finished(config: Config, told: Mapping[str, Any]) -> bool:
    """Tell whether ``resume='auto'`` found that the run has completed."""
    out = Path(str(config.run.out))
    if told.get("resume") != "auto" or not (out / "config.toml").exists():
        return False
    if status_of(out) != "completed":
        return False
    check_same(config, stored_config(out))
    return True


def _going_on(config: Config, told: Mapping[str, Any], engine: str) -> Resumable | None:
    """Return the run to go on with: ``resume`` is empty, "auto", or the round of a commit."""
    asked, out = str(told.get("resume") or ""), Path(str(config.run.out))
    if not asked or (asked == "auto" and not (out / "config.toml").exists()):
        return None
    if asked != "auto" and not asked.isdecimal():
        raise ConfigError(f"resume: 'auto' or the round of a commit, got '{asked}'")
    check_engine(out, engine == DEPLOYED)
    found = find_run(out, since=None if asked == "auto" else int(asked))
    check_same(config, found.config)
    return found


def execute(
    grid: Grid,
    config: Config,
    engine: str,
    argv: Sequence[str],
    watch: Watcher | None = None,
    going_on: Resumable | None = None,
) -> None:
    """Run an experiment over a grid and write its run directory, plots and report.

    Args:
        grid: Flower's way to the clients.
        config: The experiment; ``run.out`` is set.
        engine: Name for the summary.
        argv: The command as typed, for the provenance.
        watch: Called with every event, in this process.
        going_on: The run to go on with; None begins one.

    Raises:
        AtlasError: The run failed; its directory says so and holds what was measured.
        RunStopped: It was stopped, and can be resumed.
    """
    if config.run.out is None:
        raise ConfigError("run.out: is required here")
    out = Path(config.run.out)
    # Nodes of a deployment may have rows of their own: the server learns of them what it must.
    patience = min(config.run.client_timeout, HELLO_SECONDS)
    held = holdings(grid, config.run.clients, patience) if engine == DEPLOYED else {}
    prepared = prepare(config, facts_of(config, held))
    with only_writer(out), disk_errors(out, AGAIN if engine == DEPLOYED else None):
        since = going_on.commit if going_on else None
        recorder = Recorder(config, out, engine, argv, watch, since, fresh=going_on is None)
        for why in going_on.passed_over if going_on else ():
            recorder.tell("note", partition=None, text=f"an older commit is used: {why}")
        for told in prepared.method.opening():
            recorder.tell("note", partition=None, text=told)
        state = (since.state, since.moved) if since else None
        # Trackers are no client's business, and would be counted in its bytes.
        resolved = config.model_dump_json(exclude={"run": {"trackers"}})
        federation = Federation(prepared.method, limits_of(config), resolved, recorder, state)
        try:
            federation.start(grid)
            final_rows = federation.evaluate_final(grid)
            passed("scored")
            export_models(config, prepared, federation.state, recorder.out)
        except BaseException as error:
            _close(recorder, error, federation.moved)
            raise
        recorder.complete(final_rows, federation.moved)
        publish(recorder.out)
        recorder.copied()


def limits_of(config: Config) -> Limits:
    """Return how the run samples, waits and forgives."""
    run = config.run
    return Limits(
        seed=run.seed,
        rounds=run.rounds,
        fraction=run.fraction,
        timeout=run.client_timeout,
        on_failure=run.on_failure,
        min_results=run.min_results,
        norm_ratio=config.firewall.norm_ratio,
    )


def _close(recorder: Recorder, error: BaseException, moved: Bytes) -> None:
    """Write how a run ended that did not get to its end."""
    try:
        if isinstance(error, RunStopped | KeyboardInterrupt | SystemExit):
            recorder.stop(who_stopped(error), moved)
        else:
            recorder.fail(error, moved)
        publish(recorder.out)
    except OSError as second:  # the disk that is full is full for this too: the first error tells
        error.add_note(str(second))


@contextmanager
def disk_errors(out: Path, again: str | None = None) -> Iterator[None]:
    """Say in one line that a file can't be written, and what is safe.

    Args:
        out: The run directory.
        again: What goes on with the run, where `atlas resume` doesn't.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno not in _FULL:  # a network's, for one
            raise
        why = f"{error.filename or out}: {error.strerror or error}"
        raise RunFailed(f"{why}; {_safe(out, again)}") from error
    except SafetensorError as error:  # its files are written in Rust, whose errors are its own
        if "os error" not in str(error):
            raise
        raise RunFailed(f"{out}: {error}; {_safe(out, again)}") from error


def _safe(out: Path, again: str | None) -> str:
    """Say what a run that can't write any longer leaves behind."""
    if not (out / "config.toml").exists():
        return "nothing was begun, run it again"
    return f"rounds that were committed are safe, go on with: {again or f'atlas resume {out}'}"
