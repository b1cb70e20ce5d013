"""How much of what clients of a cluster differ by is noise: the step that empirical Bayes takes.

Let client k want ``θ_k = μ + b_k``, with b of variance τ² over the cluster's clients, and let n
rows tell it with noise of variance σ² = 1/n, in deviations of one row. Of all steps towards the
cluster's mean ``η = σ² / (σ² + τ²)`` has the least expected squared error (Efron and Morris,
"Stein's Estimation Rule and Its Competitors", 1973). Fingerprints tell both: τ² is half of the mean
squared distance of two clients, with its noise taken off.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.distance import Distances, by_space, distances
from atlas_flwr.fingerprint.prints import read
from atlas_flwr.fingerprint.sketch import Float
from atlas_flwr.types import Tensors


def shrinkages(
    prints: Sequence[Tensors],
    clusters: Sequence[int],
    spaces: Sequence[Hashable] | None = None,
    rows: Sequence[float] | None = None,
) -> dict[int, float]:
    """Return each cluster's step η in (0, 1].

    1 where its clients differ by no more than noise, ½ where as much again is their own. A cluster
    of one client, or of clients of which no two can be compared, has 1: nothing shows a difference.

    Args:
        prints: One fingerprint a client (``fingerprint.summary``).
        clusters: Cluster of each.
        spaces: Label space of each; None: one.
        rows: Rows that each client trains on; None: those its fingerprint tells, which are fewer
            under noise and where not all classes are measured.

    Raises:
        AggregationError: Fingerprints of one space don't fit each other, or the lengths differ.
    """
    own = _rows_told(prints, spaces) if rows is None else np.asarray(rows, np.float64)
    if not len(clusters) == len(prints) == len(own):
        raise AggregationError(
            f"{len(prints)} fingerprints for {len(clusters)} clusters and rows of {len(own)}"
        )
    found = distances(prints, spaces)
    members = {c: [i for i, at in enumerate(clusters) if at == c] for c in sorted(set(clusters))}
    return {cluster: shrinkage(found, at, own) for cluster, at in members.items()}


def shrinkage(found: Distances, at: Sequence[int], rows: Float) -> float:
    """Return the step η of one cluster.

    Args:
        found: Distances of all clients.
        at: The cluster's clients.
        rows: How many rows each of all clients trains on.
    """
    pairs = np.triu_indices(len(at), 1)
    effect, error = (m[np.ix_(at, at)][pairs] for m in (found.effect, found.error))
    known = np.isfinite(error) & (error > 0)
    if not known.any():
        return 1.0
    own = max(float(np.average(effect[known], weights=1 / error[known] ** 2)) / 2, 0.0)
    noise = float(np.mean(1 / np.maximum(rows[np.asarray(at)], 1.0)))
    return noise / (noise + own)


def _rows_told(prints: Sequence[Tensors], spaces: Sequence[Hashable] | None) -> Float:
    """Return how many rows each fingerprint says its means are worth."""
    rows = np.zeros(len(prints))
    for at in by_space(len(prints), spaces).values():
        rows[at] = read([prints[index] for index in at]).rows.sum(axis=(1, 2))
    return rows
