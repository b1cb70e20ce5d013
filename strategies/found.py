"""Clusters from fingerprints, with their reasons as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atlas_flwr.clustering import merge
from atlas_flwr.clustering.cluster import Clustering
from atlas_flwr.clustering.merge import Merging, merge_test
from atlas_flwr.types import Tensors


def find(prints: Mapping[int, Tensors], spaces: Sequence[int]) -> tuple[dict[int, int], Any]:
    """Return the cluster of each partition, and how the clusters were found.

    Args:
        prints: Fingerprints by partition.
        spaces: Label space of every partition.
    """
    known = sorted(prints)
    found = merge_test([prints[p] for p in known], [spaces[p] for p in known])
    return dict(zip(known, found.labels, strict=True)), _facts(known, found)


def place(
    new: Mapping[int, Tensors],
    prints: Mapping[int, Tensors],
    clusters: Mapping[int, int],
    spaces: Sequence[int],
) -> dict[int, int]:
    """Return the cluster of the nearest fingerprints for each late-comer.

    The first of its label space is a cluster of its own.

    Args:
        new: Their fingerprints by partition.
        prints: Fingerprints that were clustered before.
        clusters: Their clusters.
        spaces: Label space of every partition.
    """
    prints, placed = dict(prints), dict(clusters)
    for partition in sorted(new):
        known = sorted(placed)
        placed[partition] = merge.place(
            new[partition],
            [prints[p] for p in known],
            [placed[p] for p in known],
            space=spaces[partition],
            spaces=[spaces[p] for p in known],
        )
        prints[partition] = new[partition]
    return {partition: placed[partition] for partition in new}


def _facts(known: Sequence[int], found: Clustering) -> dict[str, Any]:
    """Return labels, scores and similarity in plain values, for the record."""
    return {
        "k": found.k,
        "why": found.why,
        "clusters": {str(p): label for p, label in zip(known, found.labels, strict=True)},
        "spaces": [
            _space(known, choice) for choice in found.choices if isinstance(choice, Merging)
        ],
    }


def _space(known: Sequence[int], choice: Merging) -> dict[str, Any]:
    return {
        "labels": choice.space,
        "partitions": _named(known, choice.members),
        "k": choice.k,
        "why": choice.why,
        "threshold": choice.threshold,
        "z_by_number_of_clusters": {str(k): _plain(z) for k, z in choice.scores.items()},
        "z": [[_plain(value) for value in row] for row in choice.z],
        "reliability": list(choice.reliabilities),
        "few_rows_of_a_class": _named(known, choice.marked),
        "joined": [_named(known, pair) for pair in choice.steps],
    }


def _named(known: Sequence[int], positions: Iterable[int]) -> list[int]:
    return [known[position] for position in positions]


def _plain(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
