"""What one client needs, measured in a process of its own: the largest trains and scores a little.

``python -m atlas_flwr.apps.autopilot_probe CONFIG`` prints one JSON line.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atlas_flwr import host
from atlas_flwr.apps.facts import DataFacts, dealt_facts
from atlas_flwr.apps.prepare import prepare
from atlas_flwr.config.load import load_config
from atlas_flwr.config.schema import Config
from atlas_flwr.models.adapter_io import write_parts
from atlas_flwr.ranks.budget import rank_costs
from atlas_flwr.ranks.memory import GRADIENT_BYTES
from atlas_flwr.seeding import rng_for
from atlas_flwr.training.evaluate import evaluate
from atlas_flwr.training.local import train
from atlas_flwr.training.memory import device_memory, peak_bytes, process_bytes
from atlas_flwr.training.precision import resolve_device
from atlas_flwr.types import Array
from clients.base import Site
from clients.site import open_site, rank_of, starting_parts
from strategies.base import Setting
from strategies.registry import parse_options, widest_rank

MB = 10**6
Shapes = Mapping[str, tuple[int, int]]
_STEPS = 2  # AdamW makes its moments in the first


def largest(setting: Setting, facts: DataFacts, batch: int) -> int:
    """Return the partition that is predicted to need most memory, the first of equals.

    Args:
        setting: The clients, with what each may spend.
        facts: Their rows.
        batch: Rows of a step.
    """
    tokens = [
        min(batch, rows.train) * length
        for rows, length in zip(facts.rows, facts.longest, strict=True)
    ]
    needs = [grant.needs or 0 for grant in setting.grants] or [0] * len(tokens)
    return max(range(len(tokens)), key=lambda p: (needs[p], tokens[p], -p))


def measure(config: Config) -> dict[str, Any]:
    """Train and score the largest client on its longest rows; return what that took.

    Two steps at one row, then two at a whole batch, which tells the part that no row adds from the
    part that each adds. On a GPU that is what the process holds there, the allocator's pool and
    the context; on a CPU its peak resident set.

    Raises:
        UserError: The experiment can't run.
        AtlasError: There is too little memory for a single row.
    """
    device = resolve_device(config.engine.device)
    facts = dealt_facts(config)
    setting = prepare(config, facts).method.setting
    partition = largest(setting, facts, config.train.batch_size)
    site = open_site(config, partition)
    loaded = site.model
    rank = _rank(config, setting, partition, loaded.backbone.shapes)
    write_parts(loaded, starting_parts(config, loaded.num_labels, rank))
    wanted = min(config.train.batch_size, len(site.train_rows))
    rows = _longest(site.train_table.lengths, site.train_rows, wanted)
    _step(site, rows[:1], 1)
    one = process_bytes(device)
    asked = min(wanted, config.engine.micro_batch or wanted)
    micro = _step(site, rows, asked)
    _score(site)
    peak = max(process_bytes(device), one) + _gradients(config, loaded.backbone.shapes)
    row = max(0, peak - one) / max(1, micro - 1)
    free, total = device_memory(device)
    return {
        "partition": partition,
        "rank": rank,
        "device": str(device.type),
        "batch": asked,
        "measured_batch": micro,
        "peak_mb": peak / MB,
        "base_mb": max(0.0, one - row) / MB,
        "host_mb": peak_bytes(torch.device("cpu")) / MB,
        "host_free_mb": host.memory().available / MB,
        "free_mb": free / MB,
        "total_mb": total / MB,
        "gpus": torch.cuda.device_count() if device.type == "cuda" else 0,
    }


def _rank(config: Config, setting: Setting, partition: int, shapes: Shapes) -> int:
    """Return the client's rank; where ranks are given later, one that spends its whole grant."""
    own = rank_of(config, partition)
    if not own or not widest_rank(config.strategy.name, config.strategy.options):
        return own
    each = sum(rank_costs(shapes).values())
    return max(own, math.ceil(setting.grants[partition].params / each))


def _longest(lengths: Array, rows: Array, most: int) -> Array:
    """Return the longest of some rows."""
    return np.asarray(rows)[np.argsort(-lengths[rows], kind="stable")[:most]]


def _step(site: Site, rows: Array, micro: int) -> int:
    """Take two steps; return how many rows were passed at once in the end."""
    spec = replace(site.spec, batch_size=len(rows), micro_batch=micro)
    rng = rng_for(site.seed, "autopilot")
    return train(site.model, site.train_table, rows, spec, rng, 0, max_steps=_STEPS).micro_batch


def _score(site: Site) -> None:
    """Score one batch of the longest rows."""
    table, rows = site.score_table, np.union1d(site.own_rows, site.full_rows)
    chosen = _longest(table.lengths, rows.astype(np.int64), site.eval_batch_size)
    evaluate(
        site.model,
        table,
        chosen,
        batch_size=site.eval_batch_size,
        precision=site.spec.precision,
        device=site.spec.device,
        threads=site.spec.threads,
    )


def _gradients(config: Config, shapes: Shapes) -> int:
    """Return what the gradients of all adapted weights take, where ranks are given by them."""
    options = parse_options(config.strategy.name, config.strategy.options)
    if getattr(options, "ranks", "fixed") in ("uniform", "fixed"):
        return 0
    return GRADIENT_BYTES * sum(d_out * d_in for d_out, d_in in shapes.values())


if __name__ == "__main__":
    print(json.dumps(measure(load_config(Path(sys.argv[1])))))
