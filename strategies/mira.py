"""MIRA as published: personal adapters, one step on A and on B apart along a given graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from atlas_flwr.aggregation import graph
from atlas_flwr.aggregation.graph import Float
from atlas_flwr.aggregation.laplacian_linear import factor_step, tensor_step
from atlas_flwr.errors import ConfigError
from atlas_flwr.results.record import Measured
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import ModelParts, Tensors, Update
from strategies.base import Method, Options, State
from strategies.cluster_mean import like_the_start
from strategies.clustered import Clustered


class MiraOptions(Options):
    """Options of MIRA."""

    eta: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 0.1
    """ηλ of the letter; at most one over the graph's largest degree."""
    graph: Literal["complete", "random"] = "complete"
    """``complete``: all edges 1 / (clients − 1); ``random``: weights drawn from the seed in (0, 1],
    as in the letter's experiments."""


class Mira(Clustered):
    """``w_k ← w_k − η Σ_l a_kl (w_k − w_l)`` on A and on B, no clusters and no sizes, one rank.

    MIRA (Elbakary et al., IEEE Networking Letters 7(3), 2025). The letter writes the step on ΔW and
    defines it as the pair (B, A): it is taken on the factors. It has one task: here adapters step
    over all clients, and heads, which it does not have, inside their label space. Who was not drawn
    keeps its model, and its neighbours are pulled towards what it last had, which the letter leaves
    open; who never trained pulls nobody.
    """

    options_type = MiraOptions
    options: MiraOptions
    mixed_ranks = False
    summary = "personal adapters, a graph step on A and on B apart over all clients"

    def check(self) -> None:
        """Refuse a step that overshoots on the graph.

        Raises:
            ConfigError: η is beyond its bound; and as in `Method.check`.
        """
        super().check()
        self.adjacency = self._drawn()
        bound = graph.largest_step(self.adjacency, [1.0] * self.setting.clients)
        if self.options.eta > bound * (1 + 1e-9):
            lowered = math.floor(bound * 1e4) / 1e4
            raise ConfigError(
                f"strategy.options.eta: {self.options.eta} overshoots on this graph of "
                f"{self.setting.clients} clients; set {lowered:g} or less"
            )

    def _drawn(self) -> Float:
        """Return the graph of all clients, the same in every round."""
        if self.options.graph == "complete":
            return graph.complete(self.setting.clients)
        return graph.random(self.setting.clients, rng_for(self.setting.seed, "mira-graph"))

    def received(self, state: State, update: Update) -> ModelParts:
        """Return the client's adapter, refused unless it is like everybody's start."""
        return like_the_start(self.setting.initial_for(update.partition), update)

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the trained models as they came, then move those of this round along the graph."""
        trained = Method.step(self, state, bodies, heads)
        present = sorted(state.sizes)
        if not (bodies and present):
            return trained
        keys = [f"client-{p}" for p in present]
        edges, sizes = self.adjacency[np.ix_(present, present)], [1.0] * len(present)
        spaces = [self.spaces()[p] for p in present]
        adapters = [trained.bodies[key].adapter for key in keys]
        own = [trained.heads[key] for key in keys]
        moved = factor_step(adapters, edges, sizes, self.options.eta)
        moved_heads = tensor_step(own, graph.within(edges, spaces), sizes, self.options.eta)
        body_of = {
            k: ModelParts(adapter=a) for k, a in zip(keys, moved, strict=True) if k in bodies
        }
        head_of = {k: h for k, h in zip(keys, moved_heads, strict=True) if k in heads}
        return replace(
            trained,
            bodies={**trained.bodies, **body_of},
            heads={**trained.heads, **head_of},
            measured=Measured(),
        )
