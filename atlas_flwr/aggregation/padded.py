"""Means of A and of B apart for mixed ranks: HetLoRA and RBLA, which extend FedIT.

Both are means of factors, not of products: with weights p_k the error against the mean
product is the cross-covariance ``Σ p_k B_k A_k − B̄ Ā = Σ p_k (B_k − B̄)(A_k − Ā)``, and another
basis ``(B G, G⁻¹ A)`` of a client's same update gives another mean. Results are float64 factors
of scale 1; ``factors.at_scale`` and ``factors.truncate`` fit them to a receiver.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from atlas_flwr.aggregation.factors import FactorSums, check_weight
from atlas_flwr.aggregation.products import gram_norm
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, LoraFactors

Weigh = Callable[[Adapter, float], float]


class PaddedMean:
    """HetLoRA: factors zero-padded to the highest rank, then averaged with weights of ``weigh``.

    Row j, which clients of lower rank lack, is their zero averaged in: it is scaled by the
    owners' share π_j in A and again in B, π_j² in the product (the dilution RBLA removes).
    With one rank and ``by_examples`` this is FedIT's mean of factors. Cho et al., EMNLP 2024.

    A client of weight 0 has no influence but on the rank. Where all clients of a module weigh 0,
    their factors are averaged with equal weights: under ``by_norm`` all their products are zero,
    and in the first round (B = 0 for all) this returns their initial A and a zero product.
    """

    def __init__(self, weigh: Weigh) -> None:
        self._weigh = weigh
        self._sums = FactorSums()

    def add(self, adapter: Adapter, weight: float) -> None:
        """Fold one client's adapter; its share is ``weigh(adapter, weight)``.

        Raises:
            AggregationError: The weight is not positive and finite, ``weigh`` gave a negative
                or infinite share, or a module's factors are not finite, lack a partner or
                differ in ``(d_out, d_in)`` from an earlier client's.
        """
        check_weight(weight)
        self._sums.check(adapter)
        share = self._weigh(adapter, weight)
        if not (share >= 0 and np.isfinite(share)):
            raise AggregationError(f"a client's share must be finite and not negative, got {share}")
        self._sums.add(adapter, share)

    def result(self) -> dict[str, LoraFactors]:
        """Return the mean factors at the highest rank folded, float64, scale 1.

        Raises:
            AggregationError: Nothing was folded.
        """
        return self._sums.mean()


class OwnerMean:
    """RBLA: row j of A and column j of B are averaged over the clients whose rank exceeds j.

    This undoes the dilution of zero-padding, not the error of averaging factors. With one rank
    it is FedIT's mean of factors. arXiv 2408.08699.
    """

    def __init__(self) -> None:
        self._sums = FactorSums()

    def add(self, adapter: Adapter, weight: float) -> None:
        """Fold one client's adapter, with its example count as weight.

        Raises:
            AggregationError: The weight is not positive and finite, or a module's factors are
                not finite, lack a partner or differ in ``(d_out, d_in)`` from an earlier
                client's.
        """
        check_weight(weight)
        self._sums.check(adapter)
        self._sums.add(adapter, weight)

    def result(self) -> dict[str, LoraFactors]:
        """Return the owners' mean factors at the highest rank folded, float64, scale 1.

        Raises:
            AggregationError: Nothing was folded.
        """
        return self._sums.owner_mean()


def by_examples(adapter: Adapter, weight: float) -> float:
    """Weigh a client by its examples: return ``weight``, whatever the adapter holds."""
    del adapter
    return weight


def by_norm(adapter: Adapter, weight: float) -> float:
    """Weigh a client by the size of its update, ``Σ_modules ‖s B A‖_F``, whatever its examples.

    HetLoRA's sparsity weights; the norms come from r × r Grams, no product is formed. They
    reward whatever makes an update large: a high learning rate as well as much to learn. A zero
    update weighs 0. Not verified against the paper, whose text could not be read: that the
    weight is one number a client (norms summed over modules, as here) rather than one a module,
    and that the norm is of the scaled product.
    """
    del weight
    return float(sum(gram_norm(factors) for factors in adapter.values()))
