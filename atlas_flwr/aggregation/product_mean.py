"""The mean of effective updates over clients, folded one client at a time."""

from __future__ import annotations

import math

import numpy as np

from atlas_flwr.aggregation.products import compress, norm, shape_of, stack
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, LoraFactors


class ProductMean:
    """The mean of effective updates ``Σ p_k s_k B_k A_k``, in memory that clients don't grow.

    Ranks and scales may differ between clients, and so may the modules they own: each module's
    mean is over its owners, ``p_k`` renormalised among them. Terms are stacked; a stack that
    exceeds twice its cap, ``min(d_out, d_in, max_rank)``, is compressed to the cap. Up to
    ``min(d_out, d_in)`` that is exact. A smaller ``max_rank`` cuts the tail, which ``lost`` counts.
    Adding order fixes the last bits; callers add in partition order.

    Args:
        max_rank: Bound on what is kept of a module: at most ``2 · max_rank`` directions. None is
            exact. AggregationError if below 1.
    """

    def __init__(self, max_rank: int | None = None) -> None:
        if max_rank is not None and max_rank < 1:
            raise AggregationError(f"a rank is at least 1, got {max_rank}")
        self._max_rank = max_rank
        self._sums: dict[str, _Sum] = {}
        self._weight = 0.0

    @property
    def weight(self) -> float:
        """The sum of the weights added so far, owners of a module or not."""
        return self._weight

    @property
    def held_bytes(self) -> int:
        """The bytes of all factors held."""
        return sum(t.a.nbytes + t.b.nbytes for s in self._sums.values() for t in s.terms)

    @property
    def cut(self) -> float:
        """A bound on ``‖mean − exact mean‖_F`` over all modules: the norms of all tails added."""
        return math.hypot(*(s.cut / s.weight for s in self._sums.values()))

    @property
    def lost(self) -> float:
        """``cut`` relative to the mean's own norm; 0.0 when exact.

        Relative to the exact mean it is ``lost / (1 − lost)`` at most.
        """
        return share_lost(self.cut, self.result()) if self.cut else 0.0

    def add(self, adapter: Adapter, weight: float) -> None:
        """Add one client's effective updates; its arrays are copied.

        Args:
            adapter: Factors by module; a module that the client lacks is simply absent.
            weight: The client's example count, positive and finite.

        Raises:
            AggregationError: The weight is not positive and finite, or a module's factors are
                absent, not finite, of two ranks, or of another shape than a former client's.
                Nothing is added then.
        """
        if not (weight > 0 and math.isfinite(weight)):
            raise AggregationError(f"weight must be positive and finite, got {weight}")
        for module, factors in adapter.items():
            _check(module, factors)
            if module in self._sums and self._sums[module].shape != shape_of(factors):
                shapes = f"{shape_of(factors)} differs from {self._sums[module].shape}"
                raise AggregationError(f"{module}: the product's shape {shapes}")
        for module, factors in adapter.items():
            own = self._sums.setdefault(module, _Sum(shape_of(factors)))
            own.add(factors, weight, self._max_rank)
        self._weight += weight

    def result(self) -> dict[str, LoraFactors]:
        """Return the mean by module: float64, scale 1, of rank up to twice the cap.

        Raises:
            AggregationError: Nothing was added.
        """
        if self._weight == 0:
            raise AggregationError("the mean of no client is not defined")
        return {
            module: stack([(1.0 / own.weight, term) for term in own.terms])
            for module, own in self._sums.items()
        }


def share_lost(cut: float, kept: Adapter) -> float:
    """Return a norm that was cut relative to that of what was kept; infinite if nothing was."""
    whole = math.hypot(*(norm(factors) for factors in kept.values()))
    return cut / whole if whole > 0 else math.inf


class _Sum:
    """One module's ``Σ n_k s_k B_k A_k`` in terms of scale 1, and the norms of all tails cut."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.terms: list[LoraFactors] = []
        self.weight = 0.0
        self.cut = 0.0

    def add(self, factors: LoraFactors, weight: float, max_rank: int | None) -> None:
        self.terms.append(stack([(weight, factors)]))
        self.weight += weight
        cap = min(*self.shape, max_rank or max(self.shape))
        if sum(term.rank for term in self.terms) > 2 * cap:
            whole = stack([(1.0, term) for term in self.terms])
            kept, lost = compress(whole, cap)
            self.terms = [kept]
            self.cut += lost * norm(whole) if lost else 0.0


def _check(module: str, factors: LoraFactors) -> None:
    """Refuse factors that have no product, or none that is finite."""
    a, b = factors.a, factors.b
    if a.size == 0 or b.size == 0:
        raise AggregationError(f"{module}: a factor is absent, A is {a.shape} and B {b.shape}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
        raise AggregationError(f"{module}: A {a.shape} and B {b.shape} disagree on the rank")
    if not (np.issubdtype(a.dtype, np.floating) and np.issubdtype(b.dtype, np.floating)):
        raise AggregationError(f"{module}: dtypes {a.dtype} and {b.dtype} have no mean")
    if not (math.isfinite(factors.scale) and np.isfinite(a).all() and np.isfinite(b).all()):
        raise AggregationError(f"{module}: holds values that are not finite")
