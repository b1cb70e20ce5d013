"""Controls for clustering: the true tasks, random clusters of their sizes, one cluster."""

from __future__ import annotations

from dataclasses import replace

from atlas_flwr.seeding import rng_for
from strategies.base import Options, State
from strategies.clustered import Clustered, Step, numbered


class MeanOptions(Options):
    """Options of the graph step, its default the cluster's mean."""

    eta: Step = 1.0
    """η: 0 leaves every client alone, 1 gives it its cluster's mean weighted by rows."""


class OracleCluster(Clustered):
    """The clusters are the tasks, which no server should know: the ceiling of clustering."""

    options_type = MeanOptions
    options: MeanOptions
    summary = "the true tasks as clusters, mean product inside (the ceiling of clustering)"

    @property
    def eta(self) -> float:
        """The step η."""
        return self.options.eta

    def start(self) -> State:
        """Return the state before round 1, with the clusters in it."""
        clusters = numbered(self.labels())
        found = {"k": len(set(clusters.values())), "why": self.summary}
        return replace(super().start(), clusters=clusters, found=found)

    def labels(self) -> list[object]:
        """Return a label for each partition."""
        return [*self.setting.tasks]


class RandomCluster(OracleCluster):
    """Clusters of the tasks' sizes, their members drawn from the seed inside each label space."""

    summary = "random clusters of the tasks' sizes (a control)"

    def labels(self) -> list[object]:
        """Return the tasks, shuffled among the clients of each label space."""
        rng = rng_for(self.setting.seed, "random-clusters")
        spaces, drawn = self.spaces(), list[object](self.setting.tasks)
        for space in sorted(set(spaces)):
            members = [p for p, own in enumerate(spaces) if own == space]
            for partition, other in zip(members, rng.permutation(members), strict=True):
                drawn[partition] = self.setting.tasks[int(other)]
        return drawn


class OneCluster(OracleCluster):
    """One cluster for each label space: what clustering has to beat."""

    summary = "one cluster for all clients of a label space (an ablation of atlas)"

    def labels(self) -> list[object]:
        """Return the label spaces."""
        return [*self.spaces()]
