"""Personal models on a graph of clusters: what ATLAS, its ablations and its controls share.

The server keeps every client's own adapter and head. After each round they take one step of the
graph Laplacian inside their cluster, on products and not on factors; nothing is averaged before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from atlas_flwr.aggregation.graph import Float, ones, size_weighted, star, within
from atlas_flwr.aggregation.laplacian import Step, product_step
from atlas_flwr.aggregation.laplacian_linear import tensor_step
from atlas_flwr.errors import AggregationError
from atlas_flwr.results.record import Measured
from atlas_flwr.types import Adapter, Array, ModelParts, Tensors, Update
from strategies.base import Method, State
from strategies.lora_rule import EqualRankRule

Eta = Annotated[float, Field(ge=0, le=1, strict=True)]
Absent = Literal["follow", "pull", "wait"]


class Clustered(EqualRankRule):
    """Personal adapters and heads, pulled together inside clusters by one Laplacian step a round.

    ``P_k ← P_k − (η / ñ_k) Σ_l a_kl (P_k − P_l)`` with ``P = s B A``, ñ_k = n_k / mean n and
    ``a_kl = ñ_k ñ_l / Σ ñ`` inside a cluster, written back by QR and a small SVD at each client's
    own ranks. At η = 1 this is the cluster's mean product, at η = 0 local training. The step is
    that of the clients that were drawn; the others of their clusters follow it.
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

    def absent(self) -> Absent:
        """Return what clients do that were not drawn."""
        return "follow"

    def stepping(self, state: State) -> list[int]:
        """Return who takes the step and pulls others: those of this round, or all so far."""
        if self.absent() == "pull":
            return sorted(state.sizes)
        return [p for p in sorted(state.sizes) if state.trained[p] == state.round]

    def sizes_of(self, state: State, present: Sequence[int]) -> list[float]:
        """Return what each client counts for in means: its rows."""
        return [float(state.sizes[p]) for p in present]

    def weights(self, state: State, present: Sequence[int]) -> Float:
        """Return the weight in [0, 1] at which each pair is joined: 1 inside a cluster."""
        return within(ones(len(present)), [state.clusters[p] for p in present])

    def rank_label(self, state: State, partition: int) -> int:
        """Return the rank under which a client's share of the step is told."""
        return self.setting.ranks[partition]

    def graph(self, state: State, present: Sequence[int]) -> Float:
        """Return the graph of the clients that have trained, for η up to 1."""
        sizes = self.sizes_of(state, present)
        return size_weighted(sizes, [state.clusters[p] for p in present])

    def moved(
        self,
        state: State,
        present: Sequence[int],
        graph: Float,
        sizes: Sequence[float],
        movers: Collection[int] | None = None,
    ) -> Step:
        """Return the adapters after the step η = 1 on a graph.

        Args:
            state: Holds the adapters.
            present: Clients of the graph.
            graph: Its adjacency.
            sizes: What each client counts for.
            movers: Whose adapter is wanted, by position in ``present``; None: all.
        """
        adapters = [state.bodies[f"client-{p}"].adapter for p in present]
        return product_step(adapters, graph, sizes, 1.0, self.fresh(), movers=movers)

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
        """Return the state after the step, and after those have followed who were not drawn."""
        stepped = self.taken(state)
        return self._followed(state, stepped) if self.absent() == "follow" else stepped

    def taken(self, state: State) -> State:
        """Return the state after one step of those who take it, each with its own η.

        Neighbours of different η take the smaller one on their edge: the graph stays symmetric.
        """
        present = self.stepping(state)
        edges = self.graph(state, present)
        sizes = self.sizes_of(state, present)
        shorter = _shrunk(edges, [self.eta_of(state, p) for p in present])
        moved = self.moved(state, present, shorter, sizes)
        shorter = _shrunk(edges, [self.head_eta_of(state, p) for p in present])
        heads = tensor_step(
            [state.heads[f"client-{p}"] for p in present],
            self._inside(shorter, present),
            sizes,
            1.0,
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

    def _followed(self, before: State, stepped: State) -> State:
        """Return the state in which absent clients have gone after those of their cluster.

        ``P_k ← P_k − η Σ_l c_kl (P_k − P_l)`` over the drawn clients l that k is joined to at
        weight w_kl, with ``c_kl = w_kl n_l / Σ n`` over them. At η = 1 a complete cluster's model
        is the mean of those who trained, for all of its clients, as under partial participation
        in FedAvg. Who never trained follows from its seeded start.
        """
        drawn, known = self.stepping(before), sorted(before.clusters)
        absent = [p for p in known if p not in drawn]
        if not absent:
            return stepped
        weights = self.weights(before, known)
        at = [known.index(p) for p in drawn]
        rows = np.array(self.sizes_of(before, drawn), np.float64)
        bodies, heads, tails = {**stepped.bodies}, {**stepped.heads}, {**stepped.tails}
        for client in absent:
            joined = weights[known.index(client), at]
            leaders = [p for p, weight in zip(drawn, joined, strict=True) if weight > 0]
            if not leaders:
                continue
            shares = (joined * rows)[joined > 0] / rows[joined > 0].sum()
            adapter, head, tail = self._behind(before, client, leaders, shares)
            bodies[f"client-{client}"], heads[f"client-{client}"] = adapter, head
            tails[client] = tail
        return replace(stepped, bodies=bodies, heads=heads, tails=tails)

    def _behind(
        self, state: State, client: int, leaders: Sequence[int], shares: Float
    ) -> tuple[ModelParts, Tensors, Adapter]:
        """Return a client's adapter, head and tail after it has followed its leaders.

        It is one row of a step on the star from the client to its leaders, each end of size 1.
        """
        own = self.body_for(state, client)
        lent = replace(state, bodies={**state.bodies, f"client-{client}": own})
        present = [client, *leaders]
        edges = star(shares)
        sizes = [1.0] * len(present)
        shorter = _shrunk(edges, [self.eta_of(state, p) for p in present])
        moved = self.moved(lent, present, shorter, sizes, movers=[0])
        graph = _shrunk(edges, [self.head_eta_of(state, p) for p in present])
        heads = [state.heads[f"client-{p}"] for p in present]
        head = tensor_step(heads, self._inside(graph, present), sizes, 1.0)[0]
        return ModelParts(adapter=moved.adapters[0]), head, moved.tails[0]

    def _inside(self, graph: Float, present: Sequence[int]) -> Float:
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


def _shrunk(edges: Float, etas: Sequence[float]) -> Float:
    """Return the edges at each client's η, the smaller one of two."""
    return edges * np.minimum.outer(etas, etas)
