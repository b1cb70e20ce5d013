"""Fingerprints of several clients as arrays of one shape, read, checked and pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm  # type: ignore[import-untyped]

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.sketch import Float
from atlas_flwr.types import Array, Tensors


@dataclass
class Prints:
    """The fingerprints of n clients (or of clusters of them) of one label space.

    Attributes:
        means: Cell means of both halves, ``(n, 2, cells, width)``; 0 where a cell has no rows.
        rows: How many rows each is worth, ``(n, 2, cells)``.
        variance: Variance inside the cells, ``(n, width)``.
        freedom: How many residuals that variance is of, ``(n,)``.
        crowding: One over the noise's effective dimension, ``(n,)``; NaN where it isn't told.
    """

    means: Float
    rows: Float
    variance: Float
    freedom: Float
    crowding: Float

    def __len__(self) -> int:
        return len(self.means)

    def take(self, at: Sequence[int]) -> Prints:
        """Return a copy of some of them."""
        index = np.asarray(at, np.int64)
        parts = (self.means, self.rows, self.variance, self.freedom, self.crowding)
        return Prints(*(part[index] for part in parts))

    def join(self, one: int, other: int) -> None:
        """Pool two in place: ``one`` becomes the fingerprint of both's rows, ``other`` is stale.

        Halves stay halves, so their noise stays independent.
        """
        pair = [one, other]
        rows = self.rows[pair]
        total = rows.sum(axis=0)
        sums = (rows[..., None] * self.means[pair]).sum(axis=0)
        self.means[one] = sums / np.where(total > 0, total, 1.0)[..., None]
        self.rows[one] = total
        free = self.freedom[pair]
        self.variance[one] = _mean(self.variance[pair], free)
        told = ~np.isnan(self.crowding[pair])
        if told.any():
            self.crowding[one] = _mean(self.crowding[pair][told], free[told])
        self.freedom[one] = free.sum()


def class_rows(prints: Sequence[Tensors]) -> tuple[int, ...]:
    """Return how many rows of each measured class some fingerprints are of, all together.

    Raises:
        AggregationError: There is none, or they are broken.
    """
    return tuple(int(rows) for rows in read(prints).rows.sum(axis=(0, 1)).round())


def mixes_apart(prints: Sequence[Tensors]) -> float:
    """Return how far the label mixes of two clients are apart at most, in [0, 1).

    By the total variation distance ``½ Σ_c |π_c − ρ_c|``, less what draws of n and m rows from one
    mix p give it, ``½ Σ_c √(2 p_c (1 − p_c) (1/n + 1/m) / π)``, p that of both together. What is
    left counts where it is beyond z times ``½ √(1/n + 1/m)``, which no standard deviation of the
    distance exceeds, z that of one in 1000 shared by all pairs; 0 where no pair is.

    Args:
        prints: Fingerprints of one label space, of class means without noise.

    Raises:
        AggregationError: There is none, or they are broken.
    """
    rows = read(prints).rows.sum(axis=1)
    rows = rows[rows.sum(axis=1) > 0]
    total = rows.sum(axis=1, keepdims=True)
    pairs, furthest = max(len(rows) * (len(rows) - 1) // 2, 1), 0.0
    z = float(norm.isf(1e-3 / pairs))
    for index in range(len(rows) - 1):
        others, many = rows[index + 1 :], total[index + 1 :]
        both = (rows[index] + others) / (total[index] + many)
        error = np.sqrt(1 / total[index] + 1 / many)
        apart = np.abs(rows[index] / total[index] - others / many)
        left = (apart - error * np.sqrt(2 / np.pi * both * (1 - both))).sum(axis=1) / 2
        furthest = max(furthest, float(left[left > z * error[:, 0] / 2].max(initial=0.0)))
    return furthest


def read(prints: Sequence[Tensors]) -> Prints:
    """Return the fingerprints of one label space.

    Raises:
        AggregationError: There is none, an array is missing, shapes differ from each other, or a
            number is not finite or negative where it can't be.
    """
    if not prints:
        raise AggregationError("no fingerprints")
    for index, own in enumerate(prints):
        _check(own, index, prints[0])
    stacked = np.stack([np.asarray(own["sketch"], np.float64) for own in prints])
    facts = np.stack([np.asarray(own["facts"], np.float64) for own in prints])
    n, many, width = stacked.shape
    rows = facts[:, :-1].reshape(n, 2, many // 2)
    means = stacked[:, :-1].reshape(n, 2, many // 2, width)
    dims = facts[:, -1]
    return Prints(
        means,
        rows,
        stacked[:, -1] ** 2,
        np.maximum(rows.sum(axis=1) - 1, 0.0).sum(axis=1),
        np.divide(1.0, dims, out=np.full(n, np.nan), where=dims > 0),
    )


def vectors(prints: Sequence[Tensors]) -> tuple[Float, tuple[Float, Float]]:
    """Return what cosines compare: the mean over a client's rows, ``(n, width)``, and its halves'.

    For ``clustering.cluster``; of class means this is the label mix's mean, an embedding.
    """
    all_ = read(prints)
    one, other = (overall(all_, h)[0] for h in (0, 1))
    rows = all_.rows.sum(axis=2)
    whole = rows[:, :1] * one + rows[:, 1:] * other
    return whole / np.maximum(rows.sum(axis=1, keepdims=True), 1e-300), (one, other)


def overall(prints: Prints, half: int) -> tuple[Float, Float]:
    """Return the means over all rows of a half, ``(n, width)``, and their rows, ``(n,)``."""
    rows = prints.rows[:, half]
    total = rows.sum(axis=1)
    sums = np.einsum("nc,ncp->np", rows, prints.means[:, half])
    return sums / np.where(total > 0, total, 1.0)[:, None], total


def _mean(values: Array, weights: Float) -> Float:
    """Return the weighted mean over the first axis; the plain one where no weight is positive."""
    mean: Float = np.average(values, axis=0, weights=weights if weights.sum() > 0 else None)
    return mean


def _check(own: Tensors, index: int, first: Tensors) -> None:
    lacks = {"sketch", "facts"} - own.keys()
    if lacks:
        raise AggregationError(f"fingerprint {index} lacks {', '.join(sorted(lacks))}")
    sketch, facts, shape = own["sketch"], own["facts"], first["sketch"].shape
    odd = sketch.ndim == 2 and sketch.shape[0] % 2 == 1 and sketch.shape[0] >= 3
    if not odd or sketch.shape != shape or facts.shape != sketch.shape[:1]:
        raise AggregationError(
            f"fingerprint {index} has shape {sketch.shape} and {facts.shape}, the first {shape}"
        )
    if not (np.isfinite(sketch).all() and np.isfinite(facts).all() and (facts >= 0).all()):
        raise AggregationError(f"fingerprint {index} has numbers that are no rows' means")
