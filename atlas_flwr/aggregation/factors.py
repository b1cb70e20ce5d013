"""What every rule on LoRA factors shares: checks, truncation, padding, scales, means by rows.

Factors are averaged at scale 1: ``(A, B, s)`` becomes ``(√s A, √s B, 1)``, the same product, so
coordinates of clients with different scales may be summed (averaging the raw factors of clients
whose scales differ mixes different units). ``at_scale`` undoes it for a receiver.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, Array, LoraFactors

Matrix = NDArray[np.float64]


def check_weight(weight: float) -> None:
    """Refuse a client's weight that is not positive and finite.

    Raises:
        AggregationError: It is not.
    """
    if not (weight > 0 and np.isfinite(weight)):
        raise AggregationError(f"weight must be positive and finite, got {weight}")


def check_matrix(name: str, matrix: Array) -> None:
    """Refuse a matrix that has no mean.

    Raises:
        AggregationError: It is not two-dimensional, holds nothing, has no floating dtype, or
            holds a value that is not finite.
    """
    if matrix.ndim != 2:
        raise AggregationError(f"{name}: shape {matrix.shape} is not a matrix")
    if matrix.size == 0:
        raise AggregationError(f"{name}: no values in shape {matrix.shape}, a factor is missing")
    if not np.issubdtype(matrix.dtype, np.floating):
        raise AggregationError(f"{name}: dtype {matrix.dtype} has no mean")
    if not np.isfinite(matrix).all():
        raise AggregationError(f"{name}: holds values that are not finite")


def check_factors(module: str, factors: LoraFactors) -> None:
    """Refuse factors that are not one finite low-rank product of positive scale.

    Raises:
        AggregationError: A factor is missing or holds values that are not finite, the two
            disagree on the rank, or the scale is not positive and finite.
    """
    check_matrix(f"{module}.lora_A", factors.a)
    check_matrix(f"{module}.lora_B", factors.b)
    if factors.a.shape[0] != factors.b.shape[1]:
        raise AggregationError(
            f"{module}: A {factors.a.shape} and B {factors.b.shape} disagree on the rank"
        )
    _check_scale(module, factors.scale)


def truncate(factors: LoraFactors, rank: int) -> LoraFactors:
    """Keep the first ``rank`` rows of A and columns of B; dtypes and scale stay.

    The rows are dropped as they lie: the cut is the best of its rank only where the rows are
    ordered by what they contribute. Either factor may be absent (size 0) and stays absent.

    Raises:
        AggregationError: ``rank`` is below 1 or above the factors' own.
    """
    if not 1 <= rank <= factors.rank:
        raise AggregationError(f"rank {factors.rank} can't be cut to {rank}")
    a, b = factors.a[:rank], factors.b[:, :rank]
    return LoraFactors(np.ascontiguousarray(a), np.ascontiguousarray(b), factors.scale)


def pad(factors: LoraFactors, rank: int) -> LoraFactors:
    """Append zero rows to A and zero columns to B up to ``rank``; the product stays.

    Raises:
        AggregationError: ``rank`` is below the factors' own.
    """
    missing = rank - factors.rank
    if missing < 0:
        raise AggregationError(f"rank {factors.rank} can't be padded to {rank}")
    a = np.pad(factors.a, ((0, missing), (0, 0)))
    return LoraFactors(a, np.pad(factors.b, ((0, 0), (0, missing))), factors.scale)


def at_scale(factors: LoraFactors, scale: float) -> LoraFactors:
    """Return the same product in float64 with another scale, the change split evenly on A and B.

    Raises:
        AggregationError: A scale is not positive and finite.
    """
    _check_scale("at_scale", factors.scale)
    _check_scale("at_scale", scale)
    part = np.sqrt(factors.scale / scale)
    return LoraFactors(part * _double(factors.a), part * _double(factors.b), scale)


def up_at_scale(factors: LoraFactors, scale: float) -> LoraFactors:
    """Return the same product with another scale, the change put on B alone.

    A comes back value for value in its own dtype; B in float64. For rules whose A is frozen.

    Raises:
        AggregationError: A scale is not positive and finite.
    """
    _check_scale("up_at_scale", factors.scale)
    _check_scale("up_at_scale", scale)
    return LoraFactors(factors.a, factors.scale / scale * _double(factors.b), scale)


class RowMean:
    """The weighted mean of matrices of one width by rows, in float64, one in memory at a time.

    Rows a shorter matrix lacks count as zero in ``mean`` and not at all in ``owner_mean``.
    Matrices of weight 0 set the height, and have no other influence as long as any matrix has
    weight; if none has, all of them count equally.

    Attributes:
        width: The number of columns all matrices share.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self._sums: Matrix = np.zeros((0, width))
        self._owned: Matrix = np.zeros((0, 1))
        self._total = 0.0
        self._weighted = False

    @property
    def height(self) -> int:
        """The number of rows of the highest matrix so far."""
        return len(self._sums)

    def add(self, rows: Array, weight: float) -> None:
        """Fold one matrix, shape ``(height, width)``; the caller has checked it."""
        self._grow(len(rows))
        if weight > 0 and not self._weighted:
            # Until now only matrices of weight 0 came: forget their values, keep their height.
            self._sums[:], self._owned[:], self._total = 0.0, 0.0, 0.0
            self._weighted = True
        if self._weighted and weight == 0:
            return
        share = weight if self._weighted else 1.0
        self._sums[: len(rows)] += share * _double(rows)
        self._owned[: len(rows)] += share
        self._total += share

    def mean(self) -> Matrix:
        """Return ``Σ w_k x_k / Σ w_k``, rows that a client lacks taken as zero."""
        return self._sums / self._total

    def owner_mean(self) -> Matrix:
        """Return each row's mean over the clients that have the row."""
        return self._sums / self._owned

    def _grow(self, height: int) -> None:
        if (missing := height - self.height) > 0:
            self._sums = np.pad(self._sums, ((0, missing), (0, 0)))
            self._owned = np.pad(self._owned, ((0, missing), (0, 0)))


