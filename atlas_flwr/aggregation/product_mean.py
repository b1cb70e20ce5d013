"""The mean of effective updates over clients, folded one client at a time."""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import blas  # type: ignore[import-untyped]

from atlas_flwr.aggregation.products import Float, compress, norm, rounding, shape_of, stack
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, LoraFactors


class ProductMean:
    """The mean of effective updates ``Σ p_k s_k B_k A_k``, in memory that clients don't grow.

    Ranks and scales may differ between clients, and so may the modules they own: each module's
    mean is over its owners, ``p_k`` renormalised among them. Terms are stacked until the stack is
    larger than the dense sum, ``d_out · d_in`` numbers, which takes its place; that is exact.
    Where ``max_rank`` is below ``min(d_out, d_in)`` there is no dense sum: a stack of more than
    ``2 · max_rank`` directions is compressed to ``max_rank``, and ``lost`` counts the tails.
    Adding order fixes the last bits; callers add in partition order.

    Args:
        max_rank: Bound on what is kept of a module: at most ``2 · max_rank`` directions. None is
            exact. AggregationError if below 1.
        stacked: Keep stacks alone, for who sends them on: one of more than ``2 min(d_out, d_in)``
            directions is compressed to ``min(d_out, d_in)``, which is exact, too.
    """

    def __init__(self, max_rank: int | None = None, *, stacked: bool = False) -> None:
        if max_rank is not None and max_rank < 1:
            raise AggregationError(f"a rank is at least 1, got {max_rank}")
        self._max_rank = max_rank
        self._stacked = stacked
        self._sums: dict[str, _Sum] = {}
        self._weight = 0.0

    @property
    def weight(self) -> float:
        """The sum of the weights added so far, owners of a module or not."""
        return self._weight

    @property
    def held_bytes(self) -> int:
        """The bytes of all factors and dense sums held."""
        return sum(s.held_bytes for s in self._sums.values())

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
            shape = shape_of(factors)
            own = self._sums.setdefault(module, _Sum(shape, self._max_rank, self._stacked))
            own.add(factors, weight)
        self._weight += weight

    def result(self) -> dict[str, LoraFactors]:
        """Return the mean by module: float64, scale 1.

        Its rank is that of the stack, or ``min(d_out, d_in)``, one of the factors the identity.

        Raises:
            AggregationError: Nothing was added.
        """
        if self._weight == 0:
            raise AggregationError("the mean of no client is not defined")
        return {module: own.mean() for module, own in self._sums.items()}


def share_lost(cut: float, kept: Adapter) -> float:
    """Return a norm that was cut relative to that of what was kept; infinite if nothing was."""
    whole = math.hypot(*(norm(factors) for factors in kept.values()))
    return cut / whole if whole > 0 else math.inf


class _Sum:
    """One module's ``Σ n_k s_k B_k A_k``, in terms of scale 1 or dense, and the norms of tails."""

    def __init__(self, shape: tuple[int, int], max_rank: int | None, stacked: bool) -> None:
        self.shape = shape
        self.weight = 0.0
        self.cut = 0.0
        self._cap = min(*shape, max_rank or max(shape))
        self._may_be_dense = self._cap == min(shape) and not stacked
        self._terms: list[LoraFactors] = []
        self._dense: Float | None = None
        self._rounding = 0.0  # of all terms: a dense sum that cancels no longer shows it

    @property
    def held_bytes(self) -> int:
        dense = 0 if self._dense is None else self._dense.nbytes
        return dense + sum(term.a.nbytes + term.b.nbytes for term in self._terms)

    def add(self, factors: LoraFactors, weight: float) -> None:
        self._terms.append(stack([(weight, factors)]))
        self.weight += weight
        self._rounding += rounding(self._terms[-1])
        rank = sum(term.rank for term in self._terms)
        full = self._may_be_dense and rank * sum(self.shape) > math.prod(self.shape)
        if full or self._dense is not None:
            self._densify()
        elif rank > 2 * self._cap:
            whole = stack([(1.0, term) for term in self._terms])
            kept, lost = compress(whole, self._cap)
            self._terms = [kept]
            self.cut += lost * norm(whole) if lost else 0.0

    def _densify(self) -> None:
        """Move all terms into the dense sum, in place: no second matrix of its size is made."""
        if self._dense is None:
            self._dense = np.zeros(self.shape, order="F")
        for term in self._terms:
            self._dense = blas.dgemm(1.0, term.b, term.a, 1.0, self._dense, overwrite_c=True)
        self._terms = []

    def mean(self) -> LoraFactors:
        if self._dense is None:
            return stack([(1.0 / self.weight, term) for term in self._terms])
        nothing = float(np.linalg.norm(self._dense)) <= self._rounding
        mean = self._dense * (0.0 if nothing else 1.0 / self.weight)
        same = np.eye(min(self.shape))
        tall = self.shape[0] >= self.shape[1]
        return LoraFactors(same, mean, 1.0) if tall else LoraFactors(mean, same, 1.0)


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
