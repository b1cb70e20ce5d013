"""Personal models on a graph of clusters: what ATLAS, its ablations and its controls share.

The server keeps every client's own adapter and head. After each round they take one step of the
graph Laplacian inside their cluster, on products and not on factors; nothing is averaged before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from atlas_flwr.aggregation.graph import Float, size_weighted
from atlas_flwr.aggregation.laplacian import Step, product_step
from atlas_flwr.aggregation.laplacian_linear import tensor_step
from atlas_flwr.errors import AggregationError
from atlas_flwr.results.record import Measured
from atlas_flwr.types import Adapter, Array, ModelParts, Tensors, Update
from strategies.base import Method, State
from strategies.lora_rule import EqualRankRule

Eta = Annotated[float, Field(ge=0, le=1, strict=True)]


class Clustered(EqualRankRule):
    """Personal adapters and heads, pulled together inside clusters by one Laplacian step a round.

    ``P_k ← P_k − (η / ñ_k) Σ_l a_kl (P_k − P_l)`` with ``P = s B A``, ñ_k = n_k / mean n and
    ``a_kl = ñ_k ñ_l / Σ ñ`` inside a cluster, written back by QR and a small SVD at each client's
    own ranks. At η = 1 this is the cluster's mean product, at η = 0 local training. Models of
    clients that were not drawn take the step with what they last had; who never trained takes no
    part.
    """

    mixed_ranks = True
    cuts = False
    head = "personal"

    # -------------------------------------------------------------- what a subclass may change

    def eta_of(self, state: State, partition: int) -> float:
        """Return a client's step η: 0 leaves it alone, 1 gives it its cluster's weighted mean."""
        raise NotImplementedError

    def head_eta_of(self, state: State, partition: int) -> float:
        """Return the step of a client's head: its adapter's."""
        return self.eta_of(state, partition)

    def stepping(self, state: State) -> list[int]:
        """Return who takes the step and pulls others: all who have trained so far."""
        return sorted(state.sizes)

    def rank_label(self, state: State, partition: int) -> int:
        """Return the rank under which a client's share of the step is told."""
        return self.setting.ranks[partition]

    def graph(self, state: State, present: Sequence[int]) -> Float:
        """Return the graph of the clients that have trained, for η up to 1."""
        sizes = [float(state.sizes[p]) for p in present]
        return size_weighted(sizes, [state.clusters[p] for p in present])

    def moved(
        self, state: State, present: Sequence[int], graph: Float, sizes: Sequence[float]
    ) -> Step:
        """Return the adapters after the step η = 1 on a graph."""
        adapters = [state.bodies[f"client-{p}"].adapter for p in present]
        return product_step(adapters, graph, sizes, 1.0, self.fresh())

    # -------------------------------------------------------------- personal models

    def body_key(self, partition: int) -> str:
        """Name the client's own group: the server keeps its personal adapter."""
        return f"client-{partition}"

    def name_of(self, partition: int) -> str:
        """Name the personal model."""
        return f"client-{partition}"

    def head_key(self, partition: int) -> str:
        """Name the client's own group: the server keeps its personal head."""
        return f"client-{partition}"

    def received(self, state: State, update: Update) -> ModelParts:
        """Return the client's adapter; a personal model can't do without a module.

        Raises:
            AggregationError: A module is missing.
        """
        body = super().received(state, update)
        own = self.setting.initial_for(update.partition).adapter
        if odd := sorted(own.keys() ^ body.adapter.keys()):
            raise AggregationError(f"{odd[0]}: a personal model came without it")
        return body

    def effective(self, state: State, partition: int, body: ModelParts) -> Adapter:
        """Return nothing: personal models have no mean to be compared with."""
        return {}

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Take the trained models and step; there is no mean to measure."""
        tally, noted = self.tally(state, updates)
        merged = replace(noted, phase=state.phase + 1)
        return self.step(merged, tally.bodies(), tally.heads())

    def note(self, state: State, update: Update) -> State:
        """Note how many rows the client has, and that it has trained."""
        rows = {**state.sizes, update.partition: update.report.num_examples}
        return replace(state, sizes=rows, trained={**state.trained, update.partition: state.round})

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the trained models as they came, then one step along the graph."""
        trained = Method.step(self, state, bodies, heads)
        return self.along_the_graph(trained) if bodies else trained

    # -------------------------------------------------------------- the step

    def along_the_graph(self, state: State) -> State:
        """Return the state after one step of all who have trained, each with its own η.

        Neighbours of different η take the smaller one on their edge: the graph stays symmetric.
        """
        present = self.stepping(state)
        edges = self.graph(state, present)
        sizes = [float(state.sizes[p]) for p in present]
        shorter = shrunk(edges, [self.eta_of(state, p) for p in present])
        moved = self.moved(state, present, shorter, sizes)
        shorter = shrunk(edges, [self.head_eta_of(state, p) for p in present])
        heads = tensor_step(
            [state.heads[f"client-{p}"] for p in present], self.inside(shorter, present), sizes, 1.0
        )
        bodies = {
            f"client-{p}": ModelParts(adapter=adapter)
            for p, adapter in zip(present, moved.adapters, strict=True)
        }
        own = {f"client-{p}": head for p, head in zip(present, heads, strict=True)}
        shares = {p: t.share for p, t in zip(present, moved.truncations, strict=True)}
        return replace(
            state,
            bodies={**state.bodies, **bodies},
            heads={**state.heads, **own},
            tails={**state.tails, **dict(zip(present, moved.tails, strict=True))},
            measured=Measured(step_loss=self._by_rank(state, shares)),
        )

    def inside(self, graph: Float, present: Sequence[int]) -> Float:
        """Return the edges inside label spaces: other heads are of another shape."""
        spaces = np.array(self.spaces())[list(present)]
        return np.where(np.equal.outer(spaces, spaces), graph, 0.0)

    def fresh(self) -> dict[str, Array]:
        """Return the seeded rows of A at the highest rank, by module."""
        fresh: dict[str, Array] = {}
        for initial in self.setting.initial.values():
            for module, factors in initial.adapter.items():
                fresh[module] = max(fresh.get(module, factors.a), factors.a, key=len)
        return fresh

    def _by_rank(self, state: State, shares: Mapping[int, float]) -> dict[str, float | None]:
        """Return the mean share ρ of the step that receivers of each rank had to cut."""
        ranks = {p: self.rank_label(state, p) for p in shares}
        return {
            str(rank): float(np.mean([share for p, share in shares.items() if ranks[p] == rank]))
            for rank in sorted(set(ranks.values()))
        }

    def spaces(self) -> list[int]:
        """Return the label space of each partition: spaces are never joined."""
        return [self.setting.num_labels[task] for task in self.setting.tasks]


def shrunk(edges: Float, etas: Sequence[float]) -> Float:
    """Return the edges at each client's η, the smaller one of two."""
    return edges * np.minimum.outer(etas, etas)
