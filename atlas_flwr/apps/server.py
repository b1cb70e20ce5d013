"""The ServerApp: one experiment from its config to its run directory, over any Flower grid."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from atlas_flwr.apps import guard  # noqa: F401 - checks, before the next lines import
from atlas_flwr.apps.export import export_models
from atlas_flwr.apps.prepare import prepare, resolve
from atlas_flwr.apps.record import Recorder, Watcher
from atlas_flwr.config.load import load_config, with_out
from atlas_flwr.config.schema import Config
from atlas_flwr.errors import ConfigError
from atlas_flwr.results.report import publish
from strategies.federation import Federation
from strategies.rules import Limits

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run-config names: ``config``, ``out``, ``overrides``."""
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
    execute(grid, config, engine="ray", argv=sys.argv)


def execute(
    grid: Grid, config: Config, engine: str, argv: Sequence[str], watch: Watcher | None = None
) -> None:
    """Run an experiment over a grid and write its run directory, plots and report.

    Args:
        grid: Flower's way to the clients.
        config: The experiment; ``run.out`` is set.
        engine: Name for the summary.
        argv: The command as typed, for the provenance.
        watch: Called with every event, in this process.

    Raises:
        AtlasError: The run failed; its directory says so and holds what was measured.
    """
    if config.run.out is None:
        raise ConfigError("run.out: is required here")
    prepared = prepare(config)
    recorder = Recorder(config, Path(config.run.out), engine, argv, watch)
    limits = Limits(
        seed=config.run.seed,
        rounds=config.run.rounds,
        fraction=config.run.fraction,
        timeout=config.run.client_timeout,
        on_failure=config.run.on_failure,
        min_results=config.run.min_results,
    )
    federation = Federation(prepared.method, limits, config.model_dump_json(), recorder)
    try:
        federation.start(grid)
        final_rows = federation.evaluate_final(grid)
        export_models(config, prepared, federation.state, recorder.out)
    except BaseException as error:
        recorder.fail(error, federation.moved)
        publish(recorder.out)
        raise
    recorder.complete(final_rows, federation.moved)
    publish(recorder.out)
