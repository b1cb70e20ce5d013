"""The ServerApp of the Ray benchmark: after each round, bare processes do the same work."""

from __future__ import annotations

import json
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from atlas_flwr.apps.server import execute
from atlas_flwr.config.load import load_config, with_out
from atlas_flwr.config.schema import Config
from benchmarks.bare_loop import BareLoop
from benchmarks.measure import Turns

PAIRS = "pairs.json"

app = ServerApp()
_loops: dict[str, BareLoop] = {}  # one in each bare process, opened before the clock starts


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment and write the seconds of both sides into its run directory."""
    out = str(context.run_config["out"])
    config = with_out(load_config(Path(str(context.run_config["config"]))), out)
    workers = config.engine.workers or 1
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn, _open, (config.model_dump_json(),)) as pool:
        turns = Turns(partial(bare_round, pool, config.run.clients))
        execute(grid, config, "ray", sys.argv, turns)
    (Path(out) / PAIRS).write_text(json.dumps(turns.pairs), encoding="utf-8")


def bare_round(pool: ProcessPoolExecutor, clients: int, round_: int) -> None:
    """Let idle processes take the next client; scoring waits for all training, as a mean would."""
    list(pool.map(partial(_train, round_=round_), range(clients)))
    list(pool.map(_score, range(clients)))


def _open(config: str) -> None:
    _loops["own"] = BareLoop(Config.model_validate_json(config))


def _train(partition: int, round_: int) -> None:
    _loops["own"].train(partition, round_)


def _score(partition: int) -> None:
    _loops["own"].score(partition)
