"""Means of one factor: exact beside a frozen A, and blind to what stays at home."""

from __future__ import annotations

import tracemalloc
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation.factors import truncate, up_at_scale
from atlas_flwr.aggregation.frozen import DownMean, UpMean
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors, ModelParts
from strategies.folds import FlatMean

DO, DI = 7, 5
DOWN = np.random.default_rng(99).standard_normal((6, DI)).astype(np.float32)  # A⁰, nested


def frozen(rank: int, seed: int, scale: float = 2.0) -> LoraFactors:
    b = np.random.default_rng([seed, rank]).standard_normal((DO, rank))
    return LoraFactors(DOWN[:rank], b, scale)


def local(rank: int, seed: int, scale: float = 2.0) -> LoraFactors:
    a = np.random.default_rng([seed, rank]).standard_normal((rank, DI))
    return LoraFactors(a, np.zeros((0, rank)), scale)


def close(ours: np.ndarray, oracle: np.ndarray) -> None:
    np.testing.assert_allclose(ours, oracle, rtol=1e-11, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 99), st.floats(0.1, 32)),
        min_size=1,
        max_size=6,
    ),
)
def test_beside_a_frozen_down_factor_the_mean_is_exact_for_mixed_ranks_and_scales(
    seed: int, cohort: list[tuple[int, int, float]]
) -> None:
    mean = UpMean()
    products, weights = [], []
    for index, (rank, weight, scale) in enumerate(cohort):
        factors = frozen(rank, seed + index, scale)
        mean.add({"m": factors}, weight)
        products.append(factors.product())
        weights.append(weight)
    result = mean.result()["m"]
    assert result.rank == max(rank for rank, _, _ in cohort)
    close(result.product(), np.average(products, axis=0, weights=weights))


def test_the_frozen_factor_comes_back_value_for_value_at_every_rank() -> None:
    mean = UpMean()
    for rank in (2, 6, 4):
        mean.add({"m": frozen(rank, rank, 0.3)}, 1.0)
    for rank in (2, 4, 6):
        served = truncate(up_at_scale(mean.result()["m"], 0.7), rank)
        np.testing.assert_array_equal(served.a.astype(np.float32), DOWN[:rank])


def test_beside_a_frozen_down_factor_the_plain_mean_agrees() -> None:
    ours, fedit = UpMean(), FlatMean()
    for seed in range(3):
        ours.add({"m": frozen(4, seed)}, 1.0 + seed)
        fedit.add(ModelParts({"m": frozen(4, seed)}), 1.0 + seed)
    close(ours.result()["m"].product(), fedit.result().adapter["m"].product())


def test_owners_alone_is_another_estimator() -> None:
    low, high = frozen(2, 0, 1.0), frozen(4, 1, 1.0)
    every, owners = UpMean(), UpMean(owners=True)
    for mean in (every, owners):
        mean.add({"m": low}, 3.0)
        mean.add({"m": high}, 1.0)
    close(owners.result()["m"].b[:, :2], every.result()["m"].b[:, :2])
    close(owners.result()["m"].b[:, 2:], high.b[:, 2:])
    close(every.result()["m"].b[:, 2:], high.b[:, 2:] / 4)


def test_a_down_factor_that_moved_is_refused() -> None:
    moved = DOWN.copy()
    moved[1, 2] = np.nextafter(moved[1, 2], np.float32(9))
    for first, second in ((6, 2), (2, 6)):
        mean = UpMean()
        mean.add({"m": frozen(first, 0)}, 1.0)
        bad = LoraFactors(moved[:second], np.ones((DO, second)), 1.0)
        with pytest.raises(AggregationError, match=r"m.lora_A: differs between clients"):
            mean.add({"m": bad}, 1.0)
        # The client of the highest rank is the one whose rows all later ones are held to.
        mean.add({"m": frozen(6, 0)}, 1.0)
        with pytest.raises(AggregationError, match="differs"):
            mean.add({"m": bad}, 1.0)


def test_down_factors_alone_are_a_mean_over_their_owners_without_scales() -> None:
    mean = DownMean()
    low, high = local(2, 0, 8.0), local(4, 1, 4.0)
    mean.add({"m": low}, 3.0)
    mean.add({"m": high}, 1.0)
    result = mean.result()["m"]
    close(result.a[:2], np.average([low.a, high.a[:2]], axis=0, weights=[3, 1]))
    close(result.a[2:], high.a[2:])
    assert result.b.shape == (0, 4)


