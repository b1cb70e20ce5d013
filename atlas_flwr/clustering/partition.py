"""Points cut into k groups for many k at once, and how good each cut is by its silhouette.

Points come as rows of coordinates; the distance between two is half their squared distance, which
for unit vectors is one minus their cosine.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.hierarchy import linkage  # type: ignore[import-untyped]
from scipy.spatial.distance import squareform  # type: ignore[import-untyped]
from sklearn.cluster import KMeans

Float = NDArray[np.float64]
Labels = NDArray[np.int64]
Method = Literal["agglomerative", "kmeans"]
METHODS: tuple[Method, ...] = ("agglomerative", "kmeans")

_STARTS = 3  # of k-means; the null draws take as many, or the comparison would be unfair


def distances(points: Float) -> Float:
    """Return ``½ ‖x_k − x_l‖²``, shape ``(n, n)``, symmetric with a zero diagonal."""
    gram = points @ points.T
    square = np.diagonal(gram)
    d = np.maximum((square[:, None] + square - 2 * gram) / 2, 0.0)
    d = (d + d.T) / 2
    np.fill_diagonal(d, 0.0)
    return d


def distinct(d: Float) -> int:
    """Return how many points differ from each other by more than rounding."""
    if len(d) < 2 or d.max() == 0:
        return 1
    heights = linkage(squareform(d, checks=False), "single")[:, 2]
    return 1 + int(np.count_nonzero(heights > 1e-9 * d.max()))


def cuts(points: Float, d: Float, ks: range, method: Method, seed: int) -> list[Labels]:
    """Return the labels of a cut into k groups for each k, ``2 ≤ k ≤ n``.

    Args:
        points: Coordinates, ``(n, d)``, which k-means reads.
        d: Their ``distances``, which average linkage reads: one tree serves all k.
        ks: The numbers of groups.
        method: ``"agglomerative"`` (average linkage) or ``"kmeans"`` (k-means++ starts).
        seed: Of k-means' starts; average linkage draws nothing.
    """
    if method == "agglomerative":
        return _tree_cuts(linkage(squareform(d, checks=False), "average"), ks)
    found = [KMeans(k, n_init=_STARTS, random_state=seed % 2**32).fit_predict(points) for k in ks]
    return [labels.astype(np.int64) for labels in found]


def silhouette(d: Float, labels: Labels) -> float:
    """Return the mean silhouette (Rousseeuw 1987); a point alone in its group counts as 0.

    As scikit-learn's ``silhouette_score(metric="precomputed")``, without its overhead: a null test
    asks thousands of times.
    """
    n = len(labels)
    groups = np.eye(int(labels.max()) + 1)[labels]
    counts = groups.sum(axis=0)
    sums = d @ groups
    mine = np.arange(n), labels
    own = sums[mine] / np.maximum(counts[labels] - 1, 1)
    means = sums / counts
    means[mine] = np.inf
    other = means.min(axis=1)
    larger = np.maximum(own, other)
    alone = (counts[labels] == 1) | (larger == 0)
    return float(np.where(alone, 0.0, (other - own) / np.where(alone, 1.0, larger)).mean())


def _tree_cuts(tree: Float, ks: range) -> list[Labels]:
    """Return the labels with k groups left, by k, merging from the leaves on."""
    n = len(tree) + 1
    labels = np.arange(n)
    by_k: dict[int, Labels] = {n: labels}
    for step, (one, other) in enumerate(tree[: n - min(ks), :2].astype(np.int64)):
        labels = np.where((labels == one) | (labels == other), n + step, labels)
        by_k[n - 1 - step] = labels
    return [np.unique(by_k[k], return_inverse=True)[1].astype(np.int64) for k in ks]
