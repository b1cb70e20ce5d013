"""Fed-SB: the mean of cores is the mean of products, and B⁰ is nested."""

from __future__ import annotations

import tracemalloc
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation.factors import truncate
from atlas_flwr.aggregation.square import CoreMean, between, seeded_up
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors

DO, DI, TOP = 9, 7, 5
SHARED = LoraFactors(
    np.random.default_rng(1).standard_normal((TOP, DI)),
    seeded_up(DO, TOP, np.random.default_rng(2)),
    2.0,
)


def core(rank: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, rank]).standard_normal((rank, rank))


def close(ours: np.ndarray, oracle: np.ndarray) -> None:
    np.testing.assert_allclose(ours, oracle, rtol=1e-11, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.tuples(st.integers(1, TOP), st.integers(1, 99)), min_size=1, max_size=6),
)
def test_the_mean_of_cores_is_the_mean_of_products(seed: int, cohort: list[tuple[int, int]]):
    mean = CoreMean()
    products = []
    for index, (rank, weight) in enumerate(cohort):
        own = core(rank, seed + index)
        mean.add({"m": own}, weight)
        products.append(between(truncate(SHARED, rank), own).product())
    result = mean.result()["m"]
    top = max(rank for rank, _ in cohort)
    assert result.shape == (top, top)
    exact = np.average(products, axis=0, weights=[weight for _, weight in cohort])
    close(between(truncate(SHARED, top), result).product(), exact)


def test_a_core_between_the_factors_is_the_dense_triple_product() -> None:
    own = core(TOP, 0).astype(np.float16)
    placed = between(SHARED, own)
    close(placed.product(), 2.0 * SHARED.b @ own.astype(np.float64) @ SHARED.a)
    assert placed.a is SHARED.a
    assert placed.b.dtype == np.float64


def test_scales_that_differ_are_exact_when_folded_into_the_cores() -> None:
    mean, products = CoreMean(), []
    for rank, scale in ((2, 8.0), (4, 4.0)):
        own = core(rank, rank)
        mean.add({"m": scale * own}, 1.0)
        part = truncate(SHARED, rank)
        products.append(between(LoraFactors(part.a, part.b, scale), own).product())
    part = truncate(SHARED, 4)
    ours = between(LoraFactors(part.a, part.b, 1.0), mean.result()["m"]).product()
    close(ours, np.mean(products, axis=0))


def test_one_client_identical_clients_order_and_units_of_weight() -> None:
    cores = [core(r, i) for i, r in enumerate((2, 4, 3))]
    results = []
    for factor in (1.0, 7.0):
        for order in permutations(zip(cores, (1.0, 2.0, 5.0), strict=True)):
            mean = CoreMean()
            for own, weight in order:
                mean.add({"m": own}, factor * weight)
            results.append(mean.result()["m"])
    for result in results:
        close(result, results[0])
    for count in (1, 3):
        mean = CoreMean()
        for _ in range(count):
            mean.add({"m": cores[0]}, 3.0)
        close(mean.result()["m"], cores[0])


def test_a_module_some_lack_is_a_mean_over_its_owners() -> None:
    mean = CoreMean()
    mean.add({"m": core(2, 0), "n": core(3, 1)}, 1.0)
    mean.add({"m": core(2, 2)}, 9.0)
    close(mean.result()["n"], core(3, 1))
    close(mean.result()["m"], np.average([core(2, 0), core(2, 2)], axis=0, weights=[1, 9]))


def test_rank_one_is_never_broadcast() -> None:
    mean = CoreMean()
    mean.add({"m": np.full((1, 1), 8.0)}, 1.0)
    mean.add({"m": np.ones((3, 3))}, 1.0)
    close(mean.result()["m"], [[4.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]])


def test_half_precision_is_folded_in_double_and_inputs_stay() -> None:
    mean, half = CoreMean(), np.full((2, 2), 0.1, np.float16)
    for _ in range(1000):
        mean.add({"m": half}, 1.0)
    np.testing.assert_allclose(mean.result()["m"], np.float64(np.float16(0.1)), rtol=1e-12)
    np.testing.assert_array_equal(half, np.full((2, 2), 0.1, np.float16))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.ones((2, 3)), "z: a core must be square"),
        (np.ones(4), "z: .* not a matrix"),
        (np.zeros((0, 0)), "z: .* missing"),
        (np.full((2, 2), np.nan), "z: .* not finite"),
        (np.ones((2, 2), np.int64), "z: dtype"),
    ],
)
def test_refuses_by_module_and_keeps_what_it_had(bad: np.ndarray, message: str) -> None:
    mean = CoreMean()
    mean.add({"m": core(2, 0)}, 2.0)
    with pytest.raises(AggregationError, match=message):
        mean.add({"m": core(2, 1), "z": bad}, 1.0)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(AggregationError, match="weight"):
            mean.add({"m": core(2, 1)}, weight)
    close(mean.result()["m"], core(2, 0))


def test_memory_does_not_grow_with_clients() -> None:
    held = []
    tracemalloc.start()
    try:
        mean = CoreMean()
        for index in range(120):
            mean.add({"m": np.ones((64, 64))}, 1.0)
            if index in (9, 119):
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] < held[0] + 4096  # one client is 32 kB


def test_the_mean_of_nobody_and_a_core_that_does_not_fit_are_refused() -> None:
    with pytest.raises(AggregationError, match="no client"):
        CoreMean().result()
    for shape in ((1, 1), (TOP, 1), (TOP + 1, TOP + 1)):
        with pytest.raises(AggregationError, match="does not fit"):
            between(SHARED, np.ones(shape))


def test_the_columns_are_orthonormal_and_the_first_ones_do_not_depend_on_the_rank() -> None:
    whole = seeded_up(64, 64, np.random.default_rng(7))
    np.testing.assert_allclose(whole.T @ whole, np.eye(64), atol=2e-15)
    for rank in (1, 2, 5, 16, 63):
        part = seeded_up(64, rank, np.random.default_rng(7))
        assert part.shape == (64, rank)
        np.testing.assert_array_equal(part, whole[:, :rank])
    assert not np.array_equal(whole[:, :1], seeded_up(64, 1, np.random.default_rng(8)))


def test_columns_are_nested_at_a_models_width() -> None:
    whole = seeded_up(768, 16, np.random.default_rng(7))
    for rank in (1, 4, 8):
        np.testing.assert_array_equal(
            seeded_up(768, rank, np.random.default_rng(7)), whole[:, :rank]
        )


@pytest.mark.parametrize("rank", [0, 10])
def test_more_columns_than_rows_are_refused(rank: int) -> None:
    with pytest.raises(AggregationError, match="orthonormal"):
        seeded_up(9, rank, np.random.default_rng(0))
