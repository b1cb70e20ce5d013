"""Frozen values that cross rooms: what a model is made of, what is asked of a client, what it says.

A model is three kinds of parts, for they travel, cost and stay private apart:

* ``adapter``: LoRA factors by full module path, each with its scale (``P = scale · B @ A``);
* ``weights``: the backbone's own tensors (full fine-tuning);
* ``head``: the tensors of the task head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tensors = Mapping[str, Array]
Scalar = bool | bytes | float | int | str  # what Flower's config may hold

Part = Literal["adapter", "head", "weights"]
PARTS: tuple[Part, ...] = ("adapter", "head", "weights")


@dataclass(frozen=True)
class LoraFactors:
    """One adapted module's low-rank update ``P = scale · B @ A``.

    Attributes:
        a: Down projection A, shape ``(r, d_in)``.
        b: Up projection B, shape ``(d_out, r)``.
        scale: The factor ``s`` the module multiplies the product with.
    """

    a: Array
    b: Array
    scale: float

    @property
    def rank(self) -> int:
        """The number of rows of A, equal to the number of columns of B."""
        return int(self.a.shape[0])

    def product(self) -> NDArray[np.float64]:
        """Return the dense effective update ``P``, shape ``(d_out, d_in)``, in float64."""
        return self.scale * (self.b.astype(np.float64) @ self.a.astype(np.float64))


Adapter = Mapping[str, LoraFactors]


@dataclass(frozen=True)
class ModelParts:
    """The trainable tensors of one model; an absent kind is empty."""

    adapter: Adapter = field(default_factory=dict)
    head: Tensors = field(default_factory=dict)
    weights: Tensors = field(default_factory=dict)

    def without(self, *parts: Part) -> ModelParts:
        """Return a copy in which the named kinds are empty."""
        return replace(self, **{part: {} for part in parts})

    def only(self, *parts: Part) -> ModelParts:
        """Return a copy that keeps the named kinds alone."""
        return self.without(*(part for part in PARTS if part not in parts))

    def body(self) -> dict[str, Array]:
        """Return adapter factors (``<module>.lora_A``, ``.lora_B``) and weights as flat tensors."""
        flat: dict[str, Array] = {}
        for module, factors in self.adapter.items():
            flat[f"{module}.lora_A"] = factors.a
            flat[f"{module}.lora_B"] = factors.b
        return flat | dict(self.weights)

    def with_body(self, flat: Tensors) -> ModelParts:
        """Return a copy whose adapter and weights hold ``flat``'s values; scales stay.

        Raises:
            KeyError: ``flat`` lacks a tensor that this model has.
        """
        adapter = {
            module: replace(f, a=flat[f"{module}.lora_A"], b=flat[f"{module}.lora_B"])
            for module, f in self.adapter.items()
        }
        return replace(self, adapter=adapter, weights={name: flat[name] for name in self.weights})

    def ranks(self) -> dict[str, int]:
        """Return the rank of each adapted module."""
        return {module: factors.rank for module, factors in self.adapter.items()}


@dataclass(frozen=True)
class Job:
    """What the server asks of one client.

    Attributes:
        partition: Who is asked.
        action: ``"train"`` or ``"evaluate"``, with a named action after a dot where needed.
        round: Round number, from 1.
        parts: The tensors sent. Kinds in ``private`` are empty here.
        private: Kinds the client keeps in its own vault instead of being sent.
        since: Round in which the private parts were last written; 0: start from the seed.
        options: The method's numbers for the client (e.g. ``{"mu": 0.01}``).
        rows: ``"own"`` rows, or the task's ``"full"`` validation set (evaluation only).
        pool: Partitions whose training rows are used together; empty means the client's own.
    """

    partition: int
    action: str
    round: int
    parts: ModelParts = field(default_factory=ModelParts)
    private: frozenset[Part] = frozenset()
    since: int = 0
    options: Mapping[str, Scalar] = field(default_factory=dict)
    rows: Literal["own", "full"] = "own"
    pool: tuple[int, ...] = ()


@dataclass(frozen=True)
class Report:
    """What a client says after a job, its tensors apart.

    Attributes:
        num_examples: Rows the job used; the weight of the client in a mean.
        metrics: ``loss`` and, after evaluation, ``accuracy``, ``f1``, ``macro_f1``, ``mcc``.
            A metric that does not exist is absent.
        seconds: Wall time on the client.
        peak_memory_bytes: CUDA's peak counter, or the process's peak resident set.
        device: ``"cpu"`` or the GPU's name.
        notes: What the client did that its user should know (e.g. a smaller micro-batch).
    """

    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    device: str = "cpu"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Update:
    """One client's answer: its report and the tensors it returned."""

    partition: int
    report: Report
    parts: ModelParts = field(default_factory=ModelParts)
