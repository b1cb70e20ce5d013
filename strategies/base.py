"""What a method is: three pure functions over a frozen state, apart from Flower, files and clocks.

``plan(state, cohort)`` says who is asked for what, ``merge(state, updates)`` folds the answers, and
``model_for(state, partition)`` says what a client is served, scored and exported with. The defaults
below describe plain federated averaging of everything that travels; a method overrides the hook in
which it differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from atlas_flwr.aggregation.mean import GroupedMean
from atlas_flwr.config.schema import Section
from atlas_flwr.errors import ConfigError
from atlas_flwr.types import Job, ModelParts, Part, Scalar, Tensors, Update


class Options(Section):
    """Base of every method's own options, as strict as the sections of the experiment file."""


@dataclass(frozen=True)
class Setting:
    """The facts of a run that a method may use.

    Attributes:
        tasks: Task of each partition. Only heads and the oracle-like methods may read it.
        num_labels: Number of labels of each task.
        ranks: LoRA rank of each partition; empty under full fine-tuning.
        steps: Optimizer steps of one local epoch pass of each partition.
        head_policy: Which heads are averaged together.
        initial: The seeded starting model for a number of labels and a rank (0 for full).
    """

    tasks: tuple[str, ...]
    num_labels: Mapping[str, int]
    ranks: tuple[int, ...]
    steps: tuple[int, ...]
    head_policy: Literal["shared", "per_task", "local"]
    initial: Mapping[tuple[int, int], ModelParts]

    @property
    def clients(self) -> int:
        """The number of partitions."""
        return len(self.tasks)

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
        bodies: Adapter or weights (no head) by group, e.g. ``global``.
        heads: Head tensors by group, e.g. ``task-sst2``.
        memory: Server optimizer moments by group.
        kept: Last round in which each partition wrote its private parts.
    """

    round: int = 0
    phase: int = 0
    bodies: Mapping[str, ModelParts] = field(default_factory=dict)
    heads: Mapping[str, Tensors] = field(default_factory=dict)
    memory: Mapping[str, Mapping[str, Tensors]] = field(default_factory=dict)
    kept: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Served:
    """The model of one client.

    Attributes:
        key: Name of the distinct model; clients with one key hold the same tensors. It is also
            the folder the model is exported to.
        parts: What the server holds of it; kinds in ``private`` are empty.
        private: Kinds that only the client holds, in its vault.
        since: Round in which the client last wrote them; 0: the seeded start.
    """

    key: str
    parts: ModelParts
    private: frozenset[Part] = frozenset()
    since: int = 0


class Method:
    """Federated averaging of everything that travels; the base of the others."""

    options_type: ClassVar[type[Options]] = Options
    summary: ClassVar[str] = ""
    mixed_ranks: ClassVar[bool] = False

    def __init__(self, setting: Setting, options: Options) -> None:
        self.setting = setting
        self.options = options
        self.check()

    def check(self) -> None:
        """Refuse a setting the method is not defined for.

        Raises:
            ConfigError: Names the key, the value and what to use instead.
        """
        ranks = sorted(set(self.setting.ranks))
        if len(ranks) > 1 and not self.mixed_ranks:
            raise ConfigError(
                f"lora.rank: this strategy averages LoRA factors of one rank, got ranks {ranks}; "
                "set one rank, or strategy.name = 'local_only'"
            )
        spaces = {self.setting.num_labels[task] for task in self.setting.tasks}
        if self.setting.head_policy == "shared" and len(spaces) > 1:
            raise ConfigError(
                f"model.head: 'shared' needs one number of labels, the tasks have {sorted(spaces)};"
                " use 'per_task' or 'local'"
            )

    # -------------------------------------------------------------- who shares what

    def body_key(self, partition: int) -> str:
        """Return the group whose body the partition shares."""
        return "global"

    def head_key(self, partition: int) -> str:
        """Return the group whose head the partition shares, or its own under ``local``."""
        match self.setting.head_policy:
            case "shared":
                return "global"
            case "per_task":
                return f"task-{self.setting.tasks[partition]}"
            case "local":
                return f"client-{partition}"

    def private(self) -> frozenset[Part]:
        """Return the kinds that never leave the client."""
        return frozenset({"head"}) if self.setting.head_policy == "local" else frozenset()

    def job_options(self, state: State) -> Mapping[str, Scalar]:
        """Return the method's numbers for the clients."""
        return {}

    # -------------------------------------------------------------- the three functions

    def start(self) -> State:
        """Return the state before round 1: the seeded initial models."""
        bodies: dict[str, ModelParts] = {}
        heads: dict[str, Tensors] = {}
        private = self.private()
        for partition in range(self.setting.clients):
            initial = self.setting.initial_for(partition).without(*private)
            if initial.adapter or initial.weights:
                bodies.setdefault(self.body_key(partition), initial.without("head"))
            if initial.head:
                heads.setdefault(self.head_key(partition), initial.head)
        return State(bodies=bodies, heads=heads)

    def plan(self, state: State, cohort: Sequence[int]) -> list[Job] | None:
        """Return the round's next jobs, or None when the round's exchanges are done."""
        if state.phase:
            return None
        return [self.train_job(state, partition) for partition in cohort]

    def train_job(self, state: State, partition: int) -> Job:
        """Return the plain job: train what the client is served."""
        served = self.model_for(state, partition)
        return Job(
            partition=partition,
            action="train",
            round=state.round,
            parts=served.parts,
            private=served.private,
            since=served.since,
            options=self.job_options(state),
        )

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Fold the answers: the example-weighted mean of each group; absent groups stay."""
        bodies, heads, kept = GroupedMean(), GroupedMean(), dict(state.kept)
        for update in updates:
            weight = update.report.num_examples
            bodies.add(self.body_key(update.partition), update.parts.body(), weight)
            heads.add(self.head_key(update.partition), update.parts.head, weight)
            if self.private():
                kept[update.partition] = state.round
        merged = replace(state, phase=state.phase + 1, kept=kept)
        return self.step(merged, bodies.results(), heads.results())

    def step(
        self, state: State, bodies: Mapping[str, Tensors], heads: Mapping[str, Tensors]
    ) -> State:
        """Move from the groups' previous tensors to the next, given the clients' means."""
        new = {key: state.bodies[key].with_body(mean) for key, mean in bodies.items()}
        return replace(state, bodies={**state.bodies, **new}, heads={**state.heads, **heads})

    def model_for(self, state: State, partition: int) -> Served:
        """Return the client's model: its body group's tensors under its head group's."""
        private = self.private()
        body = state.bodies.get(self.body_key(partition), ModelParts())
        head = state.heads.get(self.head_key(partition), {})
        keys = {self.body_key(partition), self.head_key(partition)} - {"global"}
        key = f"client-{partition}" if private else (keys.pop() if keys else "global")
        return Served(key, replace(body, head=head), private, state.kept.get(partition, 0))
