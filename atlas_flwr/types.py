"""Frozen values that cross rooms: what a model is made of, what is asked of a client, what it says.

A model is made of parts that travel, cost, train and stay private apart:

* ``lora_A``, ``lora_B``: LoRA factors by full module path, each with its scale (``P = s · B @ A``);
* ``core``: a square matrix between two frozen factors;
* ``delta``: what earlier rounds merged into the frozen weights;
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

# What a model is made of. The first four travel as the wire's kind ``adapter``.
Part = Literal["lora_A", "lora_B", "core", "delta", "head", "weights"]
PARTS: tuple[Part, ...] = ("lora_A", "lora_B", "core", "delta", "head", "weights")
FACTORS: frozenset[Part] = frozenset({"lora_A", "lora_B"})
BODY: frozenset[Part] = frozenset({"lora_A", "lora_B", "core", "weights"})


@dataclass(frozen=True)
class LoraFactors:
    """One adapted module's low-rank update ``P = scale · B @ A``.

    A factor that does not travel is absent: an empty array that still tells the rank, A of shape
    ``(r, 0)`` or B of shape ``(0, r)``. Nothing can be computed with it by accident, for no shape
    fits.

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

    @property
    def whole(self) -> bool:
        """Whether both factors are there."""
        return bool(self.a.size and self.b.size)

    def product(self) -> NDArray[np.float64]:
        """Return the dense effective update ``P``, shape ``(d_out, d_in)``, in float64."""
        return self.scale * (self.b.astype(np.float64) @ self.a.astype(np.float64))

    def without(self, *parts: Part) -> LoraFactors:
        """Return a copy without the named factors."""
        a = self.a[:, :0] if "lora_A" in parts else self.a
        b = self.b[:0] if "lora_B" in parts else self.b
        return replace(self, a=a, b=b)

    def filled(self, other: LoraFactors) -> LoraFactors:
        """Return a copy with absent factors taken from ``other``, of the same rank."""
        return replace(
            self, a=self.a if self.a.size else other.a, b=self.b if self.b.size else other.b
        )

    def astype(self, dtype: Any) -> LoraFactors:
        """Return a copy in another precision."""
        return replace(self, a=self.a.astype(dtype), b=self.b.astype(dtype))


Adapter = Mapping[str, LoraFactors]