def test_down_factors_of_one_rank_are_numpys_average() -> None:
    mean, clients = DownMean(), [local(3, seed) for seed in range(4)]
    for factors, weight in zip(clients, (1, 2, 3, 4), strict=True):
        mean.add({"m": factors}, weight)
    close(mean.result()["m"].a, np.average([c.a for c in clients], axis=0, weights=[1, 2, 3, 4]))


def test_an_up_factor_that_left_its_client_is_refused() -> None:
    with pytest.raises(AggregationError, match=r"m.lora_B: must stay with its client"):
        DownMean().add({"m": frozen(2, 0)}, 1.0)
    with pytest.raises(AggregationError, match=r"m.lora_B: must stay with its client"):
        DownMean().add({"m": LoraFactors(np.ones((2, DI)), np.zeros((0, 3)), 1.0)}, 1.0)


@pytest.mark.parametrize(("make", "client"), [(UpMean, frozen), (DownMean, local)])
def test_order_identity_missing_modules_and_nobody(make, client) -> None:
    with pytest.raises(AggregationError, match="no client"):
        make().result()
    adapters = [
        {"m": client(2, 0), "n": client(3, 1)},
        {"m": client(4, 2)},
        {"m": client(1, 3)},
    ]
    results = []
    for order in permutations(zip(adapters, (1.0, 2.0, 5.0), strict=True)):
        mean = make()
        for adapter, weight in order:
            mean.add(adapter, weight)
        results.append(mean.result())
    for result in results:
        close(result["m"].a, results[0]["m"].a)
        close(result["m"].b, results[0]["m"].b)
        if make is UpMean:
            close(result["n"].product(), adapters[0]["n"].product())
        else:
            close(result["n"].a, adapters[0]["n"].a)


@pytest.mark.parametrize(("make", "client"), [(UpMean, frozen), (DownMean, local)])
def test_refusals_name_the_module_and_change_nothing(make, client) -> None:
    mean = make()
    mean.add({"m": client(2, 0), "z": client(2, 0)}, 2.0)
    before = mean.result()["m"]
    b = client(2, 0).b
    bad = [
        LoraFactors(np.full((2, DI), np.nan), b, 1.0),
        LoraFactors(np.ones((2, DI + 1)), b, 1.0),
        LoraFactors(np.zeros((0, DI)), b[:, :0], 1.0),
        LoraFactors(np.ones((2, DI), np.int64), b, 1.0),
    ]
    if make is UpMean:
        bad += [
            LoraFactors(DOWN[:2], np.full((DO, 2), np.inf), 1.0),
            LoraFactors(DOWN[:2], np.ones((1, 2)), 1.0),
            LoraFactors(DOWN[:2], np.ones((DO, 2)), 0.0),
        ]
    for factors in bad:
        with pytest.raises(AggregationError, match="z"):
            mean.add({"m": client(2, 1), "z": factors}, 1.0)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(AggregationError, match="weight"):
            mean.add({"m": client(2, 1)}, weight)
    np.testing.assert_array_equal(mean.result()["m"].a, before.a)
    np.testing.assert_array_equal(mean.result()["m"].b, before.b)


@pytest.mark.parametrize("make", [UpMean, DownMean])
def test_half_precision_is_folded_in_double(make) -> None:
    a = np.full((2, DI), 0.1, np.float16)
    b = np.full((DO, 2), 0.1, np.float16) if make is UpMean else np.zeros((0, 2), np.float16)
    mean = make()
    for _ in range(1000):
        mean.add({"m": LoraFactors(a, b, 1.0)}, 1.0)
    result = mean.result()["m"]
    assert result.a.dtype == result.b.dtype == np.float64
    for side in (result.a, result.b):
        np.testing.assert_allclose(side, np.float64(np.float16(0.1)), rtol=1e-12)


@pytest.mark.parametrize("make", [UpMean, DownMean])
def test_memory_does_not_grow_with_clients(make) -> None:
    start = np.random.default_rng(0).standard_normal((4, 300))
    held = []
    tracemalloc.start()
    try:
        mean = make()
        for index in range(120):
            b = np.ones((200 if make is UpMean else 0, 4))
            mean.add({"m": LoraFactors(start.copy(), b, 1.0)}, 1.0)
            del b
            if index in (9, 119):
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] < held[0] + 4096  # one client is 16 kB
