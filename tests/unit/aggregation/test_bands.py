"""Rank bands: the dense formula, its degenerate cases, and what is refused."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation.bands import BandMean
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors

DO, DI = 9, 7
RANKS = (2, 4, 5)


def client(rank: int, seed: int, scale: float = 2.0) -> LoraFactors:
    rng = np.random.default_rng([seed, rank])
    return LoraFactors(rng.standard_normal((rank, DI)), rng.standard_normal((DO, rank)), scale)


def fold(
    clients: Sequence[LoraFactors], weights: Sequence[float], ranks: Sequence[int] = RANKS
) -> np.ndarray:
    mean = BandMean({"m": ranks})
    for factors, weight in zip(clients, weights, strict=True):
        mean.add({"m": factors}, weight)
    assert mean.result()["m"].scale == 1.0
    return mean.result()["m"].product()


def by_hand(clients: Sequence[LoraFactors], weights: Sequence[float]) -> np.ndarray:
    total = np.zeros((DO, DI))
    for low, high in pairwise([0, *RANKS]):
        owners = [(c, w) for c, w in zip(clients, weights, strict=True) if c.rank >= high]
        share = sum(w for _, w in owners)
        for c, w in owners:
            total += w / share * c.scale * c.b[:, low:high] @ c.a[low:high]
    return total


def close(ours: np.ndarray, oracle: np.ndarray) -> None:
    np.testing.assert_allclose(ours, oracle, rtol=1e-10, atol=1e-11)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(
        st.tuples(st.sampled_from(RANKS), st.integers(1, 99), st.floats(0.1, 16)),
        min_size=1,
        max_size=12,
    ),
)
def test_equals_the_dense_formula(seed: int, cohort: list[tuple[int, int, float]]) -> None:
    clients = [client(rank, seed + i, scale) for i, (rank, _, scale) in enumerate(cohort)]
    weights = [weight for _, weight, _ in cohort]
    close(fold(clients, weights), by_hand(clients, weights))


def test_one_band_is_the_mean_product() -> None:
    clients = [client(4, seed, 1.0 + seed) for seed in range(3)]
    dense = np.average([c.product() for c in clients], axis=0, weights=[1, 2, 3])
    close(fold(clients, [1, 2, 3], [4]), dense)
    # More limits below a rank that all have change nothing either.
    close(fold(clients, [1, 2, 3], [2, 4]), dense)


def test_a_band_of_one_owner_comes_back_unscaled() -> None:
    low, high = client(2, 0), client(5, 1)
    private = high.scale * high.b[:, 2:] @ high.a[2:]
    shared = (low.product() * 99 + high.product() - private) / 100
    close(fold([low, high], [99, 1]), shared + private)


def test_it_is_biased_where_a_band_is_not_everybodys() -> None:
    clients = [client(2, 0), client(5, 1)]
    exact = np.mean([c.product() for c in clients], axis=0)
    assert np.linalg.norm(fold(clients, [1, 1]) - exact) > 0.1 * np.linalg.norm(exact)


def test_one_client_and_identical_clients_are_fixed_points() -> None:
    only = client(4, 0)
    close(fold([only], [3]), only.product())
    close(fold([only] * 4, [1, 2, 3, 4]), only.product())


def test_neither_order_nor_the_unit_of_weights_matters() -> None:
    pairs = [(client(rank, i), 1.0 + i) for i, rank in enumerate((2, 5, 4))]
    first = fold(*zip(*pairs, strict=True))
    for order in permutations(pairs):
        close(fold(*zip(*order, strict=True)), first)
    close(fold([c for c, _ in pairs], [7 * w for _, w in pairs]), first)


def test_scale_moves_freely_between_alpha_and_the_factors() -> None:
    clients = [client(rank, i) for i, rank in enumerate((2, 5, 4))]
    moved = [LoraFactors(c.a, c.b / 3, 3 * c.scale) for c in clients]
    close(fold(moved, [1, 2, 3]), fold(clients, [1, 2, 3]))


def test_bases_count_across_bands_and_not_within() -> None:
    clients, rng = [client(5, 0), client(2, 1)], np.random.default_rng(5)
    g = np.eye(5) + 0.3 * rng.standard_normal((5, 5))
    within = np.zeros((5, 5))
    for low, high in pairwise([0, *RANKS]):
        within[low:high, low:high] = g[low:high, low:high]
    plain = fold(clients, [1, 1])
    for basis, same in ((within, True), (g, False)):
        turned = LoraFactors(np.linalg.inv(basis) @ clients[0].a, clients[0].b @ basis, 2.0)
        moved = np.linalg.norm(fold([turned, clients[1]], [1, 1]) - plain)
        assert (moved < 1e-10) if same else (moved > 1e-2)


def test_modules_have_bands_of_their_own_and_owners_of_their_own() -> None:
    mean = BandMean({"m": (1, 2, 3), "n": (4,)})
    one, two, alone = client(3, 0), client(1, 1), client(4, 2)
    mean.add({"m": one, "n": alone}, 1.0)
    mean.add({"m": two}, 3.0)
    result = mean.result()
    close(result["n"].product(), alone.product())
    first = (2 * one.b[:, :1] @ one.a[:1] + 3 * two.product()) / 4
    close(result["m"].product(), first + 2 * one.b[:, 1:] @ one.a[1:])


def test_a_zero_update_counts_as_one() -> None:
    zero = LoraFactors(np.ones((5, DI)), np.zeros((DO, 5)), 2.0)
    only = client(5, 0)
    close(fold([only, zero], [1, 1]), only.product() / 2)
    assert not fold([zero], [1]).any()


def test_half_precision_is_folded_in_double() -> None:
    third = LoraFactors(np.full((4, DI), 0.1, np.float16), np.full((DO, 4), 0.1, np.float16), 1.0)
    close(fold([third] * 50, [1] * 50), third.product())


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"m": client(3, 0)}, "m: rank 3 is none of"),
        ({"m": client(6, 0)}, "m: rank 6 is none of"),
        ({"x": client(2, 0)}, "x: no ranks"),
        ({"m": LoraFactors(np.full((2, DI), np.nan), np.ones((DO, 2)), 1.0)}, "m.*not finite"),
        ({"m": LoraFactors(np.ones((2, DI)), np.full((DO, 2), np.inf), 1.0)}, "m.*not finite"),
        ({"m": LoraFactors(np.ones((2, DI)), np.zeros((0, 2)), 1.0)}, "m.*missing"),
        ({"m": LoraFactors(np.ones((2, 1)), np.ones((DO, 2)), 1.0)}, "m: shape"),
        ({"m": LoraFactors(np.ones((2, DI)), np.ones((1, 2)), 1.0)}, "m: shape"),
    ],
)
def test_refuses_by_module_and_keeps_what_it_had(
    adapter: dict[str, LoraFactors], message: str
) -> None:
    mean = BandMean({"a": RANKS, "m": RANKS})
    good = client(2, 0)
    mean.add({"a": good, "m": good}, 2.0)
    with pytest.raises(AggregationError, match=message):
        mean.add({"a": client(5, 1)} | adapter, 1.0)
    close(mean.result()["a"].product(), good.product())


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_that_are_none_are_refused(weight: float) -> None:
    with pytest.raises(AggregationError, match="weight"):
        BandMean({"m": RANKS}).add({"m": client(2, 0)}, weight)


@pytest.mark.parametrize("ranks", [[], [0, 2], [-1]])
def test_ranks_that_are_none_are_refused(ranks: list[int]) -> None:
    with pytest.raises(AggregationError, match="m: ranks"):
        BandMean({"m": ranks})


def test_the_mean_of_nobody_is_refused() -> None:
    with pytest.raises(AggregationError, match="no client"):
        BandMean({"m": RANKS}).result()


@pytest.mark.parametrize("max_rank", [1, 3])
def test_what_a_cap_cuts_of_the_bands_is_bounded_by_lost(max_rank: int) -> None:
    clients = [client(RANKS[index % 3], index) for index in range(12)]
    capped, whole = BandMean({"m": RANKS}, max_rank), BandMean({"m": RANKS})
    for mean in (capped, whole):
        for index, factors in enumerate(clients):
            mean.add({"m": factors}, 1.0 + index)
    ours, exact = capped.result()["m"], whole.result()["m"]
    assert ours.rank <= 2 * max_rank * len(RANKS)
    error = np.linalg.norm(ours.product() - exact.product()) / np.linalg.norm(ours.product())
    assert 0.01 < error <= capped.lost
    assert whole.lost == 0


def test_a_cap_that_is_never_reached_costs_nothing() -> None:
    mean = BandMean({"m": RANKS}, 100)
    for index in range(9):
        mean.add({"m": client(RANKS[index % 3], index)}, 1.0)
    assert mean.lost == 0


def test_memory_does_not_grow_with_clients() -> None:
    held = []
    tracemalloc.start()
    try:
        mean = BandMean({"m": RANKS})
        for index in range(200):
            mean.add({"m": client(RANKS[index % 3], index)}, 1.0)
            if index in (39, 199):
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # Bands hold between one and two times seven directions, whenever they are looked at.
    assert held[1] < held[0] + 3 * 8 * (DO + DI) * 2 * DI + 4096
