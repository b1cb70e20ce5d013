"""How far a rule is from the exact mean, how many directions it uses, what a rank must lose.

All are over effective updates ``P = s B A`` of all modules together, in float64, from singular
values or QR norms: no dense matrix is formed. None stands for a number that does not exist.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from atlas_flwr.aggregation.products import Float, difference, norm, rounding, spectrum
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, LoraFactors


def relative_error(pairs: Iterable[tuple[Adapter, Adapter]]) -> float | None:
    """Return ``√(Σ ‖applied − exact‖_F²) / √(Σ ‖exact‖_F²)`` over all modules of all pairs.

    Args:
        pairs: ``(applied, exact)`` adapters, e.g. one pair per group, of the same modules; ranks
            and scales may differ.

    Returns:
        The error, 0.0 for an exact rule, for differences below ``rounding`` count as none;
        infinite if something was applied where the exact mean is zero, e.g. because its clients
        cancel; None for 0/0 and for no module.

    Raises:
        AggregationError: The two adapters of a pair differ in a module or in a product's shape.
    """
    wrong: list[float] = []
    right: list[float] = []
    for applied, exact in pairs:
        if odd := sorted(applied.keys() ^ exact.keys()):
            raise AggregationError(f"{odd[0]}: only one of the applied and exact means has it")
        for module, factors in exact.items():
            wrong.append(_norm(difference(applied[module], factors)))
            right.append(_norm(factors))
    return _quotient(math.hypot(*wrong), math.hypot(*right))


def effective_rank(adapters: Iterable[Adapter]) -> float | None:
    """Return the mean over modules of ``exp(H(σ² / Σσ²))``, H the entropy in nats.

    r equal singular values give r, one dominant value gives 1 (after Roy & Vetterli 2007, who take
    σ in place of σ²). Modules with a zero product are left out.

    Returns:
        The mean effective rank, at least 1; None if every product is zero or there is none.
    """
    ranks: list[float] = []
    for _, s in _spectra(adapters):
        if s[0] > 0:
            share = (s / s[0]) ** 2  # relative to σ₁ first: squares of tiny updates underflow
            share = share[share > 0] / share.sum()
            ranks.append(math.exp(-float(np.sum(share * np.log(share)))))
    return math.fsum(ranks) / len(ranks) if ranks else None


def tail(adapters: Iterable[Adapter], rank_of: Callable[[str], int]) -> float | None:
    """Return ``√(Σ_modules Σ_{i>r} σ_i²) / √(Σ σ_i²)``: what rank-r receivers lose at least.

    By Eckart–Young no factors of rank r come closer to the products in Frobenius norm; SVD
    truncation attains it.

    Args:
        adapters: Products by module.
        rank_of: The receiver's rank of a module, 0 where it has none.

    Returns:
        The relative loss in [0, 1]; None if every product is zero or there is none.
    """
    cut: list[float] = []
    whole: list[float] = []
    for module, s in _spectra(adapters):
        cut.append(float(np.linalg.norm(s[max(rank_of(module), 0) :])))
        whole.append(float(np.linalg.norm(s)))
    total = math.hypot(*whole)
    return math.hypot(*cut) / total if total > 0 else None


def _spectra(adapters: Iterable[Adapter]) -> Iterator[tuple[str, Float]]:
    """Yield each module's singular values, all zero where they are nothing but rounding."""
    for adapter in adapters:
        for module, factors in adapter.items():
            s = spectrum(factors)
            yield module, s if s[0] > rounding(factors) else np.zeros_like(s)


def _norm(factors: LoraFactors) -> float:
    """Return the product's norm, zero where it is nothing but rounding."""
    found = norm(factors)
    return found if found > rounding(factors) else 0.0


def _quotient(top: float, bottom: float) -> float | None:
    if bottom > 0:
        return top / bottom
    return math.inf if top > 0 else None
