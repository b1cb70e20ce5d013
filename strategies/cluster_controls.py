"""Controls for clustering: ATLAS with the true tasks, random clusters of their sizes, one cluster.

All else is ATLAS's, its options and defaults too, so that a pair differs in its clusters alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from atlas_flwr.errors import ConfigError
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Tensors
from strategies.atlas import Atlas


class OracleCluster(Atlas):
    """The clusters are the tasks, which no server should know: the ceiling of clustering."""

    summary = "atlas told the true tasks as clusters (the ceiling of clustering)"

    def check(self) -> None:
        """Refuse a way to cluster: these clusters are given."""
        super().check()
        if (how := self.options.clustering) != "merge_test":
            raise ConfigError(
                f"strategy.options.clustering: '{how}' changes nothing where clusters are given; "
                "remove it, or use strategy 'atlas'"
            )

    def find(self, prints: Mapping[int, Tensors]) -> tuple[dict[int, int], Mapping[str, Any]]:
        """Return the clusters of those who answered; what they answered is not read."""
        order = {label: number for number, label in enumerate(dict.fromkeys(self.labels()))}
        clusters = {p: order[self.labels()[p]] for p in sorted(prints)}
        told = {str(p): cluster for p, cluster in clusters.items()}
        return clusters, {"k": len(set(told.values())), "why": self.summary, "clusters": told}

    def place(
        self,
        new: Mapping[int, Tensors],
        prints: Mapping[int, Tensors],
        clusters: Mapping[int, int],
    ) -> dict[int, int]:
        """Return the clusters of those who came later: they are known too."""
        return {p: cluster for p, cluster in self.find(new)[0].items() if p in new}

    def labels(self) -> list[object]:
        """Return a label for each partition."""
        return [*self.setting.tasks]


class RandomCluster(OracleCluster):
    """Clusters of the tasks' sizes, their members drawn from the seed inside each label space."""

    summary = "atlas in random clusters of the tasks' sizes (a control)"

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

    summary = "atlas in one cluster for each label space (an ablation)"

    def labels(self) -> list[object]:
        """Return the label spaces."""
        return [*self.spaces()]
