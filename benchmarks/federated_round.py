"""(a) What does a federated round cost over a bare PyTorch loop that does the same work?"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from atlas_flwr.apps.client import app as client_app
from atlas_flwr.apps.prepare import prepare
from atlas_flwr.apps.server import execute
from atlas_flwr.config.load import dump_config
from atlas_flwr.config.schema import Config
from atlas_flwr.engine.inline import InlineGrid
from atlas_flwr.engine.launch import AppRefs, run_on_ray
from atlas_flwr.errors import RunFailed
from benchmarks.bare_loop import BareLoop
from benchmarks.measure import Ratio, Turns
from benchmarks.ray_server import PAIRS
from benchmarks.sizes import Size, experiment

WORKERS = 2


def inline_pairs(config: Config, rival: Callable[[int], object]) -> tuple[tuple[float, float], ...]:
    """Run an inline experiment, the rival's round after each of its own; warm-up left out."""
    turns = Turns(rival)
    execute(InlineGrid(client_app, config.run.clients), config, "inline", sys.argv, turns)
    return tuple(turns.pairs[1:])


def inline_round(size: Size) -> Ratio:
    """Measure rounds of the inline engine: one process, one thread, both sides."""
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        config = experiment(size, f"{folder}/run")
        pairs = inline_pairs(config, BareLoop(config).round)
    return Ratio(
        "inline round",
        "bare loop",
        pairs,
        "<=",
        1.15,
        {"processes": 1, "threads": 1, "batch": config.train.batch_size},
    )


def ray_round(size: Size) -> Ratio:
    """Measure rounds of Flower's Ray engine against as many bare processes of one thread."""
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        out = Path(folder) / "run"
        config = experiment(size, str(out), engine="ray", workers=WORKERS)
        prepare(config)
        written = Path(folder) / "config.toml"
        written.write_text(dump_config(config), encoding="utf-8")
        outcome = run_on_ray(
            written,
            out,
            supernodes=config.run.clients,
            workers=WORKERS,
            threads=1,
            gpus_per_client=0,
            apps=AppRefs(server="benchmarks.ray_server:app"),
        )
        if outcome.status != "completed":
            raise RunFailed(f"benchmark on Ray: {outcome.details}")
        pairs = json.loads((out / PAIRS).read_text(encoding="utf-8"))
    return Ratio(
        f"ray round, {WORKERS} workers",
        f"bare loop, {WORKERS} processes",
        tuple((ours, theirs) for ours, theirs in pairs[1:]),
        "<=",
        1.35,
        {"processes": WORKERS, "threads": 1, "batch": config.train.batch_size},
    )
