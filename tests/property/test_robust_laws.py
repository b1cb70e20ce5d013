"""Laws of robust merges over random clients: order, hull, breakdown, selection."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation.robust import (
    coordinate_median,
    krum_needs,
    merge_product,
    multi_krum,
    squared_distances,
    trimmed,
    trimmed_mean,
)
from atlas_flwr.types import LoraFactors, ModelParts

seeds = st.integers(0, 2**32 - 1)
ranks = st.lists(st.integers(1, 5), min_size=1, max_size=9)


def cohort(seed: int, of_ranks: list[int]) -> list[LoraFactors]:
    rng = np.random.default_rng(seed)
    return [
        LoraFactors(rng.standard_normal((r, 6)), rng.standard_normal((8, r)), 8.0 / r)
        for r in of_ranks
    ]


@settings(deadline=None, max_examples=40)
@given(seeds, ranks, st.sampled_from([0.0, 0.1, 0.2, 0.34, 0.49]))
def test_entries_lie_within_the_clients_and_order_is_nothing(
    seed: int, of_ranks: list[int], beta: float
) -> None:
    clients = cohort(seed, of_ranks)
    dense = np.stack([each.product() for each in clients])
    order = np.random.default_rng(seed).permutation(len(clients))
    for rule in (coordinate_median, lambda values: trimmed_mean(values, beta)):
        merged = merge_product(clients, rule)
        assert (merged >= dense.min(axis=0) - 1e-9).all()
        assert (merged <= dense.max(axis=0) + 1e-9).all()
        again = merge_product([clients[i] for i in order], rule)
        np.testing.assert_allclose(again, merged, atol=1e-10)


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(3, 11), st.floats(0.01, 0.49), st.floats(-1e9, 1e9))
def test_as_many_as_are_trimmed_can_t_leave_the_honest_hull(
    seed: int, clients: int, beta: float, planted: float
) -> None:
    values = np.random.default_rng(seed).standard_normal((clients, 5))
    bad = min(trimmed(clients, beta), (clients - 1) // 2)
    honest = values[bad:].copy()
    values[:bad] = planted
    for merged in (trimmed_mean(values, beta), coordinate_median(values)):
        assert (merged >= honest.min(axis=0) - 1e-9).all()
        assert (merged <= honest.max(axis=0) + 1e-9).all()


@settings(deadline=None, max_examples=40)
@given(seeds, st.integers(0, 2), st.integers(0, 4), st.floats(1e3, 1e8))
def test_krum_never_takes_far_clients_and_does_not_see_order(
    seed: int, bad: int, more: int, size: float
) -> None:
    clients = cohort(seed, [2] * (max(krum_needs(bad), 3) + more))
    for k in range(bad):  # each far away in a direction of its own
        clients[k] = LoraFactors(size * (k + 2) * clients[k].a, clients[k].b, clients[k].scale)
    parts = [ModelParts(adapter={"m": each}) for each in clients]
    keep = max(1, len(clients) - 2 * bad - 2)
    chosen = multi_krum(squared_distances(parts), bad, keep)
    assert len(chosen) == keep
    assert not set(chosen) & set(range(bad))
    order = np.random.default_rng(seed).permutation(len(clients))
    again = multi_krum(squared_distances([parts[i] for i in order]), bad, 1)
    scores = squared_distances(parts)
    first = multi_krum(scores, bad, 1)
    if len(clients) - bad - 2 > 1:  # with one neighbour alone the nearest pair ties
        assert order[again[0]] == first[0]


@pytest.mark.parametrize("clients", range(1, 30))
@pytest.mark.parametrize("beta", [0.0, 0.05, 0.2, 0.4, 0.49])
def test_something_is_always_left(clients: int, beta: float) -> None:
    assert 2 * trimmed(clients, beta) < clients
