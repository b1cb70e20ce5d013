"""Which graph joins the clients, and on what the step along it is taken."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from atlas_flwr.aggregation.graph import Float, knn, rbf, self_weighted, within
from atlas_flwr.aggregation.laplacian import Step, Truncation, product_step
from atlas_flwr.aggregation.laplacian_linear import factor_step, ffa_step
from atlas_flwr.errors import ConfigError
from atlas_flwr.fingerprint.distance import distances
from atlas_flwr.ranks.budget import Grant
from atlas_flwr.types import Part, Stage
from strategies.allocated import Allocated, RankOptions
from strategies.base import Options, Served, State
from strategies.clustered import Absent

TRAINED: frozenset[Part] = frozenset({"lora_B", "head"})  # where A is frozen


class GraphOptions(RankOptions):
    """Options of the graph and of the step along it."""

    graph: Literal["complete", "rbf", "knn"] = "complete"
    """Edges: ``complete`` joins all of a cluster by their rows, so that η = 1 is their weighted
    mean; ``rbf`` weighs pairs by ``exp(−d² / h²)`` of their fingerprints' distance, h the median
    over all pairs and no less than the noise of one; ``knn`` keeps of those each client's nearest
    ones. A client counts itself as one more neighbour at weight 1, so that weights of 1 are
    ``complete``'s."""
    neighbours: Annotated[int, Field(ge=1, strict=True)] = 3
    """Clients that each one chooses under ``knn``; the other graphs don't read it."""
    cross: Annotated[float, Field(ge=0, le=1, strict=True)] = 0.0
    """Weight of edges between clusters of a label space, beside 1 for those inside
    (``rbf`` and ``knn``)."""
    variant: Literal["product", "factor", "ffa"] = "product"
    """What the step is taken on: ``product`` is s B A, written back at each client's ranks;
    ``factor`` is A and B apart (MIRA's, one rank); ``ffa`` is B over a frozen, shared A, exact."""
    absent: Absent = "follow"
    """Clients that were not drawn: ``follow`` takes them η of the way to those of their cluster who
    were, by rows, and lets them pull nobody; ``pull`` lets their last models take the step as if
    they had just trained; ``wait`` leaves them alone until they train again."""
    error_feedback: bool = False
    """Whether what the ranks cut off a step is added to the next one (``product``)."""


