"""The greedy knapsack against brute force, and its laws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.errors import AggregationError, ConfigError
from atlas_flwr.ranks.allocate import allocate, backwards, shuffled, uniform
from atlas_flwr.ranks.budget import cost

laws = settings(max_examples=60, deadline=None)


@st.composite
def instances(draw: st.DrawFn, one_cost: bool = False):
    """Concave gains, costs, and a budget that holds rank 1 of every module."""
    count = draw(st.integers(1, 4))
    price = draw(st.integers(1, 9))
    gains, costs = {}, {}
    for index in range(count):
        steps = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
        gains[f"m{index}"] = sorted((float(s) for s in steps), reverse=True)
        costs[f"m{index}"] = price if one_cost else draw(st.integers(1, 9))
    return gains, costs, sum(costs.values()) + draw(st.integers(0, 60))


def utility(gains, ranks) -> float:
    return math.fsum(math.fsum(gains[m][:r]) for m, r in ranks.items())


def optimum(gains, costs, budget) -> float:
    """Try every combination."""
    best = -math.inf
    for ranks in itertools.product(*(range(1, len(g) + 1) for g in gains.values())):
        chosen = dict(zip(gains, ranks, strict=True))
        if cost(chosen, costs) <= budget:
            best = max(best, utility(gains, chosen))
    return best


@laws
@given(instances(one_cost=True))
def test_with_one_cost_greedy_is_the_brute_force_optimum(instance) -> None:
    gains, costs, budget = instance
    assert utility(gains, allocate(*instance)) == optimum(gains, costs, budget)


@laws
@given(instances())
def test_greedy_is_optimal_for_what_it_spends_and_up_to_one_step(instance) -> None:
    gains, costs, budget = instance
    ranks = allocate(*instance)
    spent = cost(ranks, costs)
    assert utility(gains, ranks) == pytest.approx(optimum(gains, costs, spent))
    left = [(gains[m][r] / costs[m], gains[m][r]) for m, r in ranks.items() if r < len(gains[m])]
    next_best = max(left)[0] if left else 0.0
    bound = utility(gains, ranks) + next_best * (budget - spent)  # the fractional optimum
    assert optimum(gains, costs, budget) <= bound + 1e-9


@laws
@given(instances(), st.integers(0, 40))
def test_never_over_budget_and_every_rank_is_monotone_in_it(instance, more: int) -> None:
    gains, costs, budget = instance
    low, high = allocate(gains, costs, budget), allocate(gains, costs, budget + more)
    assert cost(low, costs) <= budget
    assert all(1 <= low[m] <= high[m] <= len(gains[m]) for m in gains)


@laws
@given(instances(), st.permutations(range(4)))
def test_permuting_the_modules_permutes_the_ranks(instance, order) -> None:
    gains, costs, budget = instance
    rng = np.random.default_rng(0)
    distinct = {m: sorted(rng.random(len(g)), reverse=True) for m, g in gains.items()}  # no ties
    names = [f"m{i}" for i in order if f"m{i}" in gains]
    other = allocate({m: distinct[m] for m in names}, {m: costs[m] for m in names}, budget)
    assert other == allocate(distinct, costs, budget)


def test_equal_gains_give_equal_ranks_up_to_one_step():
    gains = {m: [0.5, 0.25, 0.125, 0.0625] for m in "abcde"}
    for budget in range(5, 21):
        ranks = allocate(gains, dict.fromkeys("abcde", 1), budget)
        assert sum(ranks.values()) == budget
        assert max(ranks.values()) - min(ranks.values()) <= 1


def test_a_costly_step_that_does_not_fit_is_not_jumped_over():
    """Else a larger budget could lower a rank."""
    gains, costs = {"wide": [9.0, 8.0], "slim": [1.0, 0.5]}, {"wide": 4, "slim": 1}
    assert allocate(gains, costs, 8) == {"wide": 1, "slim": 1}
    assert allocate(gains, costs, 9) == {"wide": 2, "slim": 1}
    assert allocate(gains, costs, 10) == {"wide": 2, "slim": 2}


def test_ranks_have_limits_and_useless_steps_are_left():
    gains, costs = {"a": [3.0, 2.0, 1.0, 0.0], "b": [1.0, 1.0]}, {"a": 1, "b": 1}
    assert allocate(gains, costs, 100) == {"a": 3, "b": 2}
    assert allocate(gains, costs, 100, max_rank=2) == {"a": 2, "b": 2}
    assert allocate(gains, costs, 100, min_rank=2) == {"a": 3, "b": 2}


def test_controls_spend_the_same_budget():
    rng = np.random.default_rng(0)
    importance = {f"m{i}": w for i, w in enumerate((16, 8, 4, 2, 1, 0.5))}
    gains = {m: [w * 0.8**r for r in range(12)] for m, w in importance.items()}
    costs, budget = dict.fromkeys(gains, 7), 7 * 30
    tops = {m: len(g) for m, g in gains.items()}
    ours = allocate(gains, costs, budget)
    against = allocate(backwards(gains), costs, budget)
    dealt = allocate(shuffled(gains, rng), costs, budget)
    level = uniform(costs, budget, tops)
    for ranks in (ours, against, dealt, level):
        assert cost(ranks, costs) == budget
    assert list(against.values()) == list(ours.values())[::-1]
    assert sorted(dealt.values()) == sorted(ours.values())
    assert set(level.values()) == {5}
    assert ours["m0"] > level["m0"] > against["m0"]
    assert dealt != ours
    assert shuffled(gains, np.random.default_rng(0)) == shuffled(gains, np.random.default_rng(0))


def test_uniform_spends_up_to_one_step_whatever_the_costs():
    costs = {"q": 768, "up": 1920, "down": 1920}
    tops = {"q": 64, "up": 64, "down": 64}
    for budget in range(4608, 60000, 1111):
        ranks = uniform(costs, budget, tops)
        assert max(ranks.values()) - min(ranks.values()) <= 1
        assert budget - max(costs.values()) < cost(ranks, costs) <= budget


def test_dealt_gains_keep_each_modules_own_number():
    gains = {"a": [4.0, 3.0, 2.0], "b": [1.0]}
    assert backwards(gains) == {"a": [1.0, 1.0, 1.0], "b": [4.0]}


BAD = {
    "a budget of 4 can't hold rank 1 of 2 modules; it needs 5": (
        ConfigError,
        lambda: allocate({"a": [1.0], "b": [1.0]}, {"a": 2, "b": 3}, 4),
    ),
    "a: rank 2 is asked": (ConfigError, lambda: allocate({"a": [1.0]}, {"a": 1}, 9, min_rank=2)),
    "min 3 and max 2": (
        ConfigError,
        lambda: allocate({"a": [1.0]}, {"a": 1}, 9, min_rank=3, max_rank=2),
    ),
    "a: a module needs both": (AggregationError, lambda: allocate({"a": [1.0]}, {"b": 1}, 9)),
    "must be positive": (AggregationError, lambda: allocate({"a": [1.0]}, {"a": 0}, 9)),
    "not negative": (AggregationError, lambda: allocate({"a": [-1.0]}, {"a": 1}, 9)),
    "must not grow": (AggregationError, lambda: allocate({"a": [1.0, 2.0]}, {"a": 1}, 9)),
}


@pytest.mark.parametrize("text", BAD)
def test_what_can_not_be_allocated_is_refused(text):
    error, call = BAD[text]
    with pytest.raises(error, match=text):
        call()
