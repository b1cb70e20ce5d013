"""Many numbers made few with a seed that all clients share: inner products survive.

A matrix with orthonormal rows for features (Johnson and Lindenstrauss 1984), a count sketch for
gradients (Charikar et al. 2002; Weinberger et al. 2009), and how many numbers 8 KB hold.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import AggregationError
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Array

Float = NDArray[np.float64]

LIMIT = 8192  # bytes of a fingerprint, as it travels
FEWEST = 16  # projected dimensions; with less room than that, some classes have no cell
_OVERHEAD = 2 * 200  # the names, headers and shapes of two arrays
_NUMBER, _FACT = 2, 4  # bytes of an fp16 number of the sketch, and of the fp32 fact of its row


def layout(features: int, classes: int, limit: int = LIMIT) -> tuple[int, int]:
    """Return ``(cells, width)``: how many groups of classes, and dimensions, the limit holds.

    A sketch has two rows for each cell (a mean for each half of the rows) and one for the spread.
    Each class has a cell of its own while 16 dimensions fit; beyond that ``measured`` says which
    classes have one. To share cells would make means depend on the label mix.

    Args:
        features: Dimensions before projection.
        classes: Classes of the label space, at least 1.
        limit: Bytes.

    Raises:
        AggregationError: The limit holds not even one class, or there is none.
    """
    room = limit - _OVERHEAD
    least = _NUMBER * min(features, FEWEST) + _FACT
    if classes < 1 or features < 1 or room < 3 * least:
        raise AggregationError(f"{limit} bytes hold no sketch of {classes} classes")
    cells = min(classes, (room // least - 1) // 2)
    width = (room // (2 * cells + 1) - _FACT) // _NUMBER
    return cells, min(features, width)


def measured(classes: int, cells: int, seed: int) -> NDArray[np.int64]:
    """Return the classes that have a cell, ascending: all of them, or some drawn from the seed.

    Args:
        classes: Classes of the label space.
        cells: How many of them a sketch holds.
        seed: The run's, the same on every client.
    """
    if cells >= classes:
        return np.arange(classes)
    drawn = rng_for(seed, f"fingerprint-classes/{classes}").permutation(classes)[:cells]
    return np.sort(drawn)


def project(features: Array, width: int, seed: int) -> Float:
    """Return rows in ``width`` dimensions, ``(n, width)``; as they are where that is all they have.

    Rows are multiplied by ``√(d / width)`` times a ``(width, d)`` matrix with orthonormal rows,
    uniform among those (Haar) and a function of the seed: inner products are right on average, with
    an error of about ``‖x‖ ‖y‖ / √width``.

    Args:
        features: Rows, ``(n, d)``.
        width: Dimensions wanted, at most d.
        seed: The run's, the same on every client.
    """
    x = np.asarray(features, np.float64)
    d = x.shape[1]
    return x if width == d else x @ _orthonormal(d, width, seed).T * math.sqrt(d / width)


def count_sketch(values: Array, width: int, seed: int, role: str) -> Float:
    """Return signed sums of the values in ``width`` random buckets, shape ``(width,)``.

    Linear, and inner products are right on average. Sketches of several tensors add up.

    Args:
        values: Any shape; read in C order.
        width: Buckets.
        seed: The run's, the same on every client.
        role: What the values are (a tensor's name); roles never share buckets.
    """
    flat = np.asarray(values, np.float64).ravel()
    rng = rng_for(seed, f"fingerprint/{role}")
    buckets = rng.integers(0, width, flat.size, dtype=np.int32)
    signs = rng.integers(0, 2, flat.size, dtype=np.int8) * 2 - 1
    sums = np.bincount(buckets, weights=flat * signs, minlength=width)
    return np.asarray(sums, np.float64)


def _orthonormal(d: int, width: int, seed: int) -> Float:
    """Return ``(width, d)`` orthonormal rows, drawn uniformly."""
    drawn = rng_for(seed, f"fingerprint-projection/{d}").standard_normal((d, width))
    q, r = np.linalg.qr(drawn)
    rows: Float = (q * np.where(np.diagonal(r) < 0, -1.0, 1.0)).T
    return rows
