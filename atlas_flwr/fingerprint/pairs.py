"""The distance of two clients, class by class, with the noise taken off and measured.

Two clients of one task have equal class means whatever their label mixes are. Their squared
distance, estimated from two halves as ``⟨m¹_k − m¹_l, m²_k − m²_l⟩``, is unbiased: the halves'
noises are independent and cancel (the cross-validated Mahalanobis distance, "crossnobis": Walther
et al. 2016; its variance: Diedrichsen et al. 2016). It holds the even part, which domain the texts
are of, and the odd part, how labels relate to them, at once and each at its own size.

Features are whitened by the pair's own variance inside classes. Classes weigh by their precision,
``1 / (s¹ s²)`` with ``sʰ = 1 / nʰ_k + 1 / nʰ_l``: the products' variance is
``s¹ s² tr S² = s¹ s² width² / dims``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.fingerprint.prints import Prints, overall
from atlas_flwr.fingerprint.sketch import Float

How = Literal["classes", "means", "nothing", "spaces"]
HOW: tuple[How, ...] = ("classes", "means", "nothing", "spaces")
_CLASSES, _MEANS, _NOTHING = range(3)

WEAK = 0.02  # an error above which classes tell too little, and overall means are compared too
_CLASSES_APART = 0.01  # how far classes of one task may be apart without a client's showing it
_PRIOR = 16.0  # residuals' worth of the space's variance in each pair's
_FEW = 6  # products of half-differences below which nothing is estimated from them
_FLOOR = 1e-6  # of the mean variance: a feature that all but stands still decides little


@dataclass(frozen=True)
class Shared:
    """What all pairs of a label space are measured by.

    Attributes:
        variance: Pooled variance inside classes, ``(width,)``.
        crowding: One over the noise's effective dimension: as clients measured it on their rows;
            where none could, from products of the halves' differences, which are noise alone.
        between: How far classes of one task may be apart: the root mean square over clients of
            their classes' squared distances, noise taken off, and no less than 0.01.
    """

    variance: Float
    crowding: float
    between: float

    @staticmethod
    def of(prints: Prints) -> Shared:
        """Pool over clients."""
        free = prints.freedom if prints.freedom.sum() > 0 else np.ones(len(prints))
        variance = np.average(prints.variance, axis=0, weights=free)
        told = ~np.isnan(prints.crowding) & (free > 0)
        if told.any():
            crowding = float(np.average(prints.crowding[told], weights=free[told]))
        else:
            crowding = _from_halves(prints, Shared(variance, 1.0, 0.0))
        white = Shared(variance, crowding, 0.0).white(prints.variance, prints.freedom)
        every = np.arange(len(prints))
        found, sure = _between(prints, every, white, np.full(len(prints), crowding))
        square = (sure * found**2).sum() - np.count_nonzero(sure)  # less the noise's own squares
        between = float(np.sqrt(max(square, 0.0) / max(sure.sum(), 1e-300)))
        return Shared(variance, crowding, max(_CLASSES_APART, between))

    def white(self, variance: Float, freedom: Float) -> Float:
        """Return what squares are multiplied by: one over variances shrunk to the pooled one."""
        some = (freedom[:, None] * variance + _PRIOR * self.variance) / (freedom[:, None] + _PRIOR)
        some = np.maximum(some, _FLOOR * some.mean(axis=1, keepdims=True))
        white: Float = np.divide(1.0, some, out=np.zeros_like(some), where=some > 0)
        return white


def compare(prints: Prints, shared: Shared) -> tuple[Float, Float, NDArray[np.int64]]:
    """Return effect, error and how for all pairs, each ``(n, n)``; the diagonal is arbitrary."""
    n = len(prints)
    effect, error, how = np.zeros((n, n)), np.full((n, n), np.inf), np.full((n, n), _NOTHING)
    for index in range(n - 1):
        others = np.arange(index + 1, n)
        row = compare_one(prints, index, others, shared)
        for matrix, values in zip((effect, error, how), row, strict=True):
            matrix[index, others] = matrix[others, index] = values
    return effect, error, how


def compare_one(
    prints: Prints, index: int, others: NDArray[np.int64], shared: Shared
) -> tuple[Float, Float, NDArray[np.int64]]:
    """Return effect, error and how between one and some others, each ``(m,)``."""
    free = prints.freedom[index] + prints.freedom[others]
    pooled = _weighted(prints.variance, prints.freedom, index, others)
    white = shared.white(pooled, free)
    crowding = _crowding(prints, index, others, shared)
    gap = prints.means[index] - prints.means[others]
    with np.errstate(divide="ignore"):
        noise = 1 / prints.rows[index] + 1 / prints.rows[others]
        precision = 1 / (noise[:, 0] * noise[:, 1])  # 0 where either lacks a half of the class
    products = np.einsum("mcp,mcp,mp->mc", gap[:, 0], gap[:, 1], white) / gap.shape[-1]
    total = precision.sum(axis=1)
    some = total > 0
    safe = np.where(some, total, 1.0)
    effect = (precision * np.where(precision > 0, products, 0.0)).sum(axis=1) / safe
    error = np.where(some, np.sqrt(crowding / safe), np.inf)
    how = np.where(some, _CLASSES, _NOTHING)
    weak = np.flatnonzero(error > WEAK)
    if weak.size:
        more = _by_means(prints, index, others[weak], white[weak], crowding[weak], shared.between)
        gain = ~some[weak] | (score(*more) > score(effect[weak], error[weak]))
        effect[weak], error[weak] = np.where(gain, more, (effect[weak], error[weak]))
        how[weak] = np.where(np.isfinite(error[weak]), _MEANS, _NOTHING)
    return effect, error, how


def _by_means(
    prints: Prints,
    index: int,
    others: NDArray[np.int64],
    white: Float,
    crowding: Float,
    prior: float,
) -> tuple[Float, Float]:
    """Compare overall means, less what two label mixes of one task can differ by.

    Of mixes that are a share t apart (total variation) that is t² times the distance between
    classes: the two clients' own, as far as they know it, pulled towards none.
    """
    halves = [overall(prints, h) for h in (0, 1)]
    gaps = [means[index] - means[others] for means, _ in halves]
    with np.errstate(divide="ignore"):
        one, other = (1 / rows[index] + 1 / rows[others] for _, rows in halves)
    known = np.isfinite(one * other)
    one, other = np.where(known, one, 0.0), np.where(known, other, 0.0)
    mix = prints.rows.sum(axis=1)
    mix = mix / np.maximum(mix.sum(axis=1, keepdims=True), 1e-300)
    apart = (np.abs(mix[index] - mix[others]).sum(axis=1) / 2) ** 2
    sums, weights = np.zeros(len(others)), np.full(len(others), 1 / prior**2)
    for at in (np.full(len(others), index), others):
        between, sure = _between(prints, at, white, crowding)
        sums, weights = sums + sure * between, weights + sure
    room = apart * np.maximum(sums / weights, 0.0)
    effect = np.einsum("mp,mp,mp->m", *gaps, white) / white.shape[1] - room
    # The classes' own distance adds a term to the products' variance, and is itself not sure.
    variance = crowding * (one * other + (one + other) * room) + apart**2 / weights
    return np.where(known, effect, 0.0), np.where(known, np.sqrt(variance), np.inf)


def _between(
    prints: Prints, at: NDArray[np.int64], white: Float, crowding: Float
) -> tuple[Float, Float]:
    """Return the mean squared distance between the classes of some clients, and its precision."""
    means, rows = prints.means[at], prints.rows[at]
    gram = np.einsum("mcp,mdp,mp->mcd", means[:, 0], means[:, 1], white) / white.shape[1]
    own = np.einsum("mcc->mc", gram)
    square = own[:, :, None] + own[:, None] - gram - gram.transpose(0, 2, 1)
    with np.errstate(divide="ignore"):
        noise = 1 / rows
    s = noise[:, :, :, None] + noise[:, :, None]
    weight = np.triu(1 / (s[:, 0] * s[:, 1]), 1)
    total = weight.sum(axis=(1, 2))
    mean = (weight * square).sum(axis=(1, 2)) / np.where(total > 0, total, 1.0)
    return mean, total / np.maximum(crowding, 1e-12)


def _from_halves(prints: Prints, plain: Shared) -> float:
    """Return the mean square of products of independent half-differences, per unit of noise.

    With fewer than 6 products: 1, as if all noise lay along one direction.
    """
    at = (prints.rows > 0).all(axis=1)
    gaps = (prints.means[:, 0] - prints.means[:, 1])[at]
    with np.errstate(divide="ignore"):
        noise = (1 / prints.rows).sum(axis=1)[at]
    white = np.sqrt(plain.white(plain.variance[None], np.ones(1)))
    unit = gaps * white / np.sqrt(noise)[:, None]
    one, other = np.triu_indices(len(unit), 1)
    products = (unit @ unit.T)[one, other] / max(gaps.shape[-1], 1)
    return float(np.mean(products**2)) if len(products) >= _FEW else 1.0


def score(effect: Float, error: Float) -> Float:
    """Return ``effect / error``, 0 where nothing can be compared."""
    known = np.isfinite(error)
    return np.where(known, effect / np.where(known & (error > 0), error, 1.0), 0.0)


def _weighted(values: Float, freedom: Float, index: int, others: NDArray[np.int64]) -> Float:
    """Return the mean of one's and others' values, weighted by their freedom."""
    one, rest = freedom[index], freedom[others][:, None]
    total = one + rest
    mean: Float = np.where(
        total > 0,
        (one * values[index] + rest * values[others]) / np.where(total > 0, total, 1.0),
        (values[index] + values[others]) / 2,
    )
    return mean


def _crowding(prints: Prints, index: int, others: NDArray[np.int64], shared: Shared) -> Float:
    """Return one over the effective dimension of each pair's noise, shrunk to the space's."""
    told = ~np.isnan(prints.crowding)
    free = np.where(told, prints.freedom, 0.0)
    values = np.where(told, prints.crowding, 0.0)
    sums = free[index] * values[index] + free[others] * values[others] + _PRIOR * shared.crowding
    crowding: Float = sums / (free[index] + free[others] + _PRIOR)
    return crowding
