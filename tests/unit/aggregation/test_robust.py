"""Robust rules against Flower's own on tensors, and against dense NumPy on products."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.server.strategy.aggregate import (
    aggregate_krum,
    aggregate_median,
    aggregate_trimmed_avg,
)
from flwr.serverapp.strategy.multikrum import compute_distances, select_multikrum

from atlas_flwr.aggregation import robust
from atlas_flwr.aggregation.robust import (
    coordinate_median,
    krum_needs,
    krum_scores,
    krum_tolerates,
    merge_adapters,
    merge_product,
    merge_tensors,
    multi_krum,
    squared_distances,
    trimmed_mean,
    weighted_mean,
)
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors, ModelParts

D_OUT, D_IN = 9, 7


def factors(rng: np.random.Generator, rank: int, scale: float = 1.0) -> LoraFactors:
    return LoraFactors(rng.standard_normal((rank, D_IN)), rng.standard_normal((D_OUT, rank)), scale)


def cohort(ranks: list[int], seed: int = 0) -> list[LoraFactors]:
    rng = np.random.default_rng(seed)
    return [factors(rng, rank, 8.0 / rank) for rank in ranks]


def dense(clients: list[LoraFactors]) -> np.ndarray:
    return np.stack([each.product() for each in clients])


def turned(each: LoraFactors, seed: int) -> LoraFactors:
    """The same product in another basis."""
    g = np.random.default_rng(seed).standard_normal((each.rank, each.rank)) + 3 * np.eye(each.rank)
    return LoraFactors(np.linalg.solve(g, each.a), each.b @ g, each.scale)


def weights(seed: int, clients: int = 7) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"w": rng.standard_normal((5, 3)), "b": rng.standard_normal(4)} for _ in range(clients)]


def flowers(clients: list[dict[str, np.ndarray]], rows: int = 1):
    return [(list(each.values()), rows) for each in clients]


def records(clients: list[dict[str, np.ndarray]]) -> list[RecordDict]:
    return [
        RecordDict({"arrays": ArrayRecord({name: Array(t) for name, t in each.items()})})
        for each in clients
    ]


# ------------------------------------------------------------------ tensors: Flower's own


@pytest.mark.parametrize("clients", [1, 2, 5, 8])
def test_the_median_of_tensors_is_flowers(clients: int) -> None:
    told = weights(clients, clients)
    ours = merge_tensors(told, coordinate_median)
    for tensor, theirs in zip(ours.values(), aggregate_median(flowers(told)), strict=True):
        np.testing.assert_array_equal(tensor, theirs)


@pytest.mark.parametrize(("clients", "beta"), [(5, 0.2), (10, 0.25), (12, 0.4), (7, 0.0), (1, 0.3)])
def test_the_trimmed_mean_of_tensors_is_flowers(clients: int, beta: float) -> None:
    told = weights(clients, clients)
    ours = merge_tensors(told, lambda values: trimmed_mean(values, beta))
    oracle = aggregate_trimmed_avg(flowers(told), beta)
    for tensor, theirs in zip(ours.values(), oracle, strict=True):
        np.testing.assert_allclose(tensor, theirs, rtol=1e-13, atol=1e-15)


def test_where_flower_trims_nothing_of_three_clients_one_is_trimmed() -> None:
    values = np.array([1.0, 2.0, 1e9])
    assert aggregate_trimmed_avg([([v], 1) for v in values[:, None]], 0.2)[0] > 1e8
    assert trimmed_mean(values, 0.2) == 2.0


@pytest.mark.parametrize(("clients", "malicious", "keep"), [(7, 2, 1), (9, 2, 3), (5, 1, 2)])
def test_multi_krum_of_tensors_selects_and_averages_as_flower_does(
    clients: int, malicious: int, keep: int
) -> None:
    told = weights(clients, clients)
    parts = [ModelParts(weights=each) for each in told]
    distances = squared_distances(parts)
    oracle = compute_distances([r["arrays"] for r in records(told)])
    np.testing.assert_allclose(distances, oracle, rtol=1e-9, atol=1e-12)
    chosen = multi_krum(distances, malicious, keep)
    selected = records(told)
    kept = select_multikrum(selected, malicious, keep)
    assert sorted(selected.index(each) for each in kept) == list(chosen)
    mean = weighted_mean([parts[i] for i in chosen], [1.0] * keep).weights
    theirs = aggregate_krum(flowers(told), malicious, keep)
    for tensor, other in zip(mean.values(), theirs, strict=True):
        np.testing.assert_allclose(tensor, other, rtol=1e-12)


# ------------------------------------------------------------------ products: dense NumPy


def test_products_are_merged_entry_by_entry_whatever_ranks_scales_and_blocks(monkeypatch) -> None:
    clients = cohort([1, 4, 2, 3, 2])
    whole = dense(clients)
    for block in (1, 60, robust.BLOCK):
        monkeypatch.setattr(robust, "BLOCK", block)
        median = merge_product(clients, coordinate_median)
        np.testing.assert_allclose(median, np.median(whole, axis=0), rtol=1e-12, atol=1e-12)
        cut = merge_product(clients, lambda values: trimmed_mean(values, 0.2))
        oracle = np.sort(whole, axis=0)[1:-1].mean(axis=0)
        np.testing.assert_allclose(cut, oracle, rtol=1e-12, atol=1e-12)


def test_what_is_kept_of_a_merged_product_is_the_best_of_its_rank() -> None:
    clients = cohort([2, 2, 2])
    median = np.median(dense(clients), axis=0)
    told = [{"m": each} for each in clients]
    ((module, kept, s),) = merge_adapters(told, coordinate_median, lambda module: 3)
    assert (module, kept.rank, kept.scale) == ("m", 3, 1.0)
    np.testing.assert_allclose(s, np.linalg.svd(median, compute_uv=False), rtol=1e-12)
    lost = np.linalg.norm(kept.product() - median)
    assert lost == pytest.approx(np.linalg.norm(s[3:]), rel=1e-9)


def test_the_median_of_factors_is_no_median_of_products_and_changes_with_the_basis() -> None:
    """Why Flower's rules can't be used on A and B: one model, two medians."""
    clients = cohort([2] * 5)
    other = [turned(each, seed) for seed, each in enumerate(clients)]

    def flower(told: list[LoraFactors]) -> np.ndarray:
        a, b = aggregate_median([([each.a, each.b], 1) for each in told])
        return told[0].scale * b @ a

    median = np.median(dense(clients), axis=0)
    np.testing.assert_allclose(dense(clients), dense(other), atol=1e-9)  # the same models
    size = np.linalg.norm(median)
    assert np.linalg.norm(flower(clients) - flower(other)) > 0.1 * size
    assert np.linalg.norm(flower(clients) - median) > 0.1 * size
    ours = [merge_product(told, coordinate_median) for told in (clients, other)]
    np.testing.assert_allclose(ours[0], ours[1], atol=1e-9)


def test_distances_are_those_of_dense_products_with_weights_and_heads() -> None:
    rng = np.random.default_rng(3)
    parts = [
        ModelParts(
            adapter={"m": f, "n": factors(rng, 2)},
            head={"h": rng.standard_normal((2, 3)).astype(np.float32)},
            weights={"w": rng.standard_normal(4)},
        )
        for f in cohort([1, 4, 2, 3])
    ]
    flat = np.stack(
        [
            np.concatenate(
                [
                    *(f.product().ravel() for f in p.adapter.values()),
                    p.head["h"].ravel(),
                    p.weights["w"],
                ]
            )
            for p in parts
        ]
    )
    oracle = ((flat[:, None] - flat[None]) ** 2).sum(axis=2)
    found = squared_distances(parts)
    np.testing.assert_allclose(found, oracle, rtol=1e-9, atol=1e-9)
    assert (np.diag(found) == 0).all()
    assert (found == found.T).all()


def test_distances_do_not_see_the_basis_and_never_form_a_product() -> None:
    clients = cohort([2, 4, 3, 4])
    told = [
        [ModelParts(adapter={"m": each}) for each in group]
        for group in (clients, [turned(each, i) for i, each in enumerate(clients)])
    ]
    left, right = (squared_distances(group) for group in told)
    np.testing.assert_allclose(left, right, rtol=1e-8, atol=1e-8)
    side = 3000
    wide = LoraFactors(np.ones((2, side)), np.ones((side, 2)), 1.0)
    tracemalloc.start()
    squared_distances([ModelParts(adapter={"m": wide})] * 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < side * side  # a product alone has eight times as many bytes


# ------------------------------------------------------------------ Krum


def test_krum_scores_are_the_sums_of_the_nearest() -> None:
    distances = np.array([[0, 1, 4, 9], [1, 0, 2, 7], [4, 2, 0, 3], [9, 7, 3, 0]], float)
    np.testing.assert_array_equal(krum_scores(distances, 0), [5, 3, 5, 10])
    np.testing.assert_array_equal(krum_scores(distances, 1), [1, 1, 2, 3])
    np.testing.assert_array_equal(krum_scores(np.zeros((1, 1)), 0), [0])
    assert multi_krum(distances, 0, 2) == (0, 1)  # 5 and 5: the first
    assert multi_krum(np.zeros((1, 1)), 0, 1) == (0,)


def test_krum_says_how_many_it_needs() -> None:
    assert [krum_tolerates(n) for n in (1, 4, 5, 6, 7, 12)] == [0, 0, 1, 1, 2, 4]
    assert all(krum_needs(krum_tolerates(n)) <= n for n in range(1, 40))
    with pytest.raises(AggregationError, match="2 bad clients needs 7, got 6"):
        multi_krum(np.zeros((6, 6)), 2, 1)
    for keep in (0, 6):
        with pytest.raises(AggregationError, match=f"{keep} can't be kept"):
            multi_krum(np.zeros((6, 6)), 1, keep)


# ------------------------------------------------------------------ what is refused


def test_no_rule_returns_what_is_not_finite() -> None:
    good = cohort([2, 2, 2])
    for value in (np.nan, np.inf):
        bad = LoraFactors(np.full((2, D_IN), value), good[0].b, 1.0)
        told = [{"m": each} for each in (*good, bad)]
        parts = [ModelParts(adapter=each) for each in told]
        with pytest.raises(AggregationError, match=r"m\.lora_A.*not finite"):
            list(merge_adapters(told, coordinate_median, lambda module: 1))
        with pytest.raises(AggregationError, match=r"m\.lora_A.*not finite"):
            squared_distances(parts)
        tensors = [{"w": np.ones(3)}, {"w": np.array([1.0, value, 1.0])}]
        with pytest.raises(AggregationError, match="w: holds values that are not finite"):
            merge_tensors(tensors, coordinate_median)
    huge = LoraFactors(np.full((2, D_IN), 1e200), np.full((D_OUT, 2), 1e200), 1.0)
    with pytest.raises(AggregationError, match="not finite"), np.errstate(all="ignore"):
        squared_distances([ModelParts(adapter={"m": each}) for each in (*good, huge)])


def test_clients_must_have_sent_the_same() -> None:
    one, two = cohort([2, 2])
    narrow = LoraFactors(two.a[:, :-1], two.b, 1.0)
    for odd, words in (({}, "m: not every client"), ({"m": narrow}, "m: the product's shape")):
        with pytest.raises(AggregationError, match=words):
            squared_distances([ModelParts(adapter={"m": one}), ModelParts(adapter=odd)])
    for other, words in (
        ({"v": np.ones(3)}, "v: not every client"),
        ({"w": np.ones((1, 3))}, "w: shape"),
        ({"w": np.ones(3, int)}, "w: dtype int64 has no mean"),
    ):
        with pytest.raises(AggregationError, match=words):
            merge_tensors([{"w": np.ones(3)}, other], coordinate_median)
