"""Clients of GLUE tasks as rows of features: what fingerprints are judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from atlas_flwr.config.load import parse_config
from atlas_flwr.fingerprint.features import mean_hidden
from atlas_flwr.models.adapter_io import write_parts
from atlas_flwr.models.backbone import load
from atlas_flwr.types import Array
from clients.site import model_spec, open_task, starting_parts

TASKS = ("sst2", "mrpc", "cola", "qnli")
TRIO = ("sst2", "sst2-flipped", "cola")
FLIPPED = "-flipped"
Features = dict[str, tuple[Array, Array]]  # a task's rows of features, and their labels


@dataclass(frozen=True)
class Setting:
    """Clients to tell apart: some of each task, ``rows`` each, label mixes of Dirichlet(alpha).

    With ``shuffled``, labels say nothing about texts. None as alpha: each task's own label mix.
    """

    name: str
    tasks: tuple[str, ...]
    each: int
    rows: int
    alpha: float | None
    shuffled: bool = False


SETTINGS = (
    *(Setting("4 tasks", TASKS, 3, n, a) for n in (64, 150, 300) for a in (None, 0.5, 0.1)),
    *(Setting("flipped trio", TRIO, 4, n, a) for n in (64, 150) for a in (None, 0.5, 0.1)),
    *(Setting("flipped trio", TRIO, 3, 300, a) for a in (None, 0.5, 0.1)),
    Setting("4 tasks, 48 clients", TASKS, 12, 60, None),
    *(Setting(f"{task} alone", (task,), 4, 300, a) for task in TASKS for a in (None, 0.5)),
    *(Setting(f"{task} alone", (task,), 12, 64, a) for task in TASKS for a in (None, 0.5)),
    Setting("sst2 shuffled", ("sst2",), 12, 150, None, True),
    Setting("4 tasks shuffled", TASKS, 3, 150, 0.5, True),
)


@dataclass(frozen=True)
class Client:
    """One client's rows."""

    task: str
    features: Array
    labels: Array


def deal(setting: Setting, features: Features, seed: int) -> list[Client]:
    """Return the clients; no row is dealt twice."""
    rng = np.random.default_rng([seed, setting.rows])
    pools: dict[str, tuple[list[int], list[int]]] = {}
    clients = []
    for task in setting.tasks:
        texts = task.removesuffix(FLIPPED)
        x, y = features[texts]
        # Shuffled labels: both classes are drawn from all rows, whatever they are labelled.
        kind = rng.permutation(len(y)) % 2 if setting.shuffled else y
        if texts not in pools:
            zeros, ones = (list(rng.permutation(np.flatnonzero(kind == c))) for c in (0, 1))
            pools[texts] = zeros, ones
        for _ in range(setting.each):
            counts = _counts(setting, y, rng, [len(pool) for pool in pools[texts]])
            own = np.repeat([0, 1], counts)
            take = [pools[texts][c].pop() for c in own]
            clients.append(Client(task, x[take], 1 - own if task.endswith(FLIPPED) else own))
    return clients


def _counts(s: Setting, y: Array, rng: np.random.Generator, left: Sequence[int]) -> Array:
    """Draw how many rows of each class, until there are that many left."""
    natural = np.bincount(y) / len(y)
    while True:
        mix = natural if s.alpha is None else rng.dirichlet([s.alpha, s.alpha])
        one = round(s.rows * mix[1]) if s.alpha is None else rng.binomial(s.rows, mix[1])
        counts = np.array([s.rows - one, one])
        if (counts <= left).all():
            return counts


def features_of(root: Path, rows: int, batch_size: int = 32) -> Features:
    """Return the features of so many training rows of each task, from a folder of GLUE tasks."""
    config = parse_config(
        {
            "data": {"tasks": list(TASKS), "root": str(root)},
            "run": {"clients": 12},
            "model": {"max-length": 96},
        }
    )
    loaded = load(model_spec(config), 2, config.run.seed)
    write_parts(loaded, starting_parts(config, 2, config.rank_of(0)))
    found = {}
    for name in TASKS:
        table = open_task(config, name).train
        at = np.random.default_rng(0).permutation(len(table.labels))[:rows]
        x = mean_hidden(loaded, table, at, batch_size, torch.device("cpu"))
        found[name] = x, table.labels[at]
    return found


def kept(folder: Path) -> Features:
    """Return features written earlier: one ``<task>.npz`` with ``mean`` and ``y`` each."""
    found = {}
    for name in TASKS:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            found[name] = file["mean"].astype(np.float64), file["y"]
    return found


def keep(features: Features, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (x, y) in features.items():
        np.savez(folder / f"{name}.npz", mean=x.astype(np.float32), y=y)
