"""Graphs between clients: who is pulled towards whom, and how far a step along the edges may go.

A graph is its adjacency matrix ``a``, shape ``(n, n)``: symmetric, non-negative, zero on the
diagonal. ``a_kl`` is the weight of the edge between clients k and l; a client whose row is zero
is alone and never moves. Sizes ``n_k`` enter relative to their mean, ``ñ_k = n_k / mean n``.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Array

Float = NDArray[np.float64]


def check(adjacency: Array) -> Float:
    """Return the adjacency in float64, refused if it is none.

    Raises:
        AggregationError: It is not square, finite, non-negative and symmetric to the bit, or an
            edge leads from a client to itself.
    """
    a = np.asarray(adjacency, np.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1]:
        raise AggregationError(f"an adjacency of shape {a.shape} is not square")
    if not (np.isfinite(a).all() and (a >= 0).all()):
        raise AggregationError("an adjacency's weights must be finite and not negative")
    if not (a == a.T).all():
        raise AggregationError("an adjacency must be symmetric")
    if np.diagonal(a).any():
        raise AggregationError("an adjacency's diagonal must be zero")
    return a


def rbf(distances: Array, bandwidth: float | None = None) -> Float:
    """Return ``a_kl = exp(−d_kl² / h²)`` of pairwise distances.

    The weight of the reference's graph with α = 1/h²; MIRA's letter draws its graph at random.

    Args:
        distances: Symmetric, non-negative, shape ``(n, n)``, infinite where no edge may be; the
            diagonal is not read.
        bandwidth: The distance h of weight 1/e. None takes the median of the positive, finite
            distances, so that the unit of distance drops out; where there is none all weights are
            1, as for any h.

    Raises:
        AggregationError: The bandwidth is not positive and finite, or the distances are none.
    """
    d = _distances(distances, infinite=True)
    positive = d[(d > 0) & np.isfinite(d)]
    if bandwidth is None:
        bandwidth = float(np.median(positive)) if positive.size else 1.0
    if not (bandwidth > 0 and math.isfinite(bandwidth)):
        raise AggregationError(f"bandwidth must be positive and finite, got {bandwidth}")
    return _hollow(np.exp(-((d / bandwidth) ** 2)))


def knn(distances: Array, k: int, adjacency: Array | None = None) -> Float:
    """Return the symmetric graph of k nearest neighbours: an edge if either end chose the other.

    All clients as near as the k-th are chosen, so that no order of the clients matters; with ties
    a client may have more than k.

    Args:
        distances: As in ``rbf``; infinite where no edge may be.
        k: Neighbours each client chooses, at least 1; with fewer clients, all of them.
        adjacency: Weights the kept edges have; None gives them weight 1.

    Raises:
        AggregationError: ``k`` is below 1, or the distances or the adjacency are none.
    """
    if k < 1:
        raise AggregationError(f"a graph of k neighbours needs k of at least 1, got {k}")
    d = _distances(distances, infinite=True)
    n = len(d)
    weights = ones(n) if adjacency is None else check(adjacency)
    if weights.shape != d.shape:
        raise AggregationError(f"adjacency {weights.shape} and distances {d.shape} differ")
    if n < 2:
        return weights
    away = d.copy()
    np.fill_diagonal(away, np.inf)
    reach = np.sort(away, axis=1)[:, min(k, n - 1) - 1 : min(k, n - 1)]
    chosen = (away <= reach) & np.isfinite(away)
    return _hollow(np.where(chosen | chosen.T, weights, 0.0))


def complete(n: int) -> Float:
    """Return the complete graph of n clients with ``a_kl = 1 / (n − 1)``: all degrees are 1.

    For equal sizes a step of ``η = (n − 1) / n`` is the mean of all; η = 1 gives each client the
    mean of the others.
    """
    return _hollow(np.full((n, n), 1.0 / max(n - 1, 1)))


def ones(n: int) -> Float:
    """Return the graph of n clients in which every edge has weight 1."""
    return _hollow(np.ones((n, n)))


def star(weights: Array) -> Float:
    """Return the graph in which client 0 alone is joined to the others, at these weights.

    For sizes of 1 and weights that sum to 1 a step η = 1 gives client 0 the others' weighted mean.
    """
    n = len(weights)
    a = np.zeros((n + 1, n + 1))
    a[0, 1:] = a[1:, 0] = weights
    return check(a)


def size_weighted(sizes: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Float:
    """Return the complete graph ``a_kl = ñ_k ñ_l / Σ ñ`` whose step η = 1 is the weighted mean.

    Args:
        sizes: Example counts, positive.
        clusters: Labels: each cluster gets a complete graph of its own. None is one cluster.

    Raises:
        AggregationError: A size is not positive and finite, or the lengths differ.
    """
    relative = relative_sizes(sizes)
    a = np.outer(relative, relative)
    same = _same(clusters, len(a)) if clusters is not None else np.ones_like(a, dtype=bool)
    return _hollow(np.where(same, a / (same @ relative)[:, None], 0.0))


def random(n: int, rng: np.random.Generator, density: float = 1.0) -> Float:
    """Return a random graph: each pair has an edge with chance ``density``, its weight in (0, 1].

    The graph of MIRA's experiments (IEEE Networking Letters 7(3), 2025), and a control.

    Raises:
        AggregationError: ``density`` is not in [0, 1].
    """
    if not 0 <= density <= 1:
        raise AggregationError(f"density must lie in [0, 1], got {density}")
    upper = np.triu((rng.random((n, n)) < density) * (1.0 - rng.random((n, n))), 1)
    return upper + upper.T


def within(adjacency: Array, clusters: Sequence[Hashable], cross: float = 0.0) -> Float:
    """Return the edges inside clusters as they are, and those between clusters times ``cross``.

    Raises:
        AggregationError: ``cross`` is not in [0, 1], or the labels are not one a client.
    """
    a = check(adjacency)
    if not 0 <= cross <= 1:
        raise AggregationError(f"cross must lie in [0, 1], got {cross}")
    return np.where(_same(clusters, len(a)), a, cross * a)


def degrees(adjacency: Array) -> Float:
    """Return the sum of each client's edges, shape ``(n,)``; zero for a client alone."""
    total: Float = check(adjacency).sum(axis=1)
    return total


