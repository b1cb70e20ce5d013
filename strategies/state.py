"""What a method is told of a run, what it remembers between messages, and what it serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from atlas_flwr.ranks.budget import Grant
from atlas_flwr.results.record import Measured
from atlas_flwr.types import Adapter, ModelParts, Part, Tensors


class Rows(NamedTuple):
    """How many rows a partition trains on, is scored on, and its task's full set has."""

    train: int
    own: int
    full: int


@dataclass(frozen=True)
class Setting:
    """The facts of a run that a method may use.

    Attributes:
        tasks: Task of each partition. Only heads and the oracle-like methods may read it.
        num_labels: Number of labels of each task.
        ranks: LoRA base rank of each partition; empty under full fine-tuning.
        steps: Optimizer steps of one local epoch pass of each partition.
        head_policy: Which heads are averaged together.
        initial: The seeded starting model for a number of labels and a rank (0 for full).
        seed: The run's seed, for what a method draws by itself.
        grants: What each partition's device affords of an adapter.
        scales: LoRA scale of each rank that a method may give, where it gives ranks by itself.
        rows: Rows that were dealt to each partition, where the server knows; what bounds a count.
        features: Width of the model's hidden states, where it is known; 0: it is not.
        fraction: Share of the clients drawn for training each round.
        rounds: Rounds to go.
        adjusts: Whether clients adjust logits to their label mixes.
    """

    tasks: tuple[str, ...]
    num_labels: Mapping[str, int]
    ranks: tuple[int, ...]
    steps: tuple[int, ...]
    head_policy: Literal["shared", "per_task", "personal", "local"]
    initial: Mapping[tuple[int, int], ModelParts]
    seed: int = 0
    grants: tuple[Grant, ...] = ()
    scales: Mapping[int, float] = field(default_factory=dict)
    rows: tuple[Rows, ...] = ()
    features: int = 0
    fraction: float = 1.0
    rounds: int = 1
    adjusts: bool = False

    @property
    def clients(self) -> int:
        """The number of partitions."""
        return len(self.tasks)

    @property
    def mixed(self) -> bool:
        """Whether ranks differ between clients."""
        return len(set(self.ranks)) > 1

    def initial_for(self, partition: int) -> ModelParts:
        """Return the seeded starting model of a partition."""
        rank = self.ranks[partition] if self.ranks else 0
        return self.initial[self.num_labels[self.tasks[partition]], rank]


@dataclass(frozen=True)
class State:
    """Everything the server knows between two messages.

    Attributes:
        round: Current round, from 1; 0 before the first.
        phase: Exchanges already merged in this round.
        bodies: Adapter, cores or weights by group, e.g. ``global``; a group that nobody has
            updated yet may be absent and stands for the seeded start.
        heads: Head tensors by group, e.g. ``task-sst2``.
        memory: Server optimizer moments by group.
        kept: Last round in which each partition wrote its private parts.
        deltas: What was merged into the frozen weights so far, by group.
        changes: The same round by round, as far back as some client lacks it.
        version: Last round whose merge changed what clients carry.
        delivered: Version that each partition carries.
        ranks: Ranks by module of the partitions that gave some up.
        sizes: Rows of each partition that has trained, where the method needs them later.
        clusters: Cluster of each partition, once there are any.
        prints: Fingerprint of each partition.
        asked: Last round in which fingerprints were asked for.
        askings: Exchanges in which they were, whoever answered: as far as commits know, nobody was
            asked more often.
        clustered: Last round in which all were clustered anew.
        trained: Last round in which each partition trained, where the method needs it later.
        found: How the clusters were found, in plain values.
        tails: What the last graph step cut off of each partition's model (error feedback).
        etas: The step η that each partition's cluster chose last.
        norms: Median norms of the updates of earlier exchanges, by action and kind: what the
            firewall holds the next ones against.
        measured: How far the last merge was from the exact mean.
    """

    round: int = 0
    phase: int = 0
    bodies: Mapping[str, ModelParts] = field(default_factory=dict)
    heads: Mapping[str, Tensors] = field(default_factory=dict)
    memory: Mapping[str, Mapping[str, Tensors]] = field(default_factory=dict)
    kept: Mapping[int, int] = field(default_factory=dict)
    deltas: Mapping[str, Adapter] = field(default_factory=dict)
    changes: Mapping[int, Mapping[str, Adapter]] = field(default_factory=dict)
    version: int = 0
    delivered: Mapping[int, int] = field(default_factory=dict)
    ranks: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    sizes: Mapping[int, int] = field(default_factory=dict)
    clusters: Mapping[int, int] = field(default_factory=dict)
    prints: Mapping[int, Tensors] = field(default_factory=dict)
    asked: int = 0
    askings: int = 0
    clustered: int = 0
    trained: Mapping[int, int] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)
    tails: Mapping[int, Adapter] = field(default_factory=dict)
    etas: Mapping[int, float] = field(default_factory=dict)
    norms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)


@dataclass(frozen=True)
class Served:
    """The model of one client.

    Attributes:
        key: Name of the distinct model; clients with one key hold the same tensors. It is also
            the folder the model is exported to.
        parts: All that the server knows of it, float32; parts in ``private`` are empty.
        private: Parts that only the client holds, in its vault.
        since: Round in which the client last wrote them; 0: the seeded start.
        seeded: Parts the client draws by itself instead of being sent.
        draw: Which of the seed's draws.
        sent: What travels, where that is not all of ``parts`` but the seeded ones.
        carried: Version the client holds, and the version it has with what is sent.
        sparse: Zeros of the adapter need not travel.
    """

    key: str
    parts: ModelParts
    private: frozenset[Part] = frozenset()
    since: int = 0
    seeded: frozenset[Part] = frozenset()
    draw: int = 0
    sent: ModelParts | None = None
    carried: tuple[int, int] = (0, 0)
    sparse: bool = False

    def travelling(self) -> ModelParts:
        """Return the tensors that are sent."""
        return self.parts.without(*self.seeded) if self.sent is None else self.sent
