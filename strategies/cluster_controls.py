"""Controls for clustering: the true tasks, random clusters of their sizes, one cluster."""

from __future__ import annotations

from dataclasses import replace

from atlas_flwr.seeding import rng_for
from strategies.base import State
from strategies.clustered import AtOneStep, MeanOptions, numbered


class OracleCluster(AtOneStep):
    """The clusters are the tasks, which no server should know: the ceiling of clustering."""

    options_type = MeanOptions
    options: MeanOptions
    summary = "the true tasks as clusters, mean product inside (the ceiling of clustering)"

    def start(self) -> State:
        """Return the state before round 1, with the clusters in it."""
        clusters = numbered(self.labels())
        told = {str(p): cluster for p, cluster in clusters.items()}
        found = {"k": len(set(told.values())), "why": self.summary, "clusters": told}
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
