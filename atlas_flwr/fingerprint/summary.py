"""A client's rows of features as class means of two random halves: the arrays that travel.

A fingerprint is two arrays. ``sketch``, float16, ``(2 · cells + 1, width)``: the means of the first
half's cells, those of the second half's, and the standard deviation inside the cells. ``facts``,
float32, one number a row of it: how many rows a mean is worth, and in how many dimensions the noise
lives, ``(tr S)² / tr S²``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint import sketch
from atlas_flwr.fingerprint.sketch import Float
from atlas_flwr.types import Array, Tensors

_LARGEST = float(np.finfo(np.float16).max)


def summarise(
    features: Array,
    labels: Array,
    classes: int,
    *,
    seed: int,
    rng: np.random.Generator,
    clip: float | None = None,
    noise: float = 0.0,
    limit: int = sketch.LIMIT,
) -> Tensors:
    """Return a fingerprint of rows of features: class means of two random halves.

    Each class's rows are split at random, so that the two means of a class are independent draws of
    one population: their noise cancels in products (``distance``). Of more classes than the limit
    holds, some are measured, the same on every client; rows of others are left out.

    Args:
        features: One row of features each, ``(n, d)``.
        labels: Their classes, ``(n,)``, in ``[0, classes)``.
        classes: Classes of the label space.
        seed: The run's, the same on every client: it draws the projection.
        rng: The client's own: it draws the halves and the noise. Whoever knows it can take the
            noise off again.
        clip: Rows are shortened to this norm after projection.
        noise: Standard deviation of the Gaussian noise, in units of what replacing one row's text
            can change (``privacy.epsilon`` says what that is worth); needs ``clip``. The spread
            is then not the client's but the largest that ``clip`` allows.
        limit: Bytes, serialised.

    Raises:
        AggregationError: Features are not finite, labels don't fit, or noise comes without a clip.
    """
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    _check(x, y, classes, clip, noise)
    cells, width = sketch.layout(x.shape[1], classes, limit)
    kept = sketch.measured(classes, cells, seed)
    own = np.isin(y, kept)
    x, y = sketch.project(x[own], width, seed), np.searchsorted(kept, y[own])
    if clip is not None:
        x = x * np.minimum(1.0, clip / np.maximum(np.linalg.norm(x, axis=1), 1e-300))[:, None]
    half = split(y, rng)
    counts = np.stack([np.bincount(y[half == h], minlength=cells) for h in (0, 1)])
    means = np.zeros((2, cells, width))
    for h, c in np.argwhere(counts):
        means[h, c] = x[(y == c) & (half == h)].mean(axis=0)
    if noise > 0 and clip is not None:
        worth = _blur(means, counts, clip, noise, rng)
        return _pack(means, np.full(width, clip / np.sqrt(width)), worth, 0.0)
    spread, dims = _within(x, y, half, means)
    return _pack(means, spread, counts, dims)


def summarise_vectors(halves: Array, counts: tuple[int, int]) -> Tensors:
    """Return a fingerprint of two vectors, one for each half: what has no rows of features.

    Only its direction is told: both halves are divided by the norm of their mean.

    Args:
        halves: Shape ``(2, width)``.
        counts: Rows behind each.
    """
    both = np.asarray(halves, np.float64)
    size = np.linalg.norm(both.mean(axis=0)) / np.sqrt(both.shape[1])
    if not size > 0:
        raise AggregationError("fingerprint: the halves' mean is zero and has no direction")
    return _pack(both[:, None] / size, np.ones(both.shape[1]), np.array(counts)[:, None], 0.0)


def _check(x: Float, y: NDArray[np.int64], classes: int, clip: float | None, noise: float) -> None:
    if x.ndim != 2 or y.shape != x.shape[:1] or not np.isfinite(x).all():
        raise AggregationError(f"fingerprint: features {x.shape} and labels {y.shape} don't fit")
    if len(y) and not (y.min() >= 0 and y.max() < classes):
        raise AggregationError(f"fingerprint: a label is outside [0, {classes})")
    if noise < 0 or (clip is not None and not clip > 0):
        raise AggregationError(f"fingerprint: noise {noise} or clip {clip} is out of range")
    if noise > 0 and clip is None:
        raise AggregationError("fingerprint: noise protects nothing without a clip")


def split(labels: Array, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the half of each row, 0 or 1: each class in two at random; an odd row in either."""
    half = np.zeros(len(labels), np.int64)
    for c in np.unique(labels):
        at = rng.permutation(np.flatnonzero(labels == c))
        half[at] = (np.arange(len(at)) + rng.integers(2)) % 2
    return half


def _within(
    x: Float, y: NDArray[np.int64], half: NDArray[np.int64], means: Float
) -> tuple[Float, float]:
    """Return the deviation inside the cells, ``(width,)``, and the noise's effective dimension.

    The dimension is 0 where it can't be told. ``tr S²`` is the mean square of products of residuals
    from different halves, which are independent.
    """
    cells = means.shape[1]
    squares, freedom = np.zeros(x.shape[1]), 0
    for c in range(cells):
        own = x[y == c]
        if len(own) > 1:
            squares += ((own - own.mean(axis=0)) ** 2).sum(axis=0)
            freedom += len(own) - 1
    variance = squares / max(freedom, 1)
    white = 1 / np.sqrt(np.maximum(variance, 1e-6 * max(variance.mean(), 1e-300)))
    products = weight = 0.0
    for c in range(cells):
        one, other = ((x[(y == c) & (half == h)] - means[h, c]) * white for h in (0, 1))
        if min(len(one), len(other)) > 1:
            products += float(np.square(one @ other.T).sum())
            weight += (len(one) - 1.0) * (len(other) - 1.0)
    trace = float((variance * white**2).sum())
    return np.sqrt(variance), trace**2 * weight / products if products > 0 else 0.0


def _blur(
    means: Float, counts: NDArray[np.int64], clip: float, noise: float, rng: np.random.Generator
) -> Float:
    """Add noise to the means, in place, and return how many rows each is then worth.

    Replacing a row's text moves one mean by at most ``2 · clip / n``.
    """
    worth = np.zeros(counts.shape)
    for h, c in np.argwhere(counts):
        n = counts[h, c]
        scale = noise * 2 * clip / n
        means[h, c] += scale * rng.standard_normal(means.shape[2])
        variance = clip**2 / means.shape[2]  # of a row, at most
        worth[h, c] = 1 / (1 / n + scale**2 / variance)
    return worth


def _pack(means: Float, spread: Float, worth: Array, dims: float) -> Tensors:
    """Return the two arrays."""
    rows = np.vstack([means.reshape(-1, means.shape[-1]), spread])
    if np.abs(rows).max() > _LARGEST:
        raise AggregationError("fingerprint: features are too large for half precision")
    facts = np.append(np.ravel(worth), dims)
    return {"sketch": rows.astype(np.float16), "facts": facts.astype(np.float32)}
