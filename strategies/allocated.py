"""Ranks by module under each client's budget, from what its cluster's gradients say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from atlas_flwr.aggregation.products import shape_of
from atlas_flwr.errors import AggregationError, ConfigError
from atlas_flwr.ranks.allocate import allocate, backwards, shuffled, uniform
from atlas_flwr.ranks.budget import Grant, cost, rank_costs
from atlas_flwr.ranks.importance import IMPORTANCE, mean_gains, utilities
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Array, LoraFactors, ModelParts, Scalar, Tensors
from strategies.asking import Asking, AskingOptions
from strategies.base import Options, State
from strategies.fingerprinted import FingerprintOptions

How = Literal["importance", "uniform", "random", "reversed", "fixed"]


class RankOptions(AskingOptions):
    """Options of the ranks."""

    ranks: How = "importance"
    """``importance``: each rank of each module by the share of the cluster's gradient energy it
    captures for its bytes; ``uniform``: equal ranks; ``random``, ``reversed``: importances dealt to
    the wrong modules (controls). All spend the client's budget and no more, but for ranks that
    nobody measured any gain of. ``fixed``: the ranks of
    ``lora.rank`` or the device, with ``lora.rank-pattern``."""
    max_rank: Annotated[int, Field(ge=1, le=256, strict=True)] = 32
    """Highest rank a module may get."""


class PrintedRankOptions(RankOptions, FingerprintOptions):
    """Options of fingerprints and ranks together."""

    @model_validator(mode="after")
    def _noise_hides_no_importance(self) -> Self:
        if self.noise and self.ranks not in ("uniform", "fixed"):
            raise ValueError(
                f"noise: {self.noise:g} covers the fingerprint and not the gradients that ranks = "
                f"'{self.ranks}' needs; set strategy.options.ranks = 'uniform'"
            )
        return self


class Allocated(Asking):
    """Clustered clients whose modules get the ranks that pay most in the bytes they may spend.

    With the fingerprint every client sends the leading singular values of its mean gradient with
    respect to each adapted weight, at the shared, seeded model; the server averages what each
    rank captures over a cluster, and fills each member's budget by a greedy knapsack (``ranks``).
    Ranks are given once: a client that changes its cluster later keeps them.
    """

    options_type: ClassVar[type[Options]] = RankOptions
    options: RankOptions

    @classmethod
    def widest(cls, options: Options) -> int:
        """Return the highest rank a module may get; 0 where ranks are those of the setting."""
        assert isinstance(options, RankOptions)
        return 0 if options.ranks == "fixed" else options.max_rank

    def check(self) -> None:
        """Refuse ranks fixed by module, and budgets that can't hold rank 1 everywhere."""
        super().check()
        top = self.options.max_rank
        if self.options.ranks == "fixed":
            if top != RankOptions().max_rank:
                raise ConfigError(
                    f"strategy.options.max-rank: {top} bounds ranks that are given, and ranks = "
                    "'fixed' are lora.rank's; remove one of the two"
                )
            return
        for partition, base in enumerate(self.setting.ranks):
            if base > top:
                raise ConfigError(
                    f"strategy.options.max-rank: {top} is below the rank {base} of partition "
                    f"{partition}, whose bytes could not be spent; raise it"
                )
            if {*self.setting.initial_for(partition).ranks().values()} != {base}:
                raise ConfigError(
                    "lora.rank-pattern: fixes ranks by module, which this strategy allocates; "
                    "remove it, or set strategy.options.ranks = 'fixed'"
                )
            least = sum(self.costs(partition).values())
            if (grant := self._grant(partition)).params < least:
                raise ConfigError(
                    f"devices.profiles: '{grant.device}' affords {grant.params} adapter parameters "
                    f"({grant.by}), rank 1 of every module needs {least}; raise its budget"
                )

    # -------------------------------------------------------------- the models

    def whole(self, state: State, partition: int) -> ModelParts:
        """Return the seeded start at the ranks the client was given."""
        start = super().whole(state, partition)
        ranks = state.ranks.get(partition)
        if ranks is None:
            return start
        wide = self._widest(partition).adapter
        return replace(start, adapter={m: self._cut(wide[m], ranks[m]) for m in start.adapter})

    def _cut(self, wide: LoraFactors, rank: int) -> LoraFactors:
        """Return the first rows of nested seeded factors, at their rank's scale."""
        return LoraFactors(wide.a[:rank], wide.b[:, :rank], self.setting.scales[rank])

    def _widest(self, partition: int) -> ModelParts:
        labels = self.setting.num_labels[self.setting.tasks[partition]]
        return self.setting.initial[labels, self.options.max_rank]

    def rank_label(self, state: State, partition: int) -> int:
        """Return the equal rank that costs what the client's ranks cost, rounded."""
        ranks = state.ranks.get(partition)
        if ranks is None:
            return super().rank_label(state, partition)
        costs = self.costs(partition)
        return round(cost(ranks, costs) / sum(costs.values()))

    # -------------------------------------------------------------- the ranks

    def fingerprint_options(self) -> dict[str, Scalar]:
        """Ask for the gradients' singular values too, where they are needed."""
        told = super().fingerprint_options()
        return {**told, "importance-rank": self.options.max_rank} if self._measured else told

    @property
    def _measured(self) -> bool:
        """Whether clients have to measure their gradients."""
        return self.options.ranks not in ("uniform", "fixed")

    def told(self, state: State, rows: Mapping[int, int]) -> State:
        """Return the state with ranks for those who have none yet."""
        state = super().told(state, rows)
        if self.options.ranks == "fixed":
            return state
        gains = self._gains(state)
        new = {
            p: self._ranks(p, gains.get(state.clusters[p]))
            for p in state.prints
            if p not in state.ranks
        }
        state = replace(state, ranks={**state.ranks, **new})
        return replace(state, found={**state.found, "ranks": self._facts(state, gains)})

    def _gains(self, state: State) -> dict[int, dict[str, list[float]]]:
        """Return what each rank of each module captures, by cluster: the mean of its clients'."""
        if not self._measured:
            return {}
        by_cluster: dict[int, list[dict[str, list[float]]]] = {}
        for partition, print_ in state.prints.items():
            own = utilities(self._spectra(partition, print_))
            by_cluster.setdefault(state.clusters[partition], []).append(own)
        return {cluster: mean_gains(each) for cluster, each in by_cluster.items()}

    def _spectra(self, partition: int, told: Tensors) -> dict[str, Array]:
        """Return a client's singular values by module, no more than the module can have ranks."""
        tops, shape = self._tops(partition), told.get(IMPORTANCE, np.empty(0)).shape
        if shape != (len(tops), self.options.max_rank):
            raise AggregationError(
                f"partition {partition}: told singular values of shape {shape}, "
                f"{(len(tops), self.options.max_rank)} was asked for"
            )
        return {m: row[: tops[m]] for m, row in zip(tops, told[IMPORTANCE], strict=True)}

    def _ranks(self, partition: int, gains: Mapping[str, list[float]] | None) -> dict[str, int]:
        """Return the ranks of a client's modules: its whole budget, spent as the option says."""
        costs, budget = self.costs(partition), self._grant(partition).params
        if gains is None:
            return uniform(costs, budget, self._tops(partition))
        match self.options.ranks:
            case "random":
                rng = rng_for(self.setting.seed, "ranks", 0, partition)
                return allocate(shuffled(gains, rng), costs, budget)
            case "reversed":
                return allocate(backwards(gains), costs, budget)
            case _:
                return allocate(gains, costs, budget)

    def shapes(self, partition: int) -> dict[str, tuple[int, int]]:
        """Return ``(d_out, d_in)`` of each adapted module."""
        adapter = self._widest(partition).adapter
        return {m: shape_of(f) for m, f in adapter.items()}

    def _tops(self, partition: int) -> dict[str, int]:
        shapes = self.shapes(partition)
        return {m: min(self.options.max_rank, *shape) for m, shape in shapes.items()}

    def costs(self, partition: int) -> dict[str, int]:
        """Return what one rank of each module costs in parameters that are trained and sent."""
        return rank_costs(self.shapes(partition))

    def frozen(self, partition: int, ranks: Mapping[str, int]) -> int:
        """Return how many parameters of an adapter are held and not trained."""
        return 0

    def _grant(self, partition: int) -> Grant:
        """Return what a client may spend: what its own ranks cost, where no device says more."""
        if self.setting.grants:
            return self.setting.grants[partition]
        ranks = self.setting.initial_for(partition).ranks()
        return Grant(cost(ranks, rank_costs(self.shapes(partition))))

    def _facts(
        self, state: State, gains: Mapping[int, Mapping[str, list[float]]]
    ) -> dict[str, Any]:
        """Return the ranks and why, in plain values."""
        return {
            "how": self.options.ranks,
            "clients": {str(p): self._fact(state, p) for p in sorted(state.ranks)},
            IMPORTANCE: {
                str(cluster): {m: float(np.sum(each)) for m, each in by_module.items()}
                for cluster, by_module in sorted(gains.items())
            },
        }

    def _fact(self, state: State, partition: int) -> dict[str, Any]:
        grant, ranks = self._grant(partition), state.ranks[partition]
        used = cost(ranks, self.costs(partition))
        memory = grant.memory(used, sum(ranks.values()), self.frozen(partition, ranks))
        return {
            "device": grant.device,
            "cluster": state.clusters[partition],
            "allowed": grant.params,
            "by": grant.by,
            "each": dict(grant.each),
            "used": used,
            "ranks": dict(ranks),
            "predicted_memory_mb": None if memory is None else memory / 1e6,
        }
