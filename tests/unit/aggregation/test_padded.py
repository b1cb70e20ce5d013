"""HetLoRA and RBLA against plain NumPy averages, and against each other."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation.factors import at_scale, pad, truncate
from atlas_flwr.aggregation.padded import OwnerMean, PaddedMean, by_examples, by_norm
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors
from drawn import DI, DO, client, close

Fold = PaddedMean | OwnerMean
Maker = Callable[[], Fold]
FOLDS: dict[str, Maker] = {
    "hetlora": lambda: PaddedMean(by_norm),
    "padded": lambda: PaddedMean(by_examples),
    "rbla": OwnerMean,
}
every_fold = pytest.mark.parametrize("make", FOLDS.values(), ids=FOLDS)


def fold(
    make: Maker, clients: Sequence[LoraFactors], weights: Sequence[float] | None = None
) -> LoraFactors:
    mean = make()
    for factors, weight in zip(clients, weights or [1.0] * len(clients), strict=True):
        mean.add({"m": factors}, weight)
    return mean.result()["m"]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 999), min_size=1, max_size=6),
    st.integers(1, 6),
    st.floats(0.1, 32),
)
def test_equal_scales_give_the_plain_average_of_factors(
    seed: int, weights: list[int], rank: int, scale: float
) -> None:
    clients = [client(rank, seed + index, scale) for index in range(len(weights))]
    for name in ("padded", "rbla"):
        served = at_scale(fold(FOLDS[name], clients, weights), scale)
        close(served.a, np.average([c.a for c in clients], axis=0, weights=weights))
        close(served.b, np.average([c.b for c in clients], axis=0, weights=weights))


@every_fold
def test_one_client_and_identical_clients_are_fixed_points(make: Maker) -> None:
    only = client(3, 0)
    for clients in ([only], [only] * 4):
        served = at_scale(fold(make, clients, [3.0] * len(clients)), only.scale)
        close(served.a, only.a)
        close(served.b, only.b)
        close(served.product(), only.product())


@every_fold
def test_weights_are_relative(make: Maker) -> None:
    clients, weights = [client(3, seed) for seed in range(3)], [1.0, 2.0, 5.0]
    once, scaled = fold(make, clients, weights), fold(make, clients, [7 * w for w in weights])
    close(once.a, scaled.a)
    close(once.b, scaled.b)


@every_fold
def test_the_order_of_clients_does_not_matter(make: Maker) -> None:
    pairs = [(client(r, i, 0.5 + i), 1.0 + i) for i, r in enumerate([2, 4, 1])]
    first = fold(make, *zip(*pairs, strict=True))
    for order in permutations(pairs):
        other = fold(make, *zip(*order, strict=True))
        close(other.a, first.a)
        close(other.b, first.b)


@every_fold
def test_another_basis_of_the_same_products_gives_another_mean(make: Maker) -> None:
    clients = [client(3, seed) for seed in range(3)]
    turned = []
    for index, c in enumerate(clients):
        g = np.eye(3) + 0.5 * np.random.default_rng(index).standard_normal((3, 3))
        turned.append(LoraFactors(np.linalg.inv(g) @ c.a, c.b @ g, c.scale))
        close(turned[-1].product(), c.product())
    before, after = fold(make, clients).product(), fold(make, turned).product()
    assert np.linalg.norm(before - after) > 1e-2 * np.linalg.norm(before)


@every_fold
def test_products_of_other_scale_are_averaged_in_one_unit(make: Maker) -> None:
    clients = [client(3, seed, 1.0) for seed in range(3)]
    # The same products with the scale moved evenly: the mean must not see it.
    moved = [at_scale(c, s) for c, s in zip(clients, (0.5, 4.0, 16.0), strict=True)]
    close(fold(make, moved).product(), fold(make, clients).product())


def test_zero_padding_dilutes_by_the_owners_share_in_each_factor() -> None:
    clients, weights = [client(2, 0), client(4, 1), client(4, 2)], [5.0, 2.0, 1.0]
    padded = fold(lambda: PaddedMean(by_examples), clients, weights)
    owners = fold(OwnerMean, clients, weights)
    share = np.array([1, 1, 3 / 8, 3 / 8])
    close(padded.a, share[:, None] * owners.a)
    close(padded.b, share * owners.b)
    close(padded.b[:, 2:] @ padded.a[2:], (3 / 8) ** 2 * owners.b[:, 2:] @ owners.a[2:])
    # Padding by hand and averaging in NumPy says the same.
    by_hand = [pad(at_scale(c, 1.0), 4) for c in clients]
    close(padded.a, np.average([c.a for c in by_hand], axis=0, weights=weights))
    close(padded.b, np.average([c.b for c in by_hand], axis=0, weights=weights))


def test_owners_rows_are_averaged_over_owners_alone() -> None:
    low, high, higher = client(1, 0, 1.0), client(3, 1, 1.0), client(4, 2, 1.0)
    mean = fold(OwnerMean, [low, high, higher], [1.0, 2.0, 6.0])
    close(mean.a[0], np.average([low.a[0], high.a[0], higher.a[0]], axis=0, weights=[1, 2, 6]))
    close(mean.b[:, 1], np.average([high.b[:, 1], higher.b[:, 1]], axis=0, weights=[2, 6]))
    close(mean.a[3], higher.a[3])


def test_padding_one_client_keeps_its_product() -> None:
    only = client(2, 0)
    mean = PaddedMean(by_examples)
    mean.add({"m": only}, 1.0)
    mean.add({"m": LoraFactors(np.zeros((4, DI)), np.zeros((DO, 4)), 1.0)}, 1e-300)
    assert mean.result()["m"].rank == 4
    close(mean.result()["m"].product(), only.product())


def test_norm_weights_are_the_dense_norms_summed_over_modules() -> None:
    clients = [
        {"m": client(2, 0, 0.5), "n": client(3, 1)},
        {"m": client(4, 2, 3.0), "n": client(1, 3)},
    ]
    dense = [sum(np.linalg.norm(f.product()) for f in c.values()) for c in clients]
    np.testing.assert_allclose([by_norm(c, 17.0) for c in clients], dense, rtol=1e-12)
    mean, twin = PaddedMean(by_norm), PaddedMean(by_examples)
    for adapter, weight in zip(clients, dense, strict=True):
        mean.add(adapter, 5.0)
        twin.add(adapter, float(weight))
    for module, factors in mean.result().items():
        close(factors.a, twin.result()[module].a)


def test_half_precision_norms_do_not_overflow() -> None:
    big = LoraFactors(np.full((2, DI), 300, np.float16), np.full((DO, 2), 300, np.float16), 1.0)
    np.testing.assert_allclose(by_norm({"m": big}, 1.0), np.linalg.norm(big.product()), rtol=1e-12)


def test_a_client_without_an_update_has_no_norm_and_no_influence() -> None:
    some = client(2, 0)
    idle = LoraFactors(np.ones((4, DI)), np.zeros((DO, 4)), 2.0)
    for order in ([some, idle], [idle, some]):
        close(fold(lambda: PaddedMean(by_norm), order).product(), some.product())


def test_the_first_round_keeps_the_initial_down_factors() -> None:
    start = client(4, 0, 1.0)
    idle = [
        LoraFactors(start.a, np.zeros((DO, 4)), 1.0),
        LoraFactors(start.a, np.zeros((DO, 4)), 1.0),
    ]
    mean = fold(lambda: PaddedMean(by_norm), idle)
    close(mean.a, start.a)
    assert not mean.b.any()


@pytest.mark.parametrize("share", [-1.0, float("nan"), float("inf")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    mean = PaddedMean(lambda adapter, weight: share)
    with pytest.raises(AggregationError, match="share"):
        mean.add({"m": client(2, 0)}, 1.0)


def test_rank_one_is_never_broadcast_beside_rank_four() -> None:
    one, four = client(1, 0, 1.0), client(4, 1, 1.0)
    for make in (OwnerMean, lambda: PaddedMean(by_examples)):
        for order in ([one, four], [four, one]):
            mean = fold(make, order)
            close(mean.a[0], (one.a[0] + four.a[0]) / 2)
            # Broadcasting would have put half of the single row into every other one.
            close(mean.a[1:], four.a[1:] / (1 if make is OwnerMean else 2))


@every_fold
def test_a_module_some_lack_is_a_mean_over_its_owners(make: Maker) -> None:
    mean = make()
    owner, other = {"m": client(2, 0), "n": client(2, 1)}, {"m": client(2, 2)}
    mean.add(owner, 1.0)
    mean.add(other, 9.0)
    result = mean.result()
    close(result["n"].product(), owner["n"].product())
    normed = make is FOLDS["hetlora"]
    weights = [by_norm(owner, 1.0), by_norm(other, 9.0)] if normed else [1.0, 9.0]
    roots = [np.sqrt(2.0) * owner["m"].a, np.sqrt(2.0) * other["m"].a]
    close(result["m"].a, np.average(roots, axis=0, weights=weights))


@every_fold
def test_half_precision_is_folded_in_double(make: Maker) -> None:
    third = LoraFactors(np.full((2, DI), 0.1, np.float16), np.full((DO, 2), 0.1, np.float16), 1.0)
    mean = fold(make, [third] * 1000)
    assert mean.a.dtype == mean.b.dtype == np.float64
    np.testing.assert_allclose(mean.a, np.float64(np.float16(0.1)), rtol=1e-12)


BAD = {
    "nan": LoraFactors(np.full((2, DI), np.nan), np.ones((DO, 2)), 1.0),
    "infinite": LoraFactors(np.ones((2, DI)), np.full((DO, 2), np.inf), 1.0),
    "no partner": LoraFactors(np.ones((2, DI)), np.zeros((0, 2)), 1.0),
    "d_in": LoraFactors(np.ones((2, DI + 1)), np.ones((DO, 2)), 1.0),
    "d_in of 1": LoraFactors(np.ones((2, 1)), np.ones((DO, 2)), 1.0),
    "d_out of 1": LoraFactors(np.ones((2, DI)), np.ones((1, 2)), 1.0),
}


@every_fold
@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_refuses_by_module_and_keeps_what_it_had(make: Maker, bad: LoraFactors) -> None:
    mean = make()
    good = {"m": client(2, 0), "z": client(2, 1)}
    mean.add(good, 2.0)
    with pytest.raises(AggregationError, match="z"):
        mean.add({"m": client(2, 2), "z": bad}, 1.0)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(AggregationError, match="weight"):
            mean.add(good, weight)
    for module, factors in good.items():
        close(mean.result()[module].product(), factors.product())


@every_fold
def test_the_mean_of_nobody_is_refused(make: Maker) -> None:
    with pytest.raises(AggregationError, match="no client"):
        make().result()


@every_fold
def test_memory_does_not_grow_with_clients(make: Maker) -> None:
    rng = np.random.default_rng(0)
    held = []
    tracemalloc.start()
    try:
        mean = make()
        for index in range(120):
            a, b = rng.standard_normal((4, 300)), rng.standard_normal((200, 4))
            mean.add({"m": LoraFactors(a, b, 1.0)}, 1.0)
            del a, b
            if index in (9, 119):
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] < held[0] + 4096  # one client is 16 kB


def test_serving_a_lower_rank_cuts_the_same_rows() -> None:
    mean = fold(OwnerMean, [client(4, 0), client(2, 1)])
    close(truncate(at_scale(mean, 3.0), 2).product(), mean.b[:, :2] @ mean.a[:2])
