"""How much each rank of each module is worth: the same statistic on all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Array

IMPORTANCE = "importance"  # what clients tell their singular values under


def energy(singular_values: Array, total: float | None = None) -> list[float]:
    """Return what each further rank captures of the energy, ``σ_i² / Σ σ²``: non-increasing.

    Args:
        singular_values: Of a module's stacked gradients or updates, in any order, not negative.
        total: The energy to divide by; None divides by the module's own, so that the gains sum
            to 1. All zero gives gains of zero.

    Raises:
        AggregationError: A value is negative or not finite, or the total is not positive.
    """
    s = np.sort(np.asarray(singular_values, np.float64))[::-1]
    if s.ndim != 1 or not (np.isfinite(s).all() and (s >= 0).all()):
        raise AggregationError("singular values must be finite and not negative")
    if total is None:
        peak = float(s[0]) if s.size else 0.0
        s = s / peak if peak > 0 else s  # squares of tiny updates underflow
        total = float(s @ s) or 1.0
    if not (total > 0 and math.isfinite(total)):
        raise AggregationError(f"an energy must be positive and finite, got {total}")
    return [float(gain) for gain in s**2 / total]


def utilities(spectra: Mapping[str, Array]) -> dict[str, list[float]]:
    """Return each rank's share of the energy of all modules together; all gains sum to 1.

    Args:
        spectra: Singular values by module, of one statistic in one unit.

    Raises:
        AggregationError: As in ``energy``.
    """
    peak = max((float(np.max(s, initial=0.0)) for s in spectra.values()), default=0.0)
    scaled = {module: np.asarray(s, np.float64) / (peak or 1.0) for module, s in spectra.items()}
    total = math.fsum(float(s @ s) for s in scaled.values())
    return {module: energy(s, total or 1.0) for module, s in scaled.items()}


def normalised(importance: Mapping[str, float]) -> dict[str, float]:
    """Return importances that sum to 1; all zero become equal.

    Raises:
        AggregationError: One is negative or not finite.
    """
    for module, value in importance.items():
        if not (value >= 0 and math.isfinite(value)):
            raise AggregationError(f"{module}: importance must be 0 or more, got {value}")
    total = math.fsum(importance.values())
    if total == 0:
        return {module: 1 / len(importance) for module in importance}
    return {module: value / total for module, value in importance.items()}


def averaged(
    importances: Sequence[Mapping[str, float]], weights: Sequence[float] | None = None
) -> dict[str, float]:
    """Return a cluster's importances: the mean of its clients', each normalised first.

    Args:
        importances: One mapping a client, of the same modules: the scale of a client's gradients
            has no influence.
        weights: Example counts, positive; None counts clients alike.

    Raises:
        AggregationError: There is no client, modules differ, or an importance or weight is none.
    """
    if not importances:
        raise AggregationError("the mean of no client is not defined")
    shares = [1.0] * len(importances) if weights is None else list(weights)
    if len(shares) != len(importances) or not all(0 < w < math.inf for w in shares):
        raise AggregationError(f"weights must be positive, one a client, got {shares}")
    for own in importances:
        if odd := sorted(own.keys() ^ importances[0].keys()):
            raise AggregationError(f"{odd[0]}: not every client has an importance for it")
    each = [normalised(own) for own in importances]
    total = math.fsum(shares)
    return {
        module: math.fsum(w * own[module] for w, own in zip(shares, each, strict=True)) / total
        for module in importances[0]
    }


def mean_gains(clients: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Return a cluster's gains by module: the mean of its clients', rank by rank.

    Non-increasing gains stay so. Clients count alike: each one's gains sum to the same.

    Args:
        clients: ``utilities`` of each, of the same modules and lengths.

    Raises:
        AggregationError: There is no client, or modules or lengths differ.
    """
    if not clients:
        raise AggregationError("the mean of no client is not defined")
    first = clients[0]
    for own in clients:
        if odd := sorted(own.keys() ^ first.keys()):
            raise AggregationError(f"{odd[0]}: not every client has gains for it")
        if odd := [m for m in own if len(own[m]) != len(first[m])]:
            raise AggregationError(f"{odd[0]}: clients have gains for different ranks")
    return {
        module: [float(v) for v in np.mean([own[module] for own in clients], axis=0)]
        for module in first
    }