@dataclass(frozen=True)
class ModelParts:
    """The tensors of one model; an absent part is empty.

    Attributes:
        adapter: LoRA factors by module path.
        head: The task head's tensors by name.
        weights: The backbone's own tensors by name (full fine-tuning).
        delta: What earlier rounds merged into the frozen weights, as factors of scale 1 (FLoRA,
            FedEx); it is loaded, and never trained.
        core: Square matrices R between frozen factors by module path (Fed-SB).
    """

    adapter: Adapter = field(default_factory=dict)
    head: Tensors = field(default_factory=dict)
    weights: Tensors = field(default_factory=dict)
    delta: Adapter = field(default_factory=dict)
    core: Tensors = field(default_factory=dict)

    def without(self, *parts: Part) -> ModelParts:
        """Return a copy in which the named parts are empty."""
        gone = FACTORS & set(parts)
        adapter = {} if gone == FACTORS else self.adapter
        if gone:
            adapter = {module: f.without(*gone) for module, f in adapter.items()}
        whole = [part for part in parts if part not in FACTORS]
        return replace(self, adapter=adapter, **{part: {} for part in whole})

    def only(self, *parts: Part) -> ModelParts:
        """Return a copy that keeps the named parts alone."""
        return self.without(*(part for part in PARTS if part not in parts))

    def filled(self, other: ModelParts) -> ModelParts:
        """Return a copy whose absent parts, single factors among them, are ``other``'s."""
        adapter = {
            module: factors.filled(other.adapter[module]) if module in other.adapter else factors
            for module, factors in self.adapter.items()
        }
        return ModelParts(
            adapter or other.adapter,
            self.head or other.head,
            self.weights or other.weights,
            self.delta or other.delta,
            self.core or other.core,
        )

    def body(self) -> dict[str, Array]:
        """Return all but head and delta as flat tensors.

        Names are ``<module>.lora_A``, ``.lora_B``, ``.core`` and the weights' own; absent factors
        are left out.
        """
        flat: dict[str, Array] = {}
        for module, factors in self.adapter.items():
            pair = {f"{module}.lora_A": factors.a, f"{module}.lora_B": factors.b}
            flat |= {name: tensor for name, tensor in pair.items() if tensor.size}
        flat |= {f"{module}.core": core for module, core in self.core.items()}
        return flat | dict(self.weights)

    def with_body(self, flat: Tensors) -> ModelParts:
        """Return a copy whose body holds ``flat``'s values; scales and absent factors stay.

        Raises:
            KeyError: ``flat`` lacks a tensor that this model has.
        """
        adapter = {
            module: replace(
                f,
                a=flat[f"{module}.lora_A"] if f.a.size else f.a,
                b=flat[f"{module}.lora_B"] if f.b.size else f.b,
            )
            for module, f in self.adapter.items()
        }
        core = {module: flat[f"{module}.core"] for module in self.core}
        weights = {name: flat[name] for name in self.weights}
        return replace(self, adapter=adapter, core=core, weights=weights)

    def single(self) -> ModelParts:
        """Return a copy whose body is float32, as it travels."""
        flat = self.body()
        return self.with_body({n: t.astype(np.float32, copy=False) for n, t in flat.items()})

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of body and head."""
        return {name: t.shape for name, t in (self.body() | dict(self.head)).items()}

    def ranks(self) -> dict[str, int]:
        """Return the rank of each adapted module."""
        return {module: factors.rank for module, factors in self.adapter.items()}


@dataclass(frozen=True)
class Stage:
    """One stretch of a client's local training.

    Attributes:
        trains: Parts that move; the others are frozen.
        epochs: Passes over the rows; None: the experiment's ``train.local-epochs``.
    """

    trains: frozenset[Part] = frozenset(PARTS)
    epochs: int | None = None


@dataclass(frozen=True)
class Job:
    """What the server asks of one client.

    A client puts its model together from what is sent, from its vault (``private``), from what it
    was sent before (``carried``), and from the seed (``seeded``).

    Attributes:
        partition: Who is asked.
        action: ``"train"`` or ``"evaluate"``, with a named action after a dot where needed.
        round: Round number, from 1.
        parts: The tensors sent.
        private: Parts the client keeps in its own vault instead of being sent.
        since: Round in which the private parts were last written; 0: start from the seed.
        seeded: Parts the client draws from the seed by itself.
        draw: Which of the seed's draws, 0 for the first.
        carried: Version of the server's parts that the client holds already, and the version it
            has with what is sent now; a ``delta`` that is sent adds up, other parts replace.
        stages: What is trained, stretch by stretch.
        returns: Parts sent back, private ones excepted.
        expects: Shapes of the tensors to come back; it stays at the server.
        shrinks: Factors may come back with a smaller rank; it stays at the server.
        sparse: Zeros of the adapter don't travel, in either direction.
        options: The method's numbers for the client (e.g. ``{"mu": 0.01}``); under ``hold-back``
            the share of its training rows that no training sees.
        rows: ``"own"`` rows, the task's ``"full"`` validation set (evaluation only), or the
            training rows ``"held"`` back.
        pool: Partitions whose training rows are used together; empty means the client's own.
        choices: Whole models the client scores, or chooses from, in place of ``parts``.
        pooled: Rows of each class whose mix the model's own logits are to fit, where the client
            adjusts logits; empty: even classes.
    """

    partition: int
    action: str
    round: int
    parts: ModelParts = field(default_factory=ModelParts)
    private: frozenset[Part] = frozenset()
    since: int = 0
    seeded: frozenset[Part] = frozenset()
    draw: int = 0
    carried: tuple[int, int] = (0, 0)
    stages: tuple[Stage, ...] = (Stage(),)
    returns: frozenset[Part] = frozenset(PARTS)
    expects: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shrinks: bool = False
    sparse: bool = False
    options: Mapping[str, Scalar] = field(default_factory=dict)
    rows: Literal["own", "full", "held"] = "own"
    pool: tuple[int, ...] = ()
    choices: tuple[ModelParts, ...] = ()
    pooled: tuple[int, ...] = ()


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
        precision: The number format that ``train.precision`` comes to there; empty: not said.
    """

    num_examples: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    device: str = "cpu"
    notes: tuple[str, ...] = ()
    precision: str = ""


@dataclass(frozen=True)
class Update:
    """One client's answer.

    Attributes:
        partition: Who.
        report: What it says of the job.
        parts: The tensors it returned.
        sparse: Zeros of the adapter don't travel.
        fingerprint: What it says of its rows, where it was asked that: of what they are like, or
            ``losses``, the mean loss under each model it was sent to choose from.
    """

    partition: int
    report: Report
    parts: ModelParts = field(default_factory=ModelParts)
    sparse: bool = False
    fingerprint: Tensors = field(default_factory=dict)
