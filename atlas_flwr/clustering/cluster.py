"""Clusters of clients from their fingerprints, each label space apart; and late-comers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from atlas_flwr.clustering import null
from atlas_flwr.clustering.choose import Choice, Group
from atlas_flwr.clustering.partition import METHODS, Float, Method
from atlas_flwr.clustering.spaces import Clustering, each_space
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Array

LEVEL = 0.02
DRAWS = 199
MOST = 12


def cluster(  # noqa: PLR0913 - all of them optional but the first
    points: Array,
    method: Method = "agglomerative",
    k: int | None = None,
    *,
    seed: int = 0,
    halves: Array | tuple[Array, Array] | None = None,
    spaces: Sequence[Hashable] | None = None,
    level: float | None = LEVEL,
    most: int = MOST,
    draws: int = DRAWS,
) -> Clustering:
    """Cluster clients; each label space apart, in k clusters or in as many as the data show.

    Not given, k is the one of the highest silhouette, if that silhouette is beyond what clients
    without clusters reach (``null``); otherwise the space is one cluster. Silhouettes are of
    distances less what noise adds to each. With halves, clients must also differ by more than the
    halves of one client do, and the noise is measured instead of estimated.

    Args:
        points: Fingerprints, ``(n, d)``, compared by cosine; or similarities, ``(n, n)``: symmetric
            with a diagonal of ones.
        method: ``"agglomerative"`` (average linkage) or ``"kmeans"``.
        k: Clusters in each label space; None chooses.
        seed: Of k-means' starts and of the null's draws: the same seed gives the same clusters.
        halves: Two fingerprints a client from disjoint halves of its rows, ``((n, d), (n, d))``;
            or the similarities of all ``2n``, first halves first.
        spaces: Label space of each client: clients of different spaces are never joined. None: one.
        level: Chance at which clients without clusters are split all the same. None: no test.
        most: Clusters considered at most in a space, at least 2.
        draws: Null draws; ``1 / (draws + 1)`` must not exceed the level.

    Raises:
        AggregationError: The points, halves or spaces are none or don't fit, k is not between 1
            and a space's number of different fingerprints, ``most`` is below 2, or the draws can't
            reach the level.
    """
    similarity = _similarity(points)
    n = len(similarity)
    both = None if halves is None else _half_similarity(halves, n)
    _check(method, level, most, draws)

    def one(at: list[int]) -> tuple[Sequence[int], Choice]:
        twice = at + [n + index for index in at]
        group = Group(
            similarity[np.ix_(at, at)],
            None if both is None else both[np.ix_(twice, twice)],
            method,
            *(seed, level, most, draws),
        )
        found, choice = group.chosen() if k is None else group.given(k)
        return found.tolist(), choice

    return each_space(n, spaces, one)


def place(
    new: Array,
    vectors: Array,
    labels: Sequence[int],
    *,
    space: Hashable = 0,
    spaces: Sequence[Hashable] | None = None,
) -> int:
    """Return the cluster of a client that came later: the nearest by fingerprint.

    Near is the mean cosine to a cluster's members, the linkage that built the clusters: a single
    member's noise decides nothing.

    Args:
        new: Its fingerprint, shape ``(d,)``.
        vectors: The fingerprints that were clustered, ``(n, d)``.
        labels: Their clusters.
        space: Its label space.
        spaces: Their label spaces; only clusters of its own are considered. None: all are one.

    Returns:
        A label; a new one, the highest plus 1, where no cluster shares its label space.

    Raises:
        AggregationError: Lengths differ, or a fingerprint is zero or not finite.
    """
    if len(vectors) != len(labels) or np.shape(new) != np.shape(vectors)[1:]:
        raise AggregationError(f"{np.shape(new)} can't be placed among {np.shape(vectors)}")
    return nearest(
        null.cosine(np.vstack([vectors, new]))[-1, :-1], labels, space=space, spaces=spaces
    )


def nearest(
    similarities: Array,
    labels: Sequence[int],
    *,
    space: Hashable = 0,
    spaces: Sequence[Hashable] | None = None,
) -> int:
    """Return the cluster of highest mean similarity; as ``place``, from similarities ``(n,)``."""
    where = list(spaces) if spaces is not None else [space] * len(labels)
    if not len(similarities) == len(labels) == len(where):
        raise AggregationError(f"{len(similarities)} similarities for {len(labels)} labels")
    known = sorted({label for label, own in zip(labels, where, strict=True) if own == space})
    if not known:
        return max(labels, default=-1) + 1
    member = np.asarray(labels)
    return max(known, key=lambda label: float(np.mean(np.asarray(similarities)[member == label])))


def _check(method: Method, level: float | None, most: int, draws: int) -> None:
    if method not in METHODS:
        raise AggregationError(f"no clustering is named '{method}', known: {', '.join(METHODS)}")
    if level is not None and not 1 / (draws + 1) <= level < 1:
        raise AggregationError(f"{draws} null draws can't reach a level of {level}")
    if most < 2:
        raise AggregationError(f"most must be at least 2, got {most}")


def _similarity(points: Array) -> Float:
    """Return similarities of fingerprints, or what are similarities already."""
    x = np.asarray(points, np.float64)
    square = x.ndim == 2 and x.shape[0] == x.shape[1] and np.isfinite(x).all()
    if square and np.allclose(np.diagonal(x), 1.0) and np.allclose(x, x.T):
        return (x + x.T) / 2
    if x.ndim != 2 or not len(x):
        raise AggregationError(f"fingerprints of shape {x.shape} are not one vector a client")
    return null.cosine(x)


def _half_similarity(halves: Array | tuple[Array, Array], n: int) -> Float:
    """Return the similarities of all halves, first halves first."""
    both = _similarity(np.vstack(halves) if isinstance(halves, tuple) else halves)
    if len(both) != 2 * n:
        raise AggregationError(f"{len(both)} half fingerprints for {n} clients")
    return both
