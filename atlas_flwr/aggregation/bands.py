"""The mean product by rank bands: raFLoRA, arXiv 2602.13486."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from atlas_flwr.aggregation.factors import check_factors, check_weight
from atlas_flwr.aggregation.product_mean import ProductMean, share_lost
from atlas_flwr.aggregation.products import stack
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, LoraFactors


class BandMean:
    """raFLoRA: each rank band's product is averaged over the clients that own the band.

    With band limits ``0 = r_0 < r_1 < … < r_H`` (the distinct ranks), client k of rank r_h owns
    bands 1 … h, and ``P̂ = Σ_h Σ_{k: r_k ≥ r_h} (p_k / π_h) s_k B_k[:, h] A_k[h, :]``, where π_h
    is the owners' share. A band is the run of rows of A and columns of B between two limits, as
    they lie in the factors; nothing is sorted first. With one rank this is the mean product.

    Biased towards high-rank clients by design: wherever π_h < 1 their private bands count as if
    everybody had them, so P̂ is not the mean product ``Σ p_k P_k``. And since a band depends on
    the basis, so does P̂, unless each client keeps its basis within bands. Known from its abstract;
    the paper's text could not be checked.

    Memory is one ``ProductMean`` a band, however many clients are folded.

    Args:
        ranks: The ranks that occur for each module, among all clients that may be folded.
        max_rank: Bound on what each band's mean keeps of a module, as ``ProductMean``'s.
    """

    def __init__(self, ranks: Mapping[str, Sequence[int]], max_rank: int | None = None) -> None:
        for module, some in ranks.items():
            if not some or min(some) < 1:
                raise AggregationError(f"{module}: ranks must be 1 or more, got {list(some)}")
        self._limits = {module: [0, *sorted(set(some))] for module, some in ranks.items()}
        count = max((len(limits) - 1 for limits in self._limits.values()), default=0)
        self._bands = [ProductMean(max_rank) for _ in range(count)]
        # Shapes are kept here as well: a later client may own none of an earlier one's bands.
        self._shapes: dict[str, tuple[int, int]] = {}

    @property
    def lost(self) -> float:
        """A bound on what the bands' cuts changed, relative to the result; 0.0 when exact."""
        cut = math.fsum(band.cut for band in self._bands)
        return share_lost(cut, self.result()) if cut else 0.0

    def add(self, adapter: Adapter, weight: float) -> None:
        """Fold one client's adapter, with its example count as weight.

        Raises:
            AggregationError: The weight is not positive and finite; a module or its rank was not
                announced; its factors are not finite, lack a partner or differ in
                ``(d_out, d_in)`` from an earlier client's.
        """
        check_weight(weight)
        for module, factors in adapter.items():
            self._check(module, factors)
        for index, band in enumerate(self._bands):
            if owned := self._cut(adapter, index):
                band.add(owned, weight)
        for module, factors in adapter.items():
            self._shapes[module] = (factors.b.shape[0], factors.a.shape[1])

    def result(self) -> dict[str, LoraFactors]:
        """Return the bands' mean products stacked: float64 factors of scale 1.

        Their rank is the sum of the bands' stacked ranks, not a receiver's; cut them by an SVD.

        Raises:
            AggregationError: Nothing was folded.
        """
        if not self._shapes:
            raise AggregationError("the mean of no client is not defined")
        # A band that no client folded owns has no mean, and adds nothing.
        means = [band.result() for band in self._bands if band.weight > 0]
        return {
            module: stack([(1.0, mean[module]) for mean in means if module in mean])
            for module in self._shapes
        }

    def _cut(self, adapter: Adapter, index: int) -> dict[str, LoraFactors]:
        """Return band ``index`` of the modules that own it."""
        owned: dict[str, LoraFactors] = {}
        for module, factors in adapter.items():
            for low, high in list(pairwise(self._limits[module]))[index : index + 1]:
                if high <= factors.rank:
                    a, b = factors.a[low:high], factors.b[:, low:high]
                    owned[module] = LoraFactors(a, b, factors.scale)
        return owned

    def _check(self, module: str, factors: LoraFactors) -> None:
        check_factors(module, factors)
        if module not in self._limits:
            raise AggregationError(f"{module}: no ranks were announced for this module")
        if factors.rank not in self._limits[module]:
            raise AggregationError(
                f"{module}: rank {factors.rank} is none of {self._limits[module][1:]}"
            )
        shape = (factors.b.shape[0], factors.a.shape[1])
        if shape != self._shapes.get(module, shape):
            raise AggregationError(f"{module}: shape {shape} differs from {self._shapes[module]}")
