"""Clusters from similarities, as others find them: by silhouette, or at a distance given.

The alternatives to ``merge``: fingerprints by average linkage or k-means, and subspaces by their
principal angles (PACFL, Vahidian et al., AAAI 2023). Each label space apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage  # type: ignore[import-untyped]
from scipy.spatial.distance import squareform  # type: ignore[import-untyped]

from atlas_flwr.clustering import null
from atlas_flwr.clustering.choose import Choice
from atlas_flwr.clustering.cluster import DRAWS, cluster, nearest
from atlas_flwr.clustering.partition import Float, Method
from atlas_flwr.clustering.spaces import Clustering, each_space
from atlas_flwr.fingerprint.distance import distances, of_space
from atlas_flwr.fingerprint.prints import read, vectors
from atlas_flwr.fingerprint.subspace import Measure, apart, apart_from
from atlas_flwr.types import Tensors

Matrix = tuple[tuple[float, ...], ...]

# Similarities of subspaces are no Gaussian's, and there are no halves to test: the null is only
# about right (clients of one task, 64 rows: 7 of 40 were split at 0.02, 1 of 40 at this level).
_BEYOND_ALL = 1 / (DRAWS + 1)


@dataclass(frozen=True)
class Compared(Choice):
    """How the clients of one label space were clustered by how alike they are.

    Attributes:
        similarity: Of single clients, one row each, ones on the diagonal.
        angles: In degrees, where clients are subspaces.
    """

    similarity: Matrix = ()
    angles: Matrix = ()


def by_silhouette(
    prints: Sequence[Tensors],
    spaces: Sequence[Hashable] | None = None,
    method: Method = "agglomerative",
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Clustering:
    """Cluster fingerprints, k by silhouette with its null test (``cluster``).

    Fingerprints of classes are as alike as ``exp(−effect / median effect)``, with the noise taken
    off each effect (``distance``): their label mixes play no part. Those without classes are
    compared by the cosine of their vectors, and their halves are tested too. Who has no two rows
    can't be compared without its noise: it goes to the cluster of the nearest mean features.

    Args:
        prints: One fingerprint a client (``fingerprint.summary``).
        spaces: Label space of each; clients of different spaces are never joined. None: one.
        method: ``"agglomerative"`` (average linkage) or ``"kmeans"``, which takes seconds where
            the other takes a tenth.
        seed: Of k-means' starts and of the null's draws.
        draws: Of the null, at least 49.

    Returns:
        The clusters; its choices are ``Compared``.

    Raises:
        AggregationError: Fingerprints of one space don't fit each other, or the lengths differ.
    """

    def one(at: list[int]) -> tuple[Sequence[int], Compared]:
        own = [prints[index] for index in at]
        known = _comparable(own)
        if len(known) == len(own):
            return among(own)
        if not known:
            why = "Nobody has two rows to be compared by: one cluster."
            return [0] * len(own), _compared(Choice(0, (), 1, why=why), np.eye(len(own)))
        return _with_the_rest(own, known, *among([own[index] for index in known]))

    def among(own: Sequence[Tensors]) -> tuple[Sequence[int], Compared]:
        if read(own).rows.shape[2] > 1:
            similarity = _likeness(distances(own).effect)
            found = cluster(similarity, method, seed=seed, draws=draws)
        else:
            whole, halves = vectors(own)
            similarity = null.cosine(whole)
            found = cluster(similarity, method, seed=seed, halves=halves, draws=draws)
        return found.labels, _compared(found.choices[0], similarity)

    return each_space(len(prints), spaces, one)


def _with_the_rest(
    own: Sequence[Tensors], known: list[int], found: Sequence[int], choice: Compared
) -> tuple[Sequence[int], Compared]:
    """Return labels of all: who was not clustered is with the nearest, or the first, cluster.

    Args:
        own: Everybody's fingerprints.
        known: Who was clustered.
        found: Their labels.
        choice: How they were clustered.
    """
    means = vectors(own)[0]
    labels = [found[0]] * len(own)  # of whom nothing was measured
    for index, label in zip(known, found, strict=True):
        labels[index] = label
    for index in {*range(len(own))} - {*known}:
        if means[index].any():
            labels[index] = nearest(null.cosine(means[[*known, index]])[-1, :-1], found)
    similarity = np.eye(len(own))
    similarity[np.ix_(known, known)] = choice.similarity
    why = f"{choice.why} Clients without two rows, {len(own) - len(known)}, are with the nearest"
    return labels, replace(choice, similarity=_rows(similarity), why=f"{why} mean features.")


def _comparable(own: Sequence[Tensors]) -> list[int]:
    """Return the positions of those whose distance from others has a known error: two rows."""
    rows = read(own).rows.sum(axis=2)
    return [int(index) for index in np.flatnonzero((rows > 0).all(axis=1))]


def by_angles(
    prints: Sequence[Tensors],
    spaces: Sequence[Hashable] | None = None,
    *,
    measure: Measure = "sum",
    threshold: float | None = None,
    seed: int = 0,
) -> Clustering:
    """Cluster subspaces by average linkage of their angles.

    The paper cuts the tree at a threshold, which has to be known: angles depend on the model, on p
    and on the rows a client has (four GLUE tasks, 384 features, p = 3: within a task 126° at most
    with 300 rows a client, 186° with 64; between tasks 206° at least). Without a threshold the
    number of clusters is chosen by silhouette with its null test, which is ours.

    Args:
        prints: ``fingerprint.subspace`` of each client.
        spaces: Label space of each; clients of different spaces are never joined. None: one.
        measure: ``"sum"`` of the principal angles or the ``"smallest"``.
        threshold: Clusters of a mean angle up to this, in degrees, are joined. None: see above.
        seed: Of the null's draws.

    Returns:
        The clusters; its choices are ``Compared``.

    Raises:
        AggregationError: Subspaces of one space don't fit each other, or the lengths differ.
    """

    def one(at: list[int]) -> tuple[Sequence[int], Compared]:
        own = [prints[index] for index in at]
        degrees = apart(own, measure)
        similarity = 1 - degrees / (90.0 * (own[0]["basis"].shape[2] if measure == "sum" else 1))
        labels: Sequence[int]
        if threshold is None:
            found = cluster(similarity, seed=seed, level=_BEYOND_ALL)
            labels, choice = found.labels, found.choices[0]
        else:
            labels = _cut(degrees, threshold)
            k = len(set(labels))
            choice = Choice(0, (), k, why=f"{k} cluster(s) at a mean angle of {threshold:g}°.")
        return labels, replace(_compared(choice, similarity), angles=_rows(degrees))

    return each_space(len(prints), spaces, one)


def place_by_angles(
    new: Tensors,
    prints: Sequence[Tensors],
    labels: Sequence[int],
    *,
    space: Hashable = 0,
    spaces: Sequence[Hashable] | None = None,
    measure: Measure = "sum",
    threshold: float | None = None,
) -> int:
    """Return the cluster of a client that came later: of its label space, the least mean angle.

    Args:
        new: Its subspace.
        prints: The subspaces that were clustered.
        labels: Their clusters.
        space: Its label space.
        spaces: Their label spaces. None: all are one.
        measure: As they were clustered.
        threshold: Beyond this mean angle, in degrees, it is a cluster of its own. None: never.

    Returns:
        A label; a new one, the highest plus 1, where no cluster will do.

    Raises:
        AggregationError: Subspaces don't fit each other, or lengths differ.
    """
    at = of_space(space, spaces, prints, labels)
    degrees, member = apart_from(new, [prints[i] for i in at], measure), [labels[i] for i in at]
    fresh = max(labels, default=-1) + 1
    if not at:
        return fresh
    label = nearest(-degrees, member)
    far = float(np.mean(degrees[np.array(member) == label]))
    return label if threshold is None or far <= threshold else fresh


def _likeness(effect: Float) -> Float:
    """Return similarities of clients with these squared distances."""
    far = np.maximum(effect, 0.0)
    pairs = far[np.triu_indices(len(far), 1)]
    width = float(np.median(pairs)) if len(pairs) else 1.0
    similarity: Float = np.exp(-far / max(width, 1e-12))
    np.fill_diagonal(similarity, 1.0)
    return similarity


def _cut(degrees: Float, threshold: float) -> list[int]:
    """Return labels from 0 on after all joins up to the threshold."""
    if len(degrees) == 1:
        return [0]
    tree = linkage(squareform(degrees, checks=False), "average")
    return [int(label) - 1 for label in fcluster(tree, threshold, "distance")]


def _compared(choice: Choice, similarity: Float) -> Compared:
    plain = {field.name: getattr(choice, field.name) for field in fields(Choice)}
    return Compared(**plain, similarity=_rows(similarity))


def _rows(matrix: Float) -> Matrix:
    return tuple(tuple(map(float, row)) for row in matrix)
