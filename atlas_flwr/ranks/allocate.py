"""Ranks by module under a budget: the greedy concave knapsack, and controls at equal bytes.

Maximise ``Σ_m u_m(r_m)`` subject to ``Σ_m c_m r_m ≤ C``. With concave u (gains that don't grow)
the steps taken in the order of gain per byte are optimal for what they cost, and up to the one step
that no longer fits for any budget. Taking a prefix of one fixed order, and never a smaller step
from behind one that does not fit, makes every module's rank monotone in the budget.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from atlas_flwr.errors import AggregationError, ConfigError

Gains = Mapping[str, Sequence[float]]


def allocate(
    utilities: Gains,
    cost_per_rank: Mapping[str, int],
    budget: int,
    *,
    min_rank: int = 1,
    max_rank: int | None = None,
) -> dict[str, int]:
    """Return the rank of each module: the gains per byte taken in order while they fit.

    Ties go to the lower rank first, then in the order of the modules. A step without a gain is not
    taken, so that a budget beyond what is useful is left over.

    Args:
        utilities: By module what each rank adds, from the first on, non-increasing; as many as the
            module can have.
        cost_per_rank: What one rank costs by module, positive, in the budget's unit.
        budget: What all ranks may cost together; it is never exceeded.
        min_rank: What each module gets before anything is compared, at least 1.
        max_rank: The highest rank; None is as many as the module has gains.

    Raises:
        ConfigError: The budget does not hold ``min_rank`` of every module (the message says what
            it would need), or the ranks are out of order.
        AggregationError: Modules differ, a cost is not positive, or gains are negative or grow.
    """
    _check(utilities, cost_per_rank)
    tops = _tops(utilities, min_rank, max_rank)
    left = budget - sum(min_rank * cost for cost in cost_per_rank.values())
    if left < 0:
        raise ConfigError(
            f"a budget of {budget} can't hold rank {min_rank} of {len(tops)} modules; "
            f"it needs {budget - left}"
        )
    steps = sorted(
        (-gain / cost_per_rank[module], rank, order, module)
        for order, (module, gains) in enumerate(utilities.items())
        for rank, gain in enumerate(gains[: tops[module]], start=1)
        if rank > min_rank and gain > 0
    )
    ranks = dict.fromkeys(utilities, min_rank)
    for _, rank, _, module in steps:
        left -= cost_per_rank[module]
        if left < 0:
            break
        ranks[module] = rank
    return ranks


def uniform(
    cost_per_rank: Mapping[str, int], budget: int, tops: Mapping[str, int], *, min_rank: int = 1
) -> dict[str, int]:
    """Return equal ranks, up to the one step that spends the rest of the budget.

    Args:
        cost_per_rank: As in ``allocate``; errors are its own too.
        budget: What all ranks may cost together.
        tops: The highest rank of each module.
        min_rank: The least.
    """
    alike = {module: [float(cost_per_rank[module])] * top for module, top in tops.items()}
    return allocate(alike, cost_per_rank, budget, min_rank=min_rank)


def shuffled(utilities: Gains, rng: np.random.Generator) -> dict[str, list[float]]:
    """Return the modules' gains dealt to random modules: a control that knows nothing of them.

    ``allocate`` on it spends the same budget. A module keeps its own number of gains.
    """
    modules = list(utilities)
    order = rng.permutation(len(modules))
    return _dealt(utilities, modules, [modules[index] for index in order])


def backwards(utilities: Gains) -> dict[str, list[float]]:
    """Return the gains dealt in reverse: the most useful module gets the least useful one's.

    Useful is the sum of a module's gains; equals stay in order.
    """
    modules = sorted(utilities, key=lambda module: math.fsum(utilities[module]))
    return _dealt(utilities, modules, modules[::-1])


def _dealt(utilities: Gains, to: Sequence[str], of: Sequence[str]) -> dict[str, list[float]]:
    """Give each module another's gains; where those are fewer, the last one is repeated."""
    source = dict(zip(to, of, strict=True))
    dealt: dict[str, list[float]] = {}
    for module, own in utilities.items():
        gains = list(utilities[source[module]])
        gains += gains[-1:] * (len(own) - len(gains))
        dealt[module] = gains[: len(own)]
    return dealt


def _tops(utilities: Gains, min_rank: int, max_rank: int | None) -> dict[str, int]:
    """Return each module's highest rank, refused if it is below the least."""
    if min_rank < 1 or (max_rank is not None and max_rank < min_rank):
        raise ConfigError(f"ranks must be 1 ≤ min ≤ max, got min {min_rank} and max {max_rank}")
    tops = {module: len(gains) for module, gains in utilities.items()}
    for module, top in tops.items():
        if top < min_rank:
            raise ConfigError(f"{module}: rank {min_rank} is asked for, it can have {top}")
    return {module: min(top, max_rank or top) for module, top in tops.items()}


def _check(utilities: Gains, cost_per_rank: Mapping[str, int]) -> None:
    if odd := sorted(utilities.keys() ^ cost_per_rank.keys()):
        raise AggregationError(f"{odd[0]}: a module needs both gains and a cost")
    for module, gains in utilities.items():
        if not cost_per_rank[module] > 0:
            raise AggregationError(f"{module}: a rank's cost must be positive")
        if not all(0 <= gain < math.inf for gain in gains):
            raise AggregationError(f"{module}: gains must be finite and not negative")
        if any(after > before for before, after in pairwise(gains)):
            raise AggregationError(f"{module}: gains must not grow with the rank")
