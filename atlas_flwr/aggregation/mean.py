"""Weighted means of equally shaped tensors, folded one client at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Array, Tensors


class RunningMean:
    """The weighted mean ``Σ n_k x_k / Σ n_k`` of named tensors, one client in memory at a time.

    Sums are kept in float64 whatever the clients sent, and the mean is returned in the clients'
    own dtype. Shapes must agree: nothing is ever broadcast, so a rank-1 adapter can't slip in
    beside a rank-4 one. Folding order fixes the last bit; callers fold in partition order.
    """

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._dtypes: dict[str, np.dtype[np.generic]] = {}
        self._weight = 0.0

    @property
    def weight(self) -> float:
        """The sum of the weights folded so far."""
        return self._weight

    def add(self, tensors: Tensors, weight: float) -> None:
        """Fold one client's tensors.

        Args:
            tensors: Named arrays; names and shapes as in the first call.
            weight: The client's example count, positive and finite.

        Raises:
            AggregationError: The weight is not positive, a name or shape differs, or a value is
                not finite.
        """
        if not (weight > 0 and np.isfinite(weight)):
            raise AggregationError(f"weight must be positive and finite, got {weight}")
        if self._sums and tensors.keys() != self._sums.keys():
            odd = sorted(tensors.keys() ^ self._sums.keys())[0]
            raise AggregationError(f"{odd}: not every client sent this tensor")
        for name, tensor in tensors.items():
            self._check(name, tensor)
        for name, tensor in tensors.items():
            term = weight * tensor.astype(np.float64)
            self._sums[name] = self._sums[name] + term if name in self._sums else term
            self._dtypes.setdefault(name, tensor.dtype)
        self._weight += weight

    def result(self, dtype: type[np.floating[Any]] | None = None) -> dict[str, Array]:
        """Return the mean, by default in the clients' dtypes; integers are refused on the way in.

        Raises:
            AggregationError: Nothing was folded.
        """
        if self._weight == 0:
            raise AggregationError("the mean of no client is not defined")
        return {
            name: (total / self._weight).astype(dtype or self._dtypes[name])
            for name, total in self._sums.items()
        }

    def _check(self, name: str, tensor: Array) -> None:
        if not np.issubdtype(tensor.dtype, np.floating):
            raise AggregationError(f"{name}: dtype {tensor.dtype} has no mean")
        if name in self._sums and tensor.shape != self._sums[name].shape:
            raise AggregationError(
                f"{name}: shape {tensor.shape} differs from {self._sums[name].shape}"
            )
        if not np.isfinite(tensor).all():
            raise AggregationError(f"{name}: holds values that are not finite")


class GroupedMean:
    """One running mean per group, e.g. a mean for each task's head."""

    def __init__(self) -> None:
        self._means: dict[str, RunningMean] = {}

    def add(self, group: str, tensors: Tensors, weight: float) -> None:
        """Fold one client's tensors into its group; a client that sent none leaves no trace."""
        if tensors:
            self._means.setdefault(group, RunningMean()).add(tensors, weight)

    def results(self) -> Mapping[str, dict[str, Array]]:
        """Return each group's mean."""
        return {group: mean.result() for group, mean in self._means.items()}
