"""How one round's updates are folded: one client at a time, group by group."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from atlas_flwr.aggregation.bands import BandMean
from atlas_flwr.aggregation.mean import GroupedMean, RunningMean
from atlas_flwr.aggregation.product_mean import ProductMean
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, Array, ModelParts

# Where both dimensions are larger, a stack of factors is cut to this many directions when it holds
# twice as many: 16 kB × (d_out + d_in) a module at most, whatever the clients. Elsewhere the dense
# sum, 8 B × d_out × d_in, takes the place of a larger stack, which loses nothing.
MAX_RANK = 1024


def product_mean() -> ProductMean:
    """Return a new exact mean of products whose memory does not grow with the clients."""
    return ProductMean(MAX_RANK)


def product_stack() -> ProductMean:
    """Return the same as a stack of the clients' factors, for rules whose stack travels."""
    return ProductMean(MAX_RANK, stacked=True)


def band_mean(ranks: Mapping[str, Sequence[int]]) -> BandMean:
    """Return a new mean of products by rank bands under the same bound, band by band."""
    return BandMean(ranks, MAX_RANK)


class Fold(Protocol):
    """A merge of model bodies, one client in memory at a time."""

    def add(self, body: ModelParts, weight: float) -> None:
        """Fold one client's body, with its example count."""

    def result(self) -> ModelParts:
        """Return the merged body; adapters and cores in float64."""


class AdapterFold(Protocol):
    """A merge of adapters alone, as ``atlas_flwr.aggregation`` has them."""

    def add(self, adapter: Adapter, weight: float) -> None:
        """Fold one client's adapter."""

    def result(self) -> Adapter:
        """Return the merged adapter in float64."""


class FlatMean:
    """The mean of every tensor by name; clients must agree on names, shapes and scales."""

    def __init__(self) -> None:
        self._mean = RunningMean()
        self._like: ModelParts | None = None

    def add(self, body: ModelParts, weight: float) -> None:
        """Fold one client's body, with its example count."""
        self._like = self._like or body
        _check_scales(self._like, body)
        self._mean.add(body.body(), weight)

    def result(self) -> ModelParts:
        """Return the mean; weights in the clients' dtype, for there are many of them."""
        if self._like is None:
            return ModelParts()
        like = self._like
        own = self._mean.result(None if like.weights else np.float64)
        return replace(like, head={}, delta={}).with_body(own)


def _check_scales(like: ModelParts, body: ModelParts) -> None:
    """Refuse factors of another scale: the mean of raw factors would mix different units."""
    for module, factors in body.adapter.items():
        known = like.adapter.get(module, factors).scale
        if factors.scale != known:
            raise AggregationError(
                f"{module}: scale {factors.scale} differs from {known}; "
                "factors are averaged at one scale"
            )


class OfAdapters:
    """A fold of adapters as a fold of bodies."""

    def __init__(self, inner: AdapterFold) -> None:
        self._inner = inner

    def add(self, body: ModelParts, weight: float) -> None:
        """Fold one client's adapter, with its example count."""
        self._inner.add(body.adapter, weight)

    def result(self) -> ModelParts:
        """Return the merged adapter."""
        return ModelParts(adapter=self._inner.result())

    def lost(self) -> float:
        """Return the share of the merge's norm that was cut to bound the memory."""
        return self._inner.lost if isinstance(self._inner, ProductMean | BandMean) else 0.0


class Tally:
    """One round's merges: bodies and heads by group, and beside them the exact mean products."""

    def __init__(self, fold: Callable[[str], Fold]) -> None:
        self._fold = fold
        self._bodies: dict[str, Fold] = {}
        self._heads = GroupedMean()
        self._exact: dict[str, ProductMean] = {}

    def body(self, group: str, body: ModelParts, weight: float) -> None:
        """Fold what the method merges of one client, with its example count."""
        if group not in self._bodies:
            self._bodies[group] = self._fold(group)
        self._bodies[group].add(body, weight)

    def products(self, group: str, effective: Adapter, weight: float) -> None:
        """Fold one client's effective updates; unless all factors are known it leaves no trace."""
        if effective and all(factors.whole for factors in effective.values()):
            self._exact.setdefault(group, product_mean()).add(effective, weight)

    def head(self, group: str, head: Mapping[str, Array], weight: float) -> None:
        """Fold one client's head; none leaves no trace."""
        self._heads.add(group, head, weight)

    def bodies(self) -> dict[str, ModelParts]:
        """Return each group's merged body."""
        return {group: fold.result() for group, fold in self._bodies.items()}

    def heads(self) -> Mapping[str, dict[str, Array]]:
        """Return each group's mean head."""
        return self._heads.results()

    def exact(self) -> dict[str, Adapter]:
        """Return each group's exact mean product ``P* = Σ p_k s_k B_k A_k``, ``p_k ∝ n_k``."""
        return {group: mean.result() for group, mean in self._exact.items()}

    def lost(self) -> float:
        """Return the largest share of a norm that was cut to bound the memory: of P* or a merge."""
        merges = (fold.lost() for fold in self._bodies.values() if isinstance(fold, OfAdapters))
        return max([*(mean.lost for mean in self._exact.values()), *merges], default=0.0)
