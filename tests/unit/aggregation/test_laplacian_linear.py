"""The step on heads, on factors and on B over a shared A."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.aggregation import graph
from atlas_flwr.aggregation.laplacian import product_step
from atlas_flwr.aggregation.laplacian_linear import factor_step, ffa_step, tensor_step
from atlas_flwr.aggregation.mean import RunningMean
from atlas_flwr.errors import AggregationError
from walks import (
    D_IN,
    D_OUT,
    FRESH,
    adjacency,
    clients,
    factors,
    matrix,
    moved,
    products,
    same_bits,
    sizes,
)

close = {"rtol": 1e-10, "atol": 1e-11}


def heads(n: int, dtype=np.float64) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [
        {"w": rng.standard_normal((3, 5)).astype(dtype), "b": rng.standard_normal(3).astype(dtype)}
        for _ in range(n)
    ]


def shared_down(ranks: list[int], seed: int = 0) -> list[dict]:
    """Clients over one nested A, each with its scale."""
    rng = np.random.default_rng(seed)
    return [
        {"m": replace(factors(rng, r, 2.0 / (k + 1)), a=FRESH["m"][:r])}
        for k, r in enumerate(ranks)
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_heads_take_the_same_step_in_their_own_dtype(dtype):
    models, n, a = heads(4, dtype), sizes(4), adjacency(4)
    result = tensor_step(models, a, n, 0.2)
    for name in ("w", "b"):
        stacked = np.array([own[name].astype(np.float64) for own in models])
        oracle = np.tensordot(matrix(a, n, 0.2), stacked, 1).astype(dtype)
        np.testing.assert_allclose(
            [own[name] for own in result], oracle, rtol=1e-6 if dtype == np.float32 else 1e-12
        )
        assert {own[name].dtype for own in result} == {np.dtype(dtype)}


def test_a_weighted_complete_step_on_heads_is_the_running_mean():
    models, n = heads(5), sizes(5)
    mean = RunningMean()
    for own, weight in zip(models, n, strict=True):
        mean.add(own, weight)
    for own in tensor_step(models, graph.size_weighted(n), n, 1.0):
        for name, oracle in mean.result().items():
            np.testing.assert_allclose(own[name], oracle, **close)


def test_heads_of_other_label_spaces_need_no_edge():
    models = [*heads(2), {"w": np.ones((4, 5)), "b": np.ones(4)}]
    a = graph.within(graph.complete(3), [2, 2, 4])
    assert tensor_step(models, a, [1] * 3, 0.5)[2]["w"] is models[2]["w"]
    with pytest.raises(AggregationError, match=r"w: shape \(4, 5\) differs"):
        tensor_step(models, graph.complete(3), [1] * 3, 0.5)


def test_eta_zero_returns_the_very_arrays():
    models, a = clients([2, 2, 2]), adjacency(3)
    assert same_bits(factor_step(models, a, sizes(3), 0.0), models)
    assert same_bits(
        ffa_step(shared_down([1, 2, 3]), a, sizes(3), 0.0).adapters, shared_down([1, 2, 3])
    )
    tensors = heads(3)
    assert all(
        own["w"] is was["w"]
        for own, was in zip(tensor_step(tensors, a, [1] * 3, 0.0), tensors, strict=True)
    )


@pytest.mark.parametrize("one_scale", [True, False])
def test_the_factor_step_is_the_published_one_at_scale_1(one_scale):
    models, n, a, eta = clients([3, 3, 3, 3]), sizes(4), adjacency(4), 0.1
    if one_scale:
        models = [{m: replace(f, scale=2.0) for m, f in own.items()} for own in models]
    step = matrix(a, n, eta)
    result = factor_step(models, a, n, eta)
    for factor in ("a", "b"):
        units = np.array([getattr(o["m"], factor) * np.sqrt(o["m"].scale) for o in models])
        oracle = np.tensordot(step, units, 1)
        if one_scale:  # then scales drop out, and it is the letter's own formula
            oracle = np.tensordot(step, np.array([getattr(o["m"], factor) for o in models]), 1)
        for k, own in enumerate(result):
            scale = 1.0 if one_scale else np.sqrt(own["m"].scale)
            np.testing.assert_allclose(scale * getattr(own["m"], factor), oracle[k], **close)


def test_the_factor_step_differs_from_the_product_step_by_the_published_remainder():
    """η² δB δA − η Σ a (B_k − B_l)(A_k − A_l), at equal sizes and scale 1."""
    rng = np.random.default_rng(3)
    models, a, eta = [{"m": factors(rng, 3)} for _ in range(4)], adjacency(4), 0.15
    by_factors = products(factor_step(models, a, [1] * 4, eta))
    by_products = moved(models, a, [1] * 4, eta)
    for k in range(4):
        gaps = [
            (a[k, o], models[k]["m"].b - models[o]["m"].b, models[k]["m"].a - models[o]["m"].a)
            for o in range(4)
        ]
        up, down = sum(w * b for w, b, _ in gaps), sum(w * x for w, _, x in gaps)
        remainder = eta**2 * up @ down - eta * sum(w * b @ x for w, b, x in gaps)
        np.testing.assert_allclose(by_factors[k] - by_products[k], remainder, **close)
        assert np.abs(remainder).max() > 0.01  # they must differ


def test_over_a_shared_a_all_three_steps_agree():
    """§11: MIRA is recovered where A is shared."""
    models, n, a, eta = shared_down([3] * 4), sizes(4), adjacency(4), 0.1
    oracle = moved(models, a, n, eta)
    # A shared A at different scales is not shared at scale 1: MIRA needs one scale.
    level = [{"m": replace(own["m"], scale=1.0)} for own in models]
    np.testing.assert_allclose(
        products(factor_step(level, a, n, eta)), moved(level, a, n, eta), **close
    )
    by_b = ffa_step(models, a, n, eta)
    np.testing.assert_allclose(products(by_b.adapters), oracle, **close)
    assert [t.tail for t in by_b.truncations] == [0] * 4
    by_products = product_step(models, a, n, eta, FRESH)
    np.testing.assert_allclose(products(by_products.adapters), oracle, **close)
    for own, other in zip(by_b.truncations, by_products.truncations, strict=True):
        assert own.moved == pytest.approx(other.moved, rel=1e-10)


def test_a_is_the_clients_own_to_the_bit():
    models = [{"m": own["m"].astype(np.float32)} for own in shared_down([2, 4, 3])]
    result = ffa_step(models, adjacency(3), sizes(3), 0.2)
    for own, was in zip(result.adapters, models, strict=True):
        assert own["m"].a is was["m"].a


def test_over_mixed_ranks_the_columns_beyond_the_rank_are_cut_and_counted():
    models, n, a, eta = shared_down([1, 4, 2]), sizes(3), adjacency(3), 0.1
    result = ffa_step(models, a, n, eta)
    ups = np.zeros((3, D_OUT, 4))
    for k, own in enumerate(models):
        ups[k, :, : own["m"].rank] = own["m"].scale * own["m"].b
    whole = np.tensordot(matrix(a, n, eta), ups, 1)
    for k, own in enumerate(result.adapters):
        rank = own["m"].rank
        kept = whole[k, :, :rank] @ FRESH["m"][:rank]
        np.testing.assert_allclose(own["m"].product(), kept, **close)
        tail = np.linalg.norm(whole[k, :, rank:] @ FRESH["m"][rank:4])
        assert result.truncations[k].tail == pytest.approx(tail, rel=1e-9)
        step = np.linalg.norm((whole[k] - ups[k]) @ FRESH["m"][:4])
        assert result.truncations[k].moved == pytest.approx(step, rel=1e-9)
    assert result.truncations[1].tail == 0


def test_a_client_alone_is_untouched():
    a = adjacency(3)
    a[1] = a[:, 1] = 0
    models = clients([2, 2, 2])
    assert same_bits([factor_step(models, a, [1] * 3, 0.2)[1]], [models[1]])
    shared = shared_down([2, 3, 1])
    assert same_bits([ffa_step(shared, a, [1] * 3, 0.2).adapters[1]], [shared[1]])


def test_what_can_not_be_stepped_is_refused():
    a, n = graph.complete(2), [1, 1]
    good = heads(2)
    for text, call in {
        "eta must lie": lambda: tensor_step(good, a, n, 1.2),
        "3 clients for": lambda: tensor_step(heads(3), a, n, 0.1),
        "b: not every neighbour": lambda: tensor_step([good[0], {"w": good[1]["w"]}], a, n, 0.1),
        "has no mean": lambda: tensor_step([{"w": np.arange(3)}] * 2, a, n, 0.1),
        "not finite": lambda: tensor_step([{"w": np.full(2, np.inf)}] * 2, a, n, 0.1),
        r"lora_A: shape \(3, 7\) differs from \(2, 7\)": lambda: factor_step(
            clients([2, 3]), a, n, 0.1
        ),
        "1 adapters for": lambda: factor_step(clients([2]), a, n, 0.1),
        "m: A is not shared": lambda: ffa_step(clients([2, 3]), a, n, 0.1),
        "3 adapters for": lambda: ffa_step(shared_down([1] * 3), a, n, 0.1),
    }.items():
        with pytest.raises(AggregationError, match=text):
            call()
    assert D_IN != D_OUT
