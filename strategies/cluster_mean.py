"""FedAvg inside clusters: what the clustered comparators share, and the one that finds as ATLAS.

Bodies and heads are kept by cluster, and which cluster a client is in may change from round to
round: every key is read from the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import replace
from itertools import chain
from typing import Self

from atlas_flwr.errors import AggregationError
from atlas_flwr.results.record import Measured
from atlas_flwr.types import Adapter, ModelParts, Tensors, Update
from strategies.base import Method, Served, State
from strategies.fingerprinted import FingerprintClustered
from strategies.folds import Tally
from strategies.lora_rule import EqualRankRule


class ClusterMeans(EqualRankRule):
    """One adapter a cluster: A and B averaged apart over its clients, one rank.

    Heads are averaged inside the cluster, never across label spaces. A cluster that nobody has
    trained yet stands for the seeded start; so does no cluster at all.
    """

    mixed_ranks = False
    cuts = False
    head = "personal"
    clusters: Mapping[int, int] = {}

    def at(self, state: State) -> Self:
        """Return the method with a state's clusters as its groups."""
        bound = copy(self)
        bound.clusters = state.clusters
        return bound

    def cluster_of(self, partition: int) -> int | None:
        """Return the partition's cluster, None as long as it has none."""
        return self.clusters.get(partition)

    def body_key(self, partition: int) -> str:
        """Name the cluster's group."""
        cluster = self.cluster_of(partition)
        return "start" if cluster is None else f"cluster-{cluster}"

    def head_key(self, partition: int) -> str:
        """Name the group of those of the cluster that have the client's labels."""
        if len(set(self.setting.num_labels[task] for task in self.setting.tasks)) == 1:
            return self.body_key(partition)
        return f"{self.body_key(partition)}-labels-{self._labels(partition)}"

    def name_of(self, partition: int) -> str:
        """Name the model by its head, which tells the body too."""
        return self.head_key(partition)

    def _labels(self, partition: int) -> int:
        return self.setting.num_labels[self.setting.tasks[partition]]

    # -------------------------------------------------------------- the hooks, by state

    def start(self) -> State:
        """Return the state before round 1: nothing but the seeded start."""
        return State()

    def model_for(self, state: State, partition: int) -> Served:
        """Return the model of the client's cluster; the seeded start where there is none."""
        served = Method.model_for(self.at(state), state, partition)
        head = served.parts.head or self.setting.initial_for(partition).head
        return replace(served, parts=replace(served.parts, head=head))

    def received(self, state: State, update: Update) -> ModelParts:
        """Return the client's adapter, refused unless it is like everybody's start.

        A cluster may have one client in a round, beside which nothing else would look odd.

        Raises:
            AggregationError: A module, shape or scale is not the seeded start's.
        """
        return like_the_start(self.setting.initial_for(update.partition), update)

    def effective(self, state: State, partition: int, body: ModelParts) -> Adapter:
        """Return the adapter: its products are the client's update."""
        return body.adapter

    def tally(self, state: State, updates: Iterator[Update]) -> tuple[Tally, State]:
        """Fold the answers, each into the cluster that its client is in once it is noted."""
        tally, noted = Tally(self.fold), state
        for update in updates:
            noted = self.note(noted, update)
            now, partition, weight = self.at(noted), update.partition, self.weight(noted, update)
            body, group = self.received(noted, update), now.body_key(partition)
            tally.body(group, body, weight)
            tally.products(group, self.effective(noted, partition, body), weight)
            tally.head(now.head_key(partition), update.parts.head, weight)
        return tally, noted

    def weight(self, state: State, update: Update) -> float:
        """Return what an answer counts for in its cluster: its rows."""
        return update.report.num_examples

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Fold the answers: the weighted mean of each cluster."""
        return Method.merge(self, state, updates)

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the means; a cluster that nobody trained stays as it was."""
        return Method.step(self, state, bodies, heads)

    def measure(self, state: State, exact: Mapping[str, Adapter]) -> Measured:
        """Return how far the clusters' means of factors are from those of products."""
        return Method.measure(self.at(state), state, exact)


def like_the_start(initial: ModelParts, update: Update) -> ModelParts:
    """Return an update's adapter, refused unless modules, shapes and scales are the start's.

    Raises:
        AggregationError: Names the first tensor or module that differs.
    """
    body = update.parts.without("head")
    got, own = body.shapes(), initial.without("head").shapes()
    if odd := sorted(name for name in got.keys() | own.keys() if got.get(name) != own.get(name)):
        name = odd[0]
        raise AggregationError(f"{name}: shape {got.get(name)}, the start has {own.get(name)}")
    for module, factors in body.adapter.items():
        if factors.scale != (known := initial.adapter[module].scale):
            raise AggregationError(f"{module}: scale {factors.scale}, the start has {known}")
    return body


class ClusterFedAvg(ClusterMeans, FingerprintClustered):
    """ATLAS's clusters with FedAvg of factors inside them, in place of personal models on a graph.

    What is left of the gain over one shared model when the clusters are right but their members
    hold one and the same adapter, averaged as FedIT does it.
    """

    summary = "FedAvg of A, B and heads inside clusters found from fingerprints"

    def weight(self, state: State, update: Update) -> float:
        """Return the client's rows, or how many rows of even classes tell as much."""
        return self.sizes_of(state, [update.partition])[0]

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Find clusters, place late-comers, or average inside clusters."""
        first = next(updates, None)
        stream = updates if first is None else chain([first], updates)
        if state.phase == 0 and (first is None or first.fingerprint):
            return self._carried_over(state, FingerprintClustered.merge(self, state, stream))
        return ClusterMeans.merge(self, state, stream)

    def _carried_over(self, before: State, after: State) -> State:
        """Give each new cluster the mean of what its members held, where any changed places."""
        old, new = self.at(before), self.at(after)
        known = [p for p in sorted(after.clusters) if old.body_key(p) in before.bodies]
        if all(before.clusters[p] == after.clusters[p] for p in known):
            return after
        tally = Tally(self.fold)
        for partition in known:
            parts = self.model_for(before, partition).parts
            known_rows = replace(after, sizes={partition: 1, **before.sizes})
            weight = self.sizes_of(known_rows, [partition])[0]
            tally.body(new.body_key(partition), parts.without("head"), weight)
            tally.head(new.head_key(partition), parts.head, weight)
        return replace(after, bodies=tally.bodies(), heads=tally.heads())
