"""FL-TAC: K-means on the adapters that came back, FedAvg inside each cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from sklearn.cluster import KMeans

from atlas_flwr.aggregation.graph import Float
from atlas_flwr.seeding import seed_for
from atlas_flwr.types import ModelParts, Update
from strategies.base import Options, State
from strategies.cluster_mean import ClusterMeans


class FlTacOptions(Options):
    """Options of FL-TAC."""

    clusters: Annotated[int, Field(ge=1, strict=True)] | Literal["tasks"] = "tasks"
    """k of K-means; ``tasks``: as many as there are, which the paper's server is told."""


class FlTac(ClusterMeans):
    """Each round, K-means on the flattened adapters received; each client gets its cluster's mean.

    FL-TAC (Ping et al., ICLR 2024 workshop). There a client has an adapter for each of its tasks;
    here it has one task. A and B are compared as they come, from one seeded A⁰. The paper has all
    clients in every round: here new clusters keep the numbers of the old ones they are nearest to,
    and who was not drawn stays in its cluster; k clusters are found even where a small cohort is of
    one kind. Adapters are averaged across label spaces where K-means joins them, heads never.
    """

    options_type = FlTacOptions
    options: FlTacOptions
    summary = "K-means on the adapters each round, FedAvg inside each cluster"

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Cluster the round's adapters, which must all be there at once, then average."""
        told = sorted(updates, key=lambda update: update.partition)
        if told:
            state = replace(state, clusters={**state.clusters, **self._clustered(state, told)})
        return super().merge(state, iter(told))

    def _clustered(self, state: State, told: list[Update]) -> dict[int, int]:
        """Return the cluster of each client that answered.

        Raises:
            AggregationError: An adapter is not like the others, or can't be averaged.
        """
        everybody = self.fold("start")  # refuses what has no mean, and so no distance
        for update in told:
            everybody.add(self.received(state, update), update.report.num_examples)
        points = np.stack([_flat(self.received(state, update)) for update in told])
        told_k, tasks = self.options.clusters, len(set(self.setting.tasks))
        k = min(tasks if told_k == "tasks" else told_k, _distinct(points))
        seed = seed_for(self.setting.seed, "fl-tac", state.round) % 2**32
        labels = KMeans(k, n_init=10, random_state=seed).fit(points).labels_
        found = list(dict.fromkeys(int(label) for label in labels))  # in order of appearance
        centres = np.stack([points[labels == label].mean(axis=0) for label in found])
        number = dict(zip(found, _numbers(centres, _known(state.bodies)), strict=True))
        return {u.partition: number[int(label)] for u, label in zip(told, labels, strict=True)}


def _flat(body: ModelParts) -> Float:
    """Return an adapter as one vector, A and B of each module beside each other."""
    flat = body.body()
    return np.concatenate([flat[name].astype(np.float64).ravel() for name in sorted(flat)])


def _distinct(points: Float) -> int:
    """Return how many different points there are: K-means finds no more clusters."""
    return len(np.unique(points, axis=0))


def _known(bodies: Mapping[str, ModelParts]) -> dict[int, Float]:
    """Return the last means by number of the cluster."""
    return {int(key.removeprefix("cluster-")): _flat(body) for key, body in bodies.items()}


def _numbers(centres: Float, known: Mapping[int, Float]) -> list[int]:
    """Return a number for each centre: of the nearest old ones, together, or the next free ones."""
    olds = sorted(known)
    numbers: dict[int, int] = {}
    if olds:
        away = [[float(np.linalg.norm(centre - known[old])) for old in olds] for centre in centres]
        pairs = zip(*linear_sum_assignment(np.array(away)), strict=True)
        numbers = {int(centre): olds[int(old)] for centre, old in pairs}
    free = iter(n for n in range(len(olds) + len(centres)) if n not in known)
    return [numbers[i] if i in numbers else next(free) for i in range(len(centres))]
