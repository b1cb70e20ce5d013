"""The mean of products once its stack is larger than the dense sum, which takes its place."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from atlas_flwr.aggregation.measures import effective_rank, relative_error
from atlas_flwr.aggregation.product_mean import ProductMean
from atlas_flwr.types import LoraFactors

SHAPES = [(40, 24), (24, 40), (24, 24)]
RANK = 4
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def client(seed: int, shape: tuple[int, int], scale: float = 0.5) -> LoraFactors:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((RANK, shape[1])), rng.standard_normal((shape[0], RANK))
    return LoraFactors(a.astype(np.float32), b.astype(np.float32), scale)


def mean_of(clients: Sequence[LoraFactors], *args: int, **how: bool) -> ProductMean:
    mean = ProductMean(*args, **how)
    for index, factors in enumerate(clients):
        mean.add({"m": factors}, 1.0 + index % 3)
    return mean


@each_shape
@pytest.mark.parametrize("count", [1, 3, 4, 5, 30])
def test_it_is_the_dense_mean_however_many_clients_there_are(
    shape: tuple[int, int], count: int
) -> None:
    clients = [client(seed, shape, 0.5 + seed) for seed in range(count)]
    weights = [1.0 + index % 3 for index in range(count)]
    oracle = np.average([c.product() for c in clients], axis=0, weights=weights)
    for stacked in (False, True):
        mean = mean_of(clients, stacked=stacked)
        np.testing.assert_allclose(mean.result()["m"].product(), oracle, rtol=1e-10, atol=1e-11)
        assert mean.lost == 0
        again = mean.result()["m"].product()  # asking changes nothing
        np.testing.assert_array_equal(again, mean.result()["m"].product())


@each_shape
def test_it_never_holds_more_than_the_dense_sum(shape: tuple[int, int]) -> None:
    most = 8 * shape[0] * shape[1]
    held = [mean_of([client(s, shape) for s in range(n)]).held_bytes for n in range(1, 40)]
    assert held == sorted(held)
    assert held[-1] == most
    assert max(held) == most
    stack = 8 * RANK * sum(shape)
    assert held[:2] == [stack, 2 * stack]  # while it is smaller the stack stays as it is


@each_shape
def test_a_cap_below_the_dimensions_keeps_a_stack(shape: tuple[int, int]) -> None:
    capped = mean_of([client(seed, shape) for seed in range(30)], 8)
    assert capped.held_bytes <= 2 * 8 * 8 * sum(shape)
    assert capped.lost > 0
    at_the_dimension = mean_of([client(seed, shape) for seed in range(30)], 24)
    assert at_the_dimension.lost == 0
    assert at_the_dimension.held_bytes == 8 * shape[0] * shape[1]


@each_shape
def test_stacks_that_travel_have_the_rank_of_their_clients(shape: tuple[int, int]) -> None:
    clients = [client(seed, shape) for seed in range(5)]
    assert mean_of(clients, stacked=True).result()["m"].rank == 5 * RANK
    assert mean_of(clients * 10, stacked=True).result()["m"].rank <= 2 * 24


@each_shape
def test_many_clients_that_cancel_leave_nothing(shape: tuple[int, int]) -> None:
    mean = ProductMean()
    for seed in range(12):
        one = client(seed, shape)
        mean.add({"m": one}, 3.0)
        mean.add({"m": LoraFactors(-2 * one.a, one.b / 2, one.scale)}, 3.0)
    result = mean.result()
    assert not result["m"].product().any()
    assert effective_rank([result]) is None
    assert relative_error([(result, result)]) is None


def test_the_dense_sum_is_added_to_in_place() -> None:
    shape = (600, 500)
    mean = mean_of([client(seed, shape) for seed in range(80)])
    more = client(80, shape)
    tracemalloc.start()
    mean.add({"m": more}, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mean.held_bytes == 8 * 600 * 500
    assert peak < mean.held_bytes / 4