class FactorSums:
    """Running means of A's rows and of B's columns by module, at scale 1.

    A module that some client lacks is a mean over the clients that have it. Memory holds one
    pair of factors a module, however many clients are folded.
    """

    def __init__(self) -> None:
        self._downs: dict[str, RowMean] = {}
        self._ups: dict[str, RowMean] = {}

    def check(self, adapter: Adapter) -> None:
        """Refuse what can't be folded; nothing is ever broadcast.

        Raises:
            AggregationError: Factors that are not finite, lack a partner, or differ from the
                earlier clients' in ``(d_out, d_in)``.
        """
        for module, factors in adapter.items():
            check_factors(module, factors)
            if module not in self._downs:
                continue
            down, up = self._downs[module], self._ups[module]
            shape = (factors.b.shape[0], factors.a.shape[1])
            if shape != (up.width, down.width):
                raise AggregationError(
                    f"{module}: shape {shape} differs from {(up.width, down.width)}"
                )

    def add(self, adapter: Adapter, weight: float) -> None:
        """Fold a checked adapter with a weight of 0 or more."""
        for module, factors in adapter.items():
            unit = at_scale(factors, 1.0)
            self._downs.setdefault(module, RowMean(unit.a.shape[1])).add(unit.a, weight)
            self._ups.setdefault(module, RowMean(unit.b.shape[0])).add(unit.b.T, weight)

    def mean(self) -> dict[str, LoraFactors]:
        """Return the means of zero-padded factors, scale 1.

        Raises:
            AggregationError: Nothing was folded.
        """
        return {m: LoraFactors(a.mean(), b.mean().T, 1.0) for m, a, b in self._pairs()}

    def owner_mean(self) -> dict[str, LoraFactors]:
        """Return the factors whose every row and column is a mean over its owners, scale 1.

        Raises:
            AggregationError: Nothing was folded.
        """
        return {m: LoraFactors(a.owner_mean(), b.owner_mean().T, 1.0) for m, a, b in self._pairs()}

    def _pairs(self) -> list[tuple[str, RowMean, RowMean]]:
        if not self._downs:
            raise AggregationError("the mean of no client is not defined")
        return [(module, down, self._ups[module]) for module, down in self._downs.items()]


def _check_scale(module: str, scale: float) -> None:
    if not (scale > 0 and np.isfinite(scale)):
        raise AggregationError(f"{module}: scale must be positive and finite, got {scale}")


def _double(array: Array) -> Matrix:
    return array.astype(np.float64)
