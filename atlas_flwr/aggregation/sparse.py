"""Sparse updates: keep the largest entries, and say what the others were (FLASC)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Array, Tensors


def keep_largest(tensors: Tensors, density: float) -> dict[str, Array]:
    """Keep the ``⌈density · n⌉`` entries largest in magnitude over all tensors, zeros elsewhere.

    Ties are broken by position: names in alphabetical order, then the flat index. The tensors
    compete together, so one of small values may come back empty. FLASC (Kuo et al. 2024,
    arXiv 2406.05233) sends LoRA this way and trains it dense; that it ranks all entries together
    rather than tensor by tensor could not be checked against the paper's text.

    Args:
        tensors: Named floating arrays of any shape.
        density: Fraction to keep, in (0, 1]; 1 returns equal arrays.

    Returns:
        New arrays of the same names, shapes and dtypes.

    Raises:
        AggregationError: The density is outside (0, 1], or a value is not finite.
    """
    if not 0 < density <= 1:
        raise AggregationError(f"density must be in (0, 1], got {density}")
    names = sorted(tensors)
    for name in names:
        if not np.isfinite(tensors[name]).all():
            raise AggregationError(f"{name}: holds values that are not finite")
    flat = [np.abs(tensors[name].astype(np.float64)).ravel() for name in names]
    sizes = np.concatenate([np.zeros(0), *flat])
    # The slack keeps binary rounding from asking one more: 0.07 · 100 = 7.000000000000001.
    count = math.ceil(density * sizes.size * (1 - 1e-12))
    keep = _largest(sizes, count)
    kept: dict[str, Array] = {}
    start = 0
    for name in names:
        tensor = tensors[name]
        mask = keep[start : start + tensor.size].reshape(tensor.shape)
        kept[name] = np.where(mask, tensor, np.zeros((), tensor.dtype))
        start += tensor.size
    return {name: kept[name] for name in tensors}


def lost(dense: Tensors, sparse: Tensors) -> float | None:
    """Return ``‖dense − sparse‖ / ‖dense‖`` over all tensors together; None if ``dense`` is zero.

    Raises:
        AggregationError: Names or shapes differ.
    """
    if dense.keys() != sparse.keys():
        odd = sorted(dense.keys() ^ sparse.keys())[0]
        raise AggregationError(f"{odd}: not on both sides")
    missed = whole = 0.0
    for name, tensor in dense.items():
        if tensor.shape != sparse[name].shape:
            raise AggregationError(
                f"{name}: shape {sparse[name].shape} differs from {tensor.shape}"
            )
        double = tensor.astype(np.float64)
        missed += float(np.sum((double - sparse[name].astype(np.float64)) ** 2))
        whole += float(np.sum(double**2))
    return math.sqrt(missed / whole) if whole > 0 else None


def _largest(sizes: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """Mark the ``count`` largest entries, the first ones among equals."""
    if count >= sizes.size:
        return np.ones(sizes.size, np.bool_)
    least = np.partition(sizes, sizes.size - count)[sizes.size - count]
    keep: NDArray[np.bool_] = sizes > least
    equal = np.flatnonzero(sizes == least)
    keep[equal[: count - int(keep.sum())]] = True
    return keep
