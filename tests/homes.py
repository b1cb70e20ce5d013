"""Clients at home: a tiny model, rows that can be learnt, and a disk of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from atlas_flwr.engine.vault import Vault
from atlas_flwr.flat import from_arrays, to_arrays
from atlas_flwr.models.adapter_io import initial_parts, read_parts, write_parts
from atlas_flwr.models.backbone import ModelSpec, load
from atlas_flwr.training.local import TrainSpec
from atlas_flwr.types import Array, Job, ModelParts
from clients.base import FineTuneClient, Site, Stores
from clients.lora import LoraClient
from fakes import FakeTable, random_parts

TABLE = FakeTable(48)
RANK, SCALE, SEED = 4, 2.0, 3


@dataclass(frozen=True)
class Answer:
    """What a client's ``fit`` returned, put together again."""

    parts: ModelParts
    rows: int
    told: dict[str, Any]


@dataclass(frozen=True)
class Home:
    """One client's model, rows and disk."""

    site: Site
    stores: Stores

    def fit(self, job: Job, kind: type[FineTuneClient] = LoraClient) -> Answer:
        """Do a training job as the ClientApp does it."""
        client = kind(self.site, job, self.stores)
        arrays, rows, told = client.fit(to_arrays(job.parts)[0], dict(job.options))
        return Answer(from_arrays(arrays, client.layout), rows, told)

    def evaluate(self, job: Job, kind: type[FineTuneClient] = LoraClient) -> float:
        """Do a scoring job; return the loss."""
        loss, _, _ = kind(self.site, job, self.stores).evaluate(to_arrays(job.parts)[0], {})
        return loss

    def loss_of(self, parts: ModelParts) -> float:
        """Return the loss of tensors that are all sent."""
        return self.evaluate(Job(0, "evaluate", 1, parts))

    def loaded(self) -> ModelParts:
        """Return what the model holds now."""
        return read_parts(self.site.model)

    def random(self, seed: int, spread: float = 0.1) -> ModelParts:
        """Return small random parts of the model's shapes, factors of scale ``SCALE``."""
        parts = random_parts(self.site.model, seed, RANK, spread)
        same = {m: replace(f, scale=SCALE) for m, f in parts.adapter.items()}
        return replace(parts, adapter=same)


def home(
    folder: Path,
    model: str,
    adaptation: Any = "lora",
    initial: Callable[[int], ModelParts] | None = None,
    **spec: Any,
) -> Home:
    """Return client 0 of a run with 40 training rows, 5 steps of 8 an epoch."""
    asked = ModelSpec(model, adaptation=adaptation)
    loaded = load(asked, 2, 0)
    start = initial or (lambda draw: initial_parts(asked, 2, RANK, SCALE, SEED, draw))
    write_parts(loaded, start(0))
    how = {"batch_size": 8, "learning_rate": 5e-3, "precision": "fp32", "device": "cpu", **spec}
    site = Site(
        model=loaded,
        initial=start,
        train_table=TABLE,
        train_rows=np.arange(2, 42),
        score_table=TABLE,
        own_rows=np.arange(42, 48),
        full_rows=np.arange(48),
        spec=TrainSpec(**how),
        eval_batch_size=16,
        seed=SEED,
    )
    return Home(site, Stores(Vault(folder, 0), Vault(folder, 0, "carried")))


def tensors(parts: ModelParts) -> dict[str, Array]:
    """Return body and head by name."""
    return parts.body() | dict(parts.head)


def same_bits(left: ModelParts, right: ModelParts) -> bool:
    """Tell whether two models have the same tensors to the bit."""
    a, b = tensors(left), tensors(right)
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)