def relative_sizes(sizes: Sequence[float]) -> Float:
    """Return ``ñ_k = n_k / mean n``.

    Raises:
        AggregationError: There is no size, or one is not positive and finite.
    """
    n = np.asarray(sizes, np.float64)
    if n.ndim != 1 or not n.size or not (np.isfinite(n).all() and (n > 0).all()):
        raise AggregationError(f"sizes must be positive and finite, got {list(sizes)}")
    relative: Float = n / n.mean()
    return relative


def largest_step(adjacency: Array, sizes: Sequence[float]) -> float:
    """Return the largest η with ``η · max_k(d_k / ñ_k) ≤ 1``; infinite without edges.

    Up to it every client's new model is a convex combination of models: none overshoots.

    Raises:
        AggregationError: The adjacency is none, or the sizes don't fit it.
    """
    d, relative = degrees(adjacency), relative_sizes(sizes)
    if d.shape != relative.shape:
        raise AggregationError(f"{len(relative)} sizes for a graph of {len(d)} clients")
    pull = float((d / relative).max())
    return 1.0 / pull if pull > 0 else math.inf


def self_weighted(weights: Array, sizes: Sequence[float]) -> Float:
    """Return ``a_kl = ñ_k ñ_l w_kl / c``, with ``c`` the largest ``ñ_k + Σ_l w_kl ñ_l`` of a part.

    A part is a set of connected clients, and each has its own c: clients that nothing joins don't
    hold each other's steps down. Every client counts itself at weight 1, so that with weights of 1
    this is ``size_weighted``, whose step η = 1 is the weighted mean; with smaller ones η = 1 leaves
    each client at least its own share.

    Args:
        weights: An adjacency of weights in [0, 1].
        sizes: Example counts.

    Raises:
        AggregationError: The weights are no adjacency or beyond 1, or the sizes don't fit.
    """
    w, relative = check(weights), relative_sizes(sizes)
    if len(w) != len(relative):
        raise AggregationError(f"{len(relative)} sizes for a graph of {len(w)} clients")
    if (w > 1).any():
        raise AggregationError(f"weights must not exceed 1, got {w.max()}")
    total = relative + w @ relative
    _, part = connected_components(csr_matrix(w), directed=False)
    largest = np.zeros(len(w))
    np.maximum.at(largest, part, total)
    return _hollow(w * np.outer(relative, relative) / largest[part][:, None])


def pulls(adjacency: Array, sizes: Sequence[float], eta: float) -> Float:
    """Return ``c_kl = (η / ñ_k) a_kl``, the share of l in client k's step; checked.

    Raises:
        AggregationError: η is negative or beyond ``largest_step``, which the message names, or
            the sizes don't fit the graph.
    """
    bound = largest_step(adjacency, sizes)
    if not 0 <= eta <= bound * (1 + 1e-9):  # a bound computed by a caller may round up
        raise AggregationError(f"eta must lie in [0, {bound:.6g}] on this graph, got {eta}")
    return eta * check(adjacency) / relative_sizes(sizes)[:, None]


def _same(clusters: Sequence[Hashable], n: int) -> NDArray[np.bool_]:
    """Return which pairs share a label."""
    if len(clusters) != n:
        raise AggregationError(f"{len(clusters)} cluster labels for {n} clients")
    number: dict[Hashable, int] = {}
    codes = np.array([number.setdefault(label, len(number)) for label in clusters], np.int64)
    same: NDArray[np.bool_] = codes[:, None] == codes
    return same


def _distances(distances: Array, infinite: bool = False) -> Float:
    """Return distances with a zero diagonal, refused if they are none."""
    d = np.array(distances, np.float64)
    if d.ndim != 2 or d.shape[0] != d.shape[1]:
        raise AggregationError(f"distances of shape {d.shape} are not square")
    np.fill_diagonal(d, 0.0)
    finite = not np.isnan(d).any() if infinite else np.isfinite(d).all()
    if not (finite and (d >= 0).all() and np.allclose(d, d.T, rtol=1e-9, atol=0)):
        raise AggregationError("distances must be finite, not negative and symmetric")
    return np.maximum(d, d.T)  # to the bit


def _hollow(a: Float) -> Float:
    """Return a matrix symmetric to the bit with a zero diagonal."""
    upper: Float = np.triu(a, 1)
    return upper + upper.T
