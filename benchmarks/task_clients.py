"""Clients of real tasks as rows of features: what fingerprints are judged on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from atlas_flwr.config.load import parse_config
from atlas_flwr.fingerprint.features import mean_hidden
from atlas_flwr.models.adapter_io import write_parts
from atlas_flwr.models.backbone import LoadedModel, load
from atlas_flwr.training.batches import TokenTable
from atlas_flwr.types import Array
from clients.site import model_spec, open_task, starting_parts

GLUE = ("sst2", "mrpc", "cola", "qnli")
TRIO = ("sst2", "sst2-flipped", "cola")
NEWS = ("bbc", "tweets", "tweets-flipped", "bbc-flipped")
SKEWS = (None, 0.5, 0.1)
FLIPPED = "-flipped"  # of more than two classes each takes its neighbour's name
Features = dict[str, tuple[Array, Array]]  # a task's rows of features, and their labels


@dataclass(frozen=True)
class Setting:
    """Clients to tell apart: some of each task, ``rows`` each, label mixes of Dirichlet(alpha).

    With ``shuffled``, labels say nothing about texts. None as alpha: each task's own label mix.
    Of a task with more classes only the first are dealt.
    """

    name: str
    tasks: tuple[str, ...]
    each: int
    rows: int
    alpha: float | None
    shuffled: bool = False
    classes: int = 2

    @property
    def sources(self) -> tuple[str, ...]:
        """The tasks whose texts are dealt."""
        return tuple(dict.fromkeys(task.removesuffix(FLIPPED) for task in self.tasks))


SETTINGS = (
    *(Setting("4 tasks", GLUE, 3, n, a) for n in (64, 150, 300) for a in SKEWS),
    *(Setting("flipped trio", TRIO, 4, n, a) for n in (64, 150) for a in SKEWS),
    *(Setting("flipped trio", TRIO, 3, 300, a) for a in SKEWS),
    Setting("4 tasks, 48 clients", GLUE, 12, 60, None),
    *(Setting(f"{task} alone", (task,), 4, 300, a) for task in GLUE for a in (None, 0.5)),
    *(Setting(f"{task} alone", (task,), 12, 64, a) for task in GLUE for a in (None, 0.5)),
    Setting("sst2 shuffled", ("sst2",), 12, 150, None, True),
    Setting("4 tasks shuffled", GLUE, 3, 150, 0.5, True),
    *(Setting("3 classes", NEWS, 4, n, a, classes=3) for n in (64, 120) for a in SKEWS),
    *(Setting("5 classes", NEWS[::3], 4, n, a, classes=5) for n in (64, 120) for a in SKEWS),
)


@dataclass(frozen=True)
class Client:
    """One client's rows."""

    task: str
    features: Array
    labels: Array
    classes: int
    rows: Array  # their places among the rows that ``tables_of`` names


def deal(setting: Setting, features: Features, seed: int) -> list[Client]:
    """Return the clients; no row is dealt twice."""
    rng = np.random.default_rng([seed, setting.rows])
    pools: dict[str, list[list[int]]] = {}
    clients = []
    for task in setting.tasks:
        texts = task.removesuffix(FLIPPED)
        x, y = features[texts]
        # Shuffled labels: every class is drawn from all rows, whatever they are labelled.
        kind = rng.permutation(len(y)) % setting.classes if setting.shuffled else y
        if texts not in pools:
            pools[texts] = [
                list(rng.permutation(np.flatnonzero(kind == c))) for c in range(setting.classes)
            ]
        for _ in range(setting.each):
            counts = _counts(setting, y, rng, [len(pool) for pool in pools[texts]])
            own = np.repeat(np.arange(setting.classes), counts)
            take = [pools[texts][c].pop() for c in own]
            named = (own + 1) % setting.classes if task.endswith(FLIPPED) else own
            clients.append(Client(task, x[take], named, setting.classes, np.array(take)))
    return clients


def _counts(s: Setting, y: Array, rng: np.random.Generator, left: Sequence[int]) -> Array:
    """Draw how many rows of each class, until there are that many left."""
    natural = np.bincount(y)[: s.classes]
    while True:
        if s.alpha is None:
            others = np.round(s.rows * natural[1:] / natural.sum()).astype(int)
            counts = np.array([s.rows - others.sum(), *others])
        else:  # the last class first, whatever remains to the first
            mix = rng.dirichlet([s.alpha] * s.classes)
            counts = rng.multinomial(s.rows, mix[::-1])[::-1]
        if (counts <= left).all():
            return counts


def tables_of(
    names: Sequence[str], glue: Path | None, rows: int
) -> tuple[LoadedModel, dict[str, tuple[TokenTable, Array]]]:
    """Return the seeded model, and of each task its training table and so many of its rows.

    Args:
        names: Tasks.
        glue: The folder of GLUE's tasks, if one of them is named.
        rows: Of each task, or all if it has fewer.
    """
    root = {} if glue is None else {"root": str(glue)}
    config = parse_config(
        {
            "data": {"tasks": list(names), **root},
            "run": {"clients": 12},
            "model": {"max-length": 96},
        }
    )
    loaded = load(model_spec(config), 2, config.run.seed)
    write_parts(loaded, starting_parts(config, 2, config.rank_of(0)))
    found: dict[str, tuple[TokenTable, Array]] = {}
    for name in names:
        table = open_task(config, name).train
        found[name] = table, np.random.default_rng(0).permutation(len(table.labels))[:rows]
    return loaded, found


def features_of(
    names: Sequence[str], glue: Path | None, rows: int, batch_size: int = 32
) -> Features:
    """Return the features of so many training rows of each task (``tables_of``)."""
    loaded, tables = tables_of(names, glue, rows)
    cpu = torch.device("cpu")
    return {
        name: (mean_hidden(loaded, table, at, batch_size, cpu), table.labels[at])
        for name, (table, at) in tables.items()
    }


def kept(names: Sequence[str], folder: Path) -> Features:
    """Return those features that were written earlier: ``<task>.npz`` with ``mean`` and ``y``."""
    found = {}
    for name in names:
        if not (folder / f"{name}.npz").is_file():
            continue
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            found[name] = file["mean"].astype(np.float64), file["y"]
    return found


def keep(features: Features, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (x, y) in features.items():
        np.savez(folder / f"{name}.npz", mean=x.astype(np.float32), y=y)
