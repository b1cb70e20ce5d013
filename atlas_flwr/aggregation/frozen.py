"""Means of one factor alone: B beside a frozen A (FFA-LoRA), A beside local B's (FedSA-LoRA)."""

from __future__ import annotations

import numpy as np

from atlas_flwr.aggregation.factors import (
    RowMean,
    check_factors,
    check_matrix,
    check_weight,
    up_at_scale,
)
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, Array, LoraFactors


class UpMean:
    """FFA-LoRA: the mean of B over clients that share one frozen, nested A.

    Every client's A must be the first rows of one matrix A⁰. B's columns beyond a client's rank
    are zero, which is its very product, so the zero-padded mean over all clients is exact:
    ``Σ p_k s_k B_k A⁰[:r_k] = B̄ A⁰``. Scales are put on B, A⁰ comes back value for value: serve
    with ``factors.up_at_scale``. Sun et al., ICLR 2024; mixed ranks are not in the paper.

    Args:
        owners: Average column j over the clients whose rank exceeds j only. This is another
            estimator, not the mean product: higher ranks weigh more in their own columns.
    """

    def __init__(self, *, owners: bool = False) -> None:
        self._owners = owners
        self._downs: dict[str, Array] = {}
        self._ups: dict[str, RowMean] = {}

    def add(self, adapter: Adapter, weight: float) -> None:
        """Fold one client's adapter, with its example count as weight.

        Raises:
            AggregationError: The weight is not positive and finite, a module's factors are not
                finite or lack a partner, its B has another ``d_out`` than an earlier client's,
                or its A is not the first rows of the A the others hold.
        """
        check_weight(weight)
        for module, factors in adapter.items():
            check_factors(module, factors)
            self._check(module, factors)
        for module, factors in adapter.items():
            self._downs[module] = max(self._downs.get(module, factors.a), factors.a, key=len)
            up = up_at_scale(factors, 1.0).b
            self._ups.setdefault(module, RowMean(len(up))).add(up.T, weight)

    def result(self) -> dict[str, LoraFactors]:
        """Return A⁰ and the mean of B at the highest rank folded, float64, scale 1.

        Raises:
            AggregationError: Nothing was folded.
        """
        if not self._ups:
            raise AggregationError("the mean of no client is not defined")
        return {
            module: LoraFactors(
                self._downs[module].astype(np.float64),
                (up.owner_mean() if self._owners else up.mean()).T,
                1.0,
            )
            for module, up in self._ups.items()
        }

    def _check(self, module: str, factors: LoraFactors) -> None:
        if module not in self._ups:
            return
        if factors.b.shape[0] != self._ups[module].width:
            raise AggregationError(
                f"{module}.lora_B: d_out {factors.b.shape[0]} differs from "
                f"{self._ups[module].width}"
            )
        known = self._downs[module]
        shared = min(len(known), factors.rank)
        if not np.array_equal(known[:shared], factors.a[:shared]):
            raise AggregationError(
                f"{module}.lora_A: differs between clients; this rule needs one frozen A, of "
                "which every client holds the first rows"
            )


class DownMean:
    """FedSA-LoRA: the mean of A alone; each client keeps its B.

    Row j is averaged over the clients whose rank exceeds j (with one rank: the plain mean).
    A is averaged as it is, without its scale: the products never meet, each client goes on with
    its own B and scale, so serve the rows as they are (``factors.truncate``, no ``at_scale``).
    Guo et al., ICLR 2025; mixed ranks are not in the paper.
    """

    def __init__(self) -> None:
        self._downs: dict[str, RowMean] = {}

    def add(self, adapter: Adapter, weight: float) -> None:
        """Fold one client's A factors, with its example count as weight.

        Each B must be the absent factor, shape ``(0, r)``.

        Raises:
            AggregationError: The weight is not positive and finite, a B came along, an A is not
                finite or has another ``d_in`` than an earlier client's.
        """
        check_weight(weight)
        for module, factors in adapter.items():
            self._check(module, factors)
        for module, factors in adapter.items():
            width = factors.a.shape[1]
            self._downs.setdefault(module, RowMean(width)).add(factors.a, weight)

    def result(self) -> dict[str, LoraFactors]:
        """Return the mean of A at the highest rank folded, float64; B has shape ``(0, r)``.

        Raises:
            AggregationError: Nothing was folded.
        """
        if not self._downs:
            raise AggregationError("the mean of no client is not defined")
        return {
            module: LoraFactors(down.owner_mean(), np.zeros((0, down.height)), 1.0)
            for module, down in self._downs.items()
        }

    def _check(self, module: str, factors: LoraFactors) -> None:
        check_matrix(f"{module}.lora_A", factors.a)
        if factors.b.shape != (0, factors.rank):
            raise AggregationError(
                f"{module}.lora_B: must stay with its client, but came in shape {factors.b.shape}"
            )
        known = self._downs.get(module)
        if known is not None and known.width != factors.a.shape[1]:
            raise AggregationError(
                f"{module}.lora_A: d_in {factors.a.shape[1]} differs from {known.width}"
            )
