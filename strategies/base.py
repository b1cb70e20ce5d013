"""What a method is: three pure functions over a frozen state, apart from Flower, files and clocks.

``plan(state, cohort)`` says who is asked for what, ``merge(state, updates)`` folds the answers, and
``model_for(state, partition)`` says what a client is served, scored and exported with. The defaults
below describe plain federated averaging of everything that travels; a method overrides the hook in
which it differs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from atlas_flwr.config.sections import Section
from atlas_flwr.errors import ConfigError
from atlas_flwr.results.record import Measured
from atlas_flwr.types import (
    FACTORS,
    PARTS,
    Adapter,
    Job,
    ModelParts,
    Part,
    Scalar,
    Stage,
    Tensors,
    Update,
)
from strategies.folds import FlatMean, Fold, Tally
from strategies.measuring import measured
from strategies.state import Served, Setting, State

__all__ = ["Method", "Options", "Served", "Setting", "State"]


class Options(Section):
    """Base of every method's own options, as strict as the sections of the experiment file."""


class Method:
    """Federated averaging of everything that travels; the base of the others.

    Attributes:
        options_type: The method's own options.
        summary: One line for ``atlas list``.
        mixed_ranks: Whether clients may have different LoRA ranks.
        needs_lora: Whether it is defined for LoRA alone.
        cuts: Whether receivers of different ranks hold different cuts of the merged adapter.
        head: The only head policy the method has, where it has but one.
    """

    options_type: ClassVar[type[Options]] = Options
    summary: ClassVar[str] = ""
    mixed_ranks: ClassVar[bool] = False
    needs_lora: ClassVar[bool] = False
    cuts: ClassVar[bool] = True
    head: ClassVar[Literal["personal", "local"] | None] = None

    def __init__(self, setting: Setting, options: Options) -> None:
        self.setting = setting
        self.options = options
        self.check()

    @classmethod
    def widest(cls, options: Options) -> int:
        """Return the highest rank the method may give by itself; 0 if it gives none."""
        return 0

    def check(self) -> None:
        """Refuse a setting the method is not defined for.

        Raises:
            ConfigError: Names the key, the value and what to use instead.
        """
        if self.needs_lora and not self.setting.ranks:
            raise ConfigError(
                "model.adaptation: this strategy merges LoRA factors, got 'full'; set 'lora', or "
                "strategy.name = 'fedavg'"
            )
        ranks = sorted(set(self.setting.ranks))
        if len(ranks) > 1 and not self.mixed_ranks:
            raise ConfigError(
                "lora.rank / devices.profiles: this strategy averages LoRA factors of one rank, "
                f"got ranks {ranks}; "
                "set one rank, or a strategy.name that takes several: 'flexlora', 'flora', "
                "'hetlora', 'rbla', 'raflora', 'ffa', 'fedsa', 'fedsb', 'atlas', 'fedmedian', "
                "'fedtrimmedavg', 'multikrum', 'norm_clip'"
            )
        spaces = {self.setting.num_labels[task] for task in self.setting.tasks}
        if self.setting.head_policy == "shared" and len(spaces) > 1:
            raise ConfigError(
                f"model.head: 'shared' needs one number of labels, the tasks have {sorted(spaces)};"
                " use 'per_task' or 'local'"
            )

    def opening(self) -> tuple[str, ...]:
        """Return what whoever starts the run should read, a line each."""
        return ()

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
            case "personal" | "local":
                return f"client-{partition}"

    def private(self) -> frozenset[Part]:
        """Return the parts that never leave the client."""
        return frozenset({"head"}) if self.setting.head_policy == "local" else frozenset()

    def returns(self, state: State) -> frozenset[Part]:
        """Return the parts that come back from training, private ones excepted."""
        return frozenset(PARTS)

    def stages(self, state: State) -> tuple[Stage, ...]:
        """Return what a client trains, stretch by stretch."""
        return (Stage(),)

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

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Fold the answers: the example-weighted mean of each group; absent groups stay."""
        tally, noted = self.tally(state, updates)
        merged = replace(noted, phase=state.phase + 1)
        new = self.step(merged, tally.bodies(), tally.heads())
        measured = self.measure(new, tally.exact())
        if lost := tally.lost():
            measured = replace(measured, compression_error={"stack": lost})
        return replace(new, measured=measured)

    def model_for(self, state: State, partition: int) -> Served:
        """Return the client's model: its body group's tensors under its head group's."""
        private = self.private()
        body = self.body_for(state, partition).without(*private)
        head = {} if "head" in private else state.heads.get(self.head_key(partition), {})
        parts = replace(body.single(), head=head)
        return Served(self.name_of(partition), parts, private, state.kept.get(partition, 0))

    # -------------------------------------------------------------- parts of the merge

    def note(self, state: State, update: Update) -> State:
        """Return the state with what is to be remembered of one client's answer."""
        if not self.private():
            return state
        return replace(state, kept={**state.kept, update.partition: state.round})

    def tally(self, state: State, updates: Iterator[Update]) -> tuple[Tally, State]:
        """Fold the answers' bodies, heads and products one client at a time, and note them."""
        tally, noted = Tally(self.fold), state
        for update in updates:
            noted = self.note(noted, update)
            partition, weight = update.partition, update.report.num_examples
            body, group = self.received(state, update), self.body_key(partition)
            if body.shapes():  # the fold refuses what has no mean, before anything is computed
                tally.body(group, body, weight)
                tally.products(group, self.effective(state, partition, body), weight)
            tally.head(self.head_key(partition), update.parts.head, weight)
        return tally, noted

    def fold(self, group: str) -> Fold:
        """Return a new merge of a group's bodies."""
        return FlatMean()

    def received(self, state: State, update: Update) -> ModelParts:
        """Return an update's body, completed with the factors that had no need to travel."""
        body = update.parts.without("head")
        known = self.model_for(state, update.partition).parts.only(*FACTORS)
        factors = {m: f for m, f in known.adapter.items() if m in body.adapter}
        return body.filled(ModelParts(adapter=factors)) if body.adapter else body

    def effective(self, state: State, partition: int, body: ModelParts) -> Adapter:
        """Return the adapter whose products are the client's updates; empty if none is known."""
        return body.adapter

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Move from the groups' previous tensors to the next, given the clients' merge."""
        return replace(state, bodies={**state.bodies, **bodies}, heads={**state.heads, **heads})

    def body_for(self, state: State, partition: int) -> ModelParts:
        """Return a client's body as the server has it for that client, before rounding."""
        return state.bodies.get(self.body_key(partition), ModelParts())

    def whole(self, state: State, partition: int) -> ModelParts:
        """Return the seeded model the client starts from."""
        return self.setting.initial_for(partition)

    def name_of(self, partition: int) -> str:
        """Return the name of the client's model: clients with one name hold the same tensors."""
        if self.private():
            return f"client-{partition}"
        keys = {self.body_key(partition), self.head_key(partition)} - {"global"}
        name = keys.pop() if keys else "global"
        rank = f"-rank-{self.setting.ranks[partition]}" if self.cuts and self.setting.mixed else ""
        return name + rank

    # -------------------------------------------------------------- how good the merge was

    def applied(self, state: State, group: str) -> Adapter:
        """Return the change the last merge applied to a group, float64, before any truncation."""
        return state.bodies[group].adapter

    def held(self, state: State, partition: int) -> Adapter:
        """Return as much of ``applied`` as the client's model holds, before rounding."""
        return self.body_for(state, partition).adapter

    def gained(self, state: State, group: str) -> Adapter:
        """Return the whole change of a group's model since the checkpoint, as ``applied`` is."""
        return self.applied(state, group)

    def rank_of(self, state: State, partition: int) -> int:
        """Return the rank that stands for a receiver's ranks: the one its adapter began with."""
        return self.setting.ranks[partition]

    def measure(self, state: State, exact: Mapping[str, Adapter]) -> Measured:
        """Return how far the merge is from the exact mean, and the receivers from the merge."""
        return measured(self, state, exact)

    def explain(self, state: State) -> Mapping[str, Any]:
        """Return how the clusters were found, in plain values; empty without clusters."""
        return state.found

    # -------------------------------------------------------------- jobs

    def train_job(self, state: State, partition: int) -> Job:
        """Return the plain job: train what the client is served."""
        job = self.job(state, partition, "train")
        returns, whole = self.returns(state), self.whole(state, partition)
        return replace(
            job,
            stages=self.stages(state),
            returns=returns,
            expects=whole.without(*job.private).only(*returns).shapes(),
            options=self.job_options(state),
        )

    def job(
        self, state: State, partition: int, action: str, rows: Literal["own", "full"] = "own"
    ) -> Job:
        """Return the job that hands a client its model."""
        served = self.model_for(state, partition)
        return Job(
            partition=partition,
            action=action,
            round=state.round,
            parts=served.travelling(),
            private=served.private,
            since=served.since,
            seeded=served.seeded,
            draw=served.draw,
            carried=served.carried,
            sparse=served.sparse,
            rows=rows,
        )

    def acknowledged(self, state: State, jobs: Collection[Job]) -> State:
        """Note which version the clients that answered carry now."""
        new = {job.partition: job.carried[1] for job in jobs if job.carried[1]}
        return replace(state, delivered={**state.delivered, **new}) if new else state
