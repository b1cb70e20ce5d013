"""Clusters from fingerprints, with their reasons as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

from atlas_flwr.clustering import merge
from atlas_flwr.clustering.choose import Choice
from atlas_flwr.clustering.compared import Compared, by_silhouette
from atlas_flwr.clustering.merge import Merging, merge_test
from atlas_flwr.clustering.spaces import Clustering
from atlas_flwr.types import Tensors

Method = Literal["merge_test", "agglomerative", "kmeans"]
METHODS: tuple[Method, ...] = get_args(Method)


class PlaceOne(Protocol):
    """Returns the cluster of one late-comer; ``clustering.merge.place`` and its like."""

    def __call__(
        self,
        new: Tensors,
        prints: Sequence[Tensors],
        labels: Sequence[int],
        *,
        space: int,
        spaces: Sequence[int],
    ) -> int:
        """Return a label of those given, or a new one."""


def find(
    prints: Mapping[int, Tensors],
    spaces: Sequence[int],
    *,
    method: Method = "merge_test",
    seed: int = 0,
    counted: bool = True,
) -> tuple[dict[int, int], Mapping[str, Any]]:
    """Return the cluster of each partition, and how the clusters were found.

    Args:
        prints: Fingerprints by partition.
        spaces: Label space of every partition.
        method: ``"merge_test"``; or ``"agglomerative"`` and ``"kmeans"``, with the number of
            clusters by silhouette.
        seed: The run's, for the last two: of k-means' starts and of the null test's draws.
        counted: Whether the fingerprints tell rows, or under noise what their means are worth.
    """
    known = sorted(prints)
    own, where = [prints[p] for p in known], [spaces[p] for p in known]
    if method == "merge_test":
        return named(known, merge_test(own, where, counted=counted))
    return named(known, by_silhouette(own, where, method, seed=seed))


def place(
    new: Mapping[int, Tensors],
    prints: Mapping[int, Tensors],
    clusters: Mapping[int, int],
    spaces: Sequence[int],
    one: PlaceOne | None = None,
) -> dict[int, int]:
    """Return the cluster of the nearest fingerprints for each late-comer.

    The first of its label space is a cluster of its own, and so is one that differs from every
    cluster by more than the merge test lets pass, whichever method found the clusters.

    Args:
        new: Their fingerprints by partition.
        prints: Fingerprints that were clustered before.
        clusters: Their clusters.
        spaces: Label space of every partition.
        one: Places one among others; None is ``merge.place`` at the test's threshold.
    """
    prints, placed = dict(prints), dict(clusters)
    for partition in sorted(new):
        known = sorted(placed)
        placed[partition] = (one or _nearest)(
            new[partition],
            [prints[p] for p in known],
            [placed[p] for p in known],
            space=spaces[partition],
            spaces=[spaces[p] for p in known],
        )
        prints[partition] = new[partition]
    return {partition: placed[partition] for partition in new}


def _nearest(
    new: Tensors,
    prints: Sequence[Tensors],
    labels: Sequence[int],
    *,
    space: int,
    spaces: Sequence[int],
) -> int:
    threshold = merge.threshold_for(sum(own == space for own in spaces) + 1)
    return merge.place(new, prints, labels, space=space, spaces=spaces, threshold=threshold)


def named(known: Sequence[int], found: Clustering) -> tuple[dict[int, int], Mapping[str, Any]]:
    """Return clusters by partition; and labels, scores and similarities in plain values.

    Args:
        known: The partitions, in the order in which they were clustered.
        found: Their clusters.
    """
    clusters = dict(zip(known, found.labels, strict=True))
    return clusters, {
        "k": found.k,
        "why": found.why,
        "clusters": {str(p): label for p, label in clusters.items()},
        "spaces": [_space(known, choice) for choice in found.choices],
    }


def _space(known: Sequence[int], choice: Choice) -> dict[str, Any]:
    told: dict[str, Any] = {
        "labels": choice.space,
        "partitions": _named(known, choice.members),
        "k": choice.k,
        "why": choice.why,
    }
    if isinstance(choice, Merging):
        return told | _merging(known, choice)
    return told | _compared(choice) if isinstance(choice, Compared) else told


def _merging(known: Sequence[int], choice: Merging) -> dict[str, Any]:
    return {
        "threshold": choice.threshold,
        "z_by_number_of_clusters": {str(k): _plain(z) for k, z in choice.scores.items()},
        "z": [[_plain(value) for value in row] for row in choice.z],
        "reliability": list(choice.reliabilities),
        "few_rows_of_a_class": _named(known, choice.marked),
        "joined": [_named(known, pair) for pair in choice.steps],
    }


def _compared(choice: Compared) -> dict[str, Any]:
    told: dict[str, Any] = {
        "silhouette_by_number_of_clusters": {str(k): _plain(s) for k, s in choice.scores.items()},
        "silhouette_without_clusters": choice.threshold,
        "p_value": choice.p_value,
        "halves_reliability": choice.reliability,
        "similarity": [list(row) for row in choice.similarity],
    }
    return told | {"angles": [list(row) for row in choice.angles]} if choice.angles else told


def _named(known: Sequence[int], positions: Iterable[int]) -> list[int]:
    return [known[position] for position in positions]


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