class Walking(Allocated):
    """Personal models that step along the graph of their options."""

    options_type: ClassVar[type[Options]] = GraphOptions
    options: GraphOptions

    def check(self) -> None:
        """Refuse options that have no meaning together."""
        super().check()
        options = self.options
        if options.variant == "factor" and (options.ranks != "fixed" or self.setting.mixed):
            raise ConfigError(
                "strategy.options.variant: 'factor' steps A and B apart, which needs one rank; "
                "set strategy.options.ranks = 'fixed' and one lora.rank, or variant = 'product'"
            )
        if options.error_feedback and options.variant != "product":
            raise ConfigError(
                f"strategy.options.error-feedback: variant '{options.variant}' keeps no tail; "
                "remove it, or set variant = 'product'"
            )
        if options.cross and options.graph == "complete":
            raise ConfigError(
                f"strategy.options.cross: {options.cross}, but a 'complete' graph ends at its "
                "clusters; set strategy.options.graph = 'rbf' or 'knn'"
            )

    @property
    def _frozen(self) -> bool:
        """Whether A is frozen and shared."""
        return self.options.variant == "ffa"

    def costs(self, partition: int) -> dict[str, int]:
        """Return what a rank of each module costs: B alone where A is frozen and drawn at home."""
        if not self._frozen:
            return super().costs(partition)
        return {module: d_out for module, (d_out, _) in self.shapes(partition).items()}

    def frozen(self, partition: int, ranks: Mapping[str, int]) -> int:
        """Return the parameters of A where it is frozen."""
        shapes = self.shapes(partition)
        return sum(rank * shapes[module][1] for module, rank in ranks.items()) * self._frozen

    def _grant(self, partition: int) -> Grant:
        """Return what a client may spend; where A is frozen, on B, with room for A beside it."""
        grant = super()._grant(partition)
        return grant.of_b_alone(self.shapes(partition)) if self._frozen else grant

    # -------------------------------------------------------------- the graph

    def absent(self) -> Absent:
        """Return the option."""
        return self.options.absent

    def graph(self, state: State, present: Sequence[int]) -> Float:
        """Return the graph in which every client counts itself: at η = 1 none overshoots."""
        if self.options.graph == "complete":
            return super().graph(state, present)
        return self_weighted(self.weights(state, present), self.sizes_of(state, present))

    def weights(self, state: State, present: Sequence[int]) -> Float:
        """Return the weight in [0, 1] at which each pair is joined."""
        if self.options.graph == "complete":
            return super().weights(state, present)
        options, clusters = self.options, [state.clusters[p] for p in present]
        far, bandwidth = self._distances(state, present)
        if not options.cross:  # neighbours are chosen inside the cluster too
            far[np.not_equal.outer(clusters, clusters)] = np.inf
        least = np.min(far, initial=0.0)
        weights = rbf(np.sqrt(np.maximum(far, 0.0)), bandwidth)
        if options.graph == "knn":  # unbiased distances of the nearest ones are below 0
            weights = knn(far - least, options.neighbours, weights)
        return within(weights, clusters, options.cross)

    def _distances(self, state: State, present: Sequence[int]) -> tuple[Float, float | None]:
        """Return squared distances of fingerprints, and the bandwidth of ``rbf`` for their roots.

        A distance is infinite where two can't be compared. The bandwidth is the median's root, over
        all pairs whatever their clusters, and no less than that of the error: inside a cluster
        what is left of the distances is mostly noise, which must not decide who is near.
        """
        spaces = [self.spaces()[p] for p in present]
        found = distances([state.prints[p] for p in present], spaces)
        known = np.isfinite(found.error)
        pairs = known & ~np.eye(len(present), dtype=bool)
        apart = found.effect[pairs & (found.effect > 0)]
        medians = [float(np.median(m)) for m in (apart, found.error[pairs]) if m.size]
        bandwidth = math.sqrt(max(medians, default=0.0)) or None
        return np.where(known, found.effect, np.inf), bandwidth

    def told(self, state: State, rows: Mapping[int, int]) -> State:
        """Return the state with the graph of all in its record, where all have told their rows."""
        state = super().told(state, rows)
        if rows.keys() != state.prints.keys():
            return state
        graph = self.graph(replace(state, sizes=rows), sorted(rows))
        return replace(state, found={**state.found, "graph": graph.tolist()})

    # -------------------------------------------------------------- the step

    def moved(
        self,
        state: State,
        present: Sequence[int],
        graph: Float,
        sizes: Sequence[float],
        movers: Collection[int] | None = None,
    ) -> Step:
        """Return the adapters after the step η = 1 on a graph, in the option's variant.

        The linear ones are cheap and move everybody.
        """
        adapters = [state.bodies[f"client-{p}"].adapter for p in present]
        match self.options.variant:
            case "factor":
                moved = factor_step(adapters, graph, sizes, 1.0)
                return Step(moved, [Truncation()] * len(present), [{} for _ in present])
            case "ffa":
                return ffa_step(adapters, graph, sizes, 1.0)
        feedback = self.options.error_feedback
        tails = [state.tails.get(p, {}) for p in present] if feedback else None
        return product_step(adapters, graph, sizes, 1.0, self.fresh(), tails=tails, movers=movers)

    def stages(self, state: State) -> tuple[Stage, ...]:
        """Train B and the head alone where A is frozen."""
        return (Stage(TRAINED),) if self._frozen else super().stages(state)

    def returns(self, state: State) -> frozenset[Part]:
        """Ask for what was trained."""
        return TRAINED if self._frozen else super().returns(state)

    def model_for(self, state: State, partition: int) -> Served:
        """Let the client draw a frozen A from the seed, unless its ranks are not those it knows."""
        served = super().model_for(state, partition)
        drawn = self._frozen and partition not in state.ranks
        return replace(served, seeded=frozenset({"lora_A"})) if drawn else served
