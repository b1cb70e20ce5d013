"""HetLoRA and RBLA: factors of mixed ranks, padded or averaged over their owners."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from atlas_flwr.aggregation.factors import truncate
from atlas_flwr.aggregation.padded import OwnerMean, PaddedMean, by_examples, by_norm
from atlas_flwr.types import Job, ModelParts, Scalar, Tensors, Update
from strategies.base import Options, Served, State
from strategies.folds import Fold, OfAdapters
from strategies.lora_rule import LoraRule


class HetLoraOptions(Options):
    """Options of HetLoRA."""

    weights: Literal["norm", "examples"] = "norm"
    """``norm``: by ``‖s B A‖_F`` of the client, as published; ``examples``: by its rows."""
    prune_keep: Annotated[float, Field(gt=0, le=1, strict=True)] = 1.0
    """γ: share of its ranks a client keeps when it prunes itself; 1 is no pruning."""
    prune_penalty: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 0.0
    """λ: weight of the penalty on the ranks that would go."""


class HetLora(LoraRule):
    """Truncate out, zero-pad in, average A and B apart (Cho et al., EMNLP 2024).

    Clients get the first r_k rows of the merged A and columns of B, whatever they hold, for rows
    are not ordered. Padding dilutes rows that few clients own (``aggregation.padded``).
    """

    options_type = HetLoraOptions
    options: HetLoraOptions
    summary = "truncate out, zero-pad in, weights by update norm; optional self-pruning"

    def fold(self, group: str) -> Fold:
        """Pad with zeros to the highest rank."""
        return OfAdapters(PaddedMean(by_norm if self.options.weights == "norm" else by_examples))

    def plan(self, state: State, cohort: Sequence[int]) -> list[Job] | None:
        """Ask clients to prune themselves where that is switched on."""
        jobs = super().plan(state, cohort)
        if jobs is None or self.options.prune_keep == 1.0:
            return jobs
        return [self._pruning(job) for job in jobs]

    def _pruning(self, job: Job) -> Job:
        """Return the job as one that may give up ranks; those given up are not expected back."""
        expects = {**job.expects, **job.parts.without("head").shapes()}
        return replace(job, action="train.prune", expects=expects, shrinks=True)

    def model_for(self, state: State, partition: int) -> Served:
        """Name the model of who gave up ranks apart from those of its base rank."""
        served = super().model_for(state, partition)
        own = self.setting.initial_for(partition).ranks()
        left = state.ranks.get(partition, own)
        if left == own or self.private():
            return served
        widths = set(left.values())
        key = f"{served.key}-pruned-{min(widths)}" if len(widths) == 1 else f"client-{partition}"
        return replace(served, key=key)

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the merged adapters without the rows that no client has left."""
        new = super().step(state, bodies, heads)
        if self.options.prune_keep == 1.0:
            return new
        cut = {group: self._in_use(new, group) for group in bodies}
        return replace(new, bodies={**new.bodies, **cut})

    def _in_use(self, state: State, group: str) -> ModelParts:
        """Return a group's adapter at the highest rank that one of its clients has left."""
        members = [p for p in range(self.setting.clients) if self.body_key(p) == group]
        left = [state.ranks.get(p) or self.setting.initial_for(p).ranks() for p in members]
        body = state.bodies[group]
        widest = {m: min(f.rank, max(r[m] for r in left)) for m, f in body.adapter.items()}
        return replace(body, adapter={m: truncate(body.adapter[m], r) for m, r in widest.items()})

    def rank_of(self, state: State, partition: int) -> int:
        """Return the rank that the client has left where it began with its base rank."""
        base, own = super().rank_of(state, partition), self.setting.initial_for(partition).ranks()
        left = state.ranks.get(partition, own)
        return max((left[m] for m, rank in own.items() if rank == base), default=base)

    def job_options(self, state: State) -> Mapping[str, Scalar]:
        """Send γ and λ."""
        if self.options.prune_keep == 1.0:
            return {}
        return {
            "prune-keep": self.options.prune_keep,
            "prune-penalty": self.options.prune_penalty,
        }

    def note(self, state: State, update: Update) -> State:
        """Note the ranks that the client has left."""
        state = super().note(state, update)
        if self.options.prune_keep == 1.0:
            return state
        return replace(state, ranks={**state.ranks, update.partition: update.parts.ranks()})


class Rbla(LoraRule):
    """Row j of A and column j of B are averaged over the clients that own them.

    RBLA (arXiv 2408.08699): no dilution by zeros, and as inexact as any mean of factors.
    """

    summary = "each row of A and column of B averaged over its owners"

    def fold(self, group: str) -> Fold:
        """Average over owners."""
        return OfAdapters(OwnerMean())
