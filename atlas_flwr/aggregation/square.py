"""Fed-SB: only a square core R between frozen factors is trained, ``P = s · B⁰ R A⁰``.

B⁰ (d_out, r) and A⁰ (r, d_in) are the same for all clients, so the product is linear in R and the
mean of cores is the mean of products, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.aggregation.factors import check_matrix, check_weight
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Array, LoraFactors


def between(factors: LoraFactors, core: Array) -> LoraFactors:
    """Put a core between frozen factors: ``(B⁰ R, A⁰, s)``, B in float64, A as it is.

    Raises:
        AggregationError: The core is not ``(r, r)``.
    """
    if core.shape != (factors.rank, factors.rank):
        raise AggregationError(f"a core of shape {core.shape} does not fit rank {factors.rank}")
    up = factors.b.astype(np.float64) @ core.astype(np.float64)
    return LoraFactors(factors.a, up, factors.scale)


class CoreMean:
    """Fed-SB: the mean of the clients' cores, zero-padded to the highest rank folded.

    A client of rank r trains the leading ``(r, r)`` block between the first r columns of B⁰ and
    rows of A⁰, the others being zero, which is its very product: the mean is over all clients
    that have the module, and ``B⁰ R̄ A⁰ = Σ p_k B⁰ R_k A⁰`` exactly. This needs one scale for all
    clients; where scales differ, fold ``s_k R_k``. Singhal et al. 2025 (arXiv 2502.15436); mixed
    ranks are not in the paper.
    """

    def __init__(self) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._weights: dict[str, float] = {}

    def add(self, cores: Mapping[str, Array], weight: float) -> None:
        """Fold one client's cores by module, with its example count as weight.

        Raises:
            AggregationError: The weight is not positive and finite, or a core is not square,
                empty or not finite.
        """
        check_weight(weight)
        for module, core in cores.items():
            check_matrix(module, core)
            if core.shape[0] != core.shape[1]:
                raise AggregationError(f"{module}: a core must be square, got {core.shape}")
        for module, core in cores.items():
            rank = len(core)
            total = self._sums.get(module, np.zeros((rank, rank)))
            total = np.pad(total, (0, max(0, rank - len(total))))
            total[:rank, :rank] += weight * core.astype(np.float64)
            self._sums[module] = total
            self._weights[module] = self._weights.get(module, 0.0) + weight

    def result(self) -> dict[str, Array]:
        """Return the mean cores in float64.

        Raises:
            AggregationError: Nothing was folded.
        """
        if not self._sums:
            raise AggregationError("the mean of no client is not defined")
        return {module: total / self._weights[module] for module, total in self._sums.items()}


def seeded_up(d_out: int, rank: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw ``rank`` orthonormal columns, shape ``(d_out, rank)``, nested over the rank.

    The first columns don't depend on how many are drawn from a generator in the same state, so
    clients of all ranks hold parts of one B⁰. A random basis: the paper takes B⁰ and A⁰ from an
    SVD of a first gradient (LoRA-SB) instead.

    Raises:
        AggregationError: The rank is below 1 or above ``d_out``.
    """
    if not 1 <= rank <= d_out:
        raise AggregationError(f"rank {rank} needs between 1 and {d_out} orthonormal columns")
    basis = np.zeros((rank, d_out))
    for index in range(rank):
        # Drawn one by one, and made orthogonal to those before alone: later ones change nothing.
        drawn = rng.standard_normal(d_out)
        for _ in range(2):  # the second pass removes what rounding left of the first
            drawn -= basis[:index].T @ (basis[:index] @ drawn)
        basis[index] = drawn / np.linalg.norm(drawn)
    return np.ascontiguousarray(basis.T)
