"""The product-space graph step against dense matrices."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import block_diag

from atlas_flwr.aggregation import graph
from atlas_flwr.aggregation.laplacian import Truncation, product_step
from atlas_flwr.aggregation.product_mean import ProductMean
from atlas_flwr.aggregation.products import svd
from atlas_flwr.aggregation.write_back import balanced
from atlas_flwr.errors import AggregationError
from walks import (
    D_IN,
    D_OUT,
    FRESH,
    adjacency,
    clients,
    cut,
    factors,
    matrix,
    moved,
    products,
    roughness,
    same_bits,
    sizes,
)

close = {"rtol": 1e-10, "atol": 1e-11}
FULL = [D_IN + 1] * 5  # no product of this shape has so high a rank: nothing is cut

CASES = {
    "mixed": ([1, 4, 2, 3], 1.0),
    "rank above the dimensions": ([8, 2, 11], 1.0),
    "sparse": ([2, 1, 3, 2, 4, 1, 2], 0.35),
    "two": ([2, 3], 1.0),
}


@pytest.mark.parametrize(("ranks", "density"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("module", ["m", "wide"])
@pytest.mark.parametrize("part", [0.3, 1.0])
def test_the_step_is_the_dense_step_cut_to_each_rank(ranks, density, module, part):
    models, n, a = clients(ranks), sizes(len(ranks)), adjacency(len(ranks), 1, density)
    eta = part * graph.largest_step(a, n)
    result = product_step(models, a, n, eta, FRESH)
    for k, dense in enumerate(moved(models, a, n, eta, module)):
        own, back = models[k][module], result.adapters[k][module]
        assert (back.rank, back.scale) == (own.rank, own.scale)
        np.testing.assert_allclose(back.product(), cut(dense, own.rank), **close)


def test_both_ways_to_share_bases_give_the_same(monkeypatch):
    models, n, a = clients([2, 1, 3, 2, 4, 1]), sizes(6), adjacency(6, 3, 0.5)
    results = []
    for pays in (True, False):
        monkeypatch.setattr(
            "atlas_flwr.aggregation.laplacian._sharing_pays", lambda *_, pays=pays: pays
        )
        results.append(product_step(models, a, n, 0.07, FRESH, tails=[{}] * 6))
    for k in range(6):
        for module in ("m", "wide"):
            one, other = (r.adapters[k][module].product() for r in results)
            np.testing.assert_allclose(one, other, **close)
            if module in results[0].tails[k]:
                one, other = (r.tails[k][module].product() for r in results)
                np.testing.assert_allclose(one, other, **close)
        assert results[0].truncations[k].tail == pytest.approx(results[1].truncations[k].tail)


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("movers", [[0], [2, 4], []])
def test_who_is_not_to_move_stays_and_the_others_step_as_with_all(movers, pays, monkeypatch):
    monkeypatch.setattr("atlas_flwr.aggregation.laplacian._sharing_pays", lambda *_: pays)
    models, n, a = clients([2, 1, 3, 2, 4]), sizes(5), adjacency(5, 3)
    every = product_step(models, a, n, 0.07, FRESH, tails=[{}] * 5)
    some = product_step(models, a, n, 0.07, FRESH, tails=[{}] * 5, movers=movers)
    for k in range(5):
        whole = every if k in movers else None
        want = whole.adapters[k] if whole else models[k]
        assert same_bits([some.adapters[k]], [want])
        assert some.truncations[k] == (whole.truncations[k] if whole else Truncation())
        assert some.tails[k].keys() == (whole.tails[k].keys() if whole else set())


@pytest.mark.parametrize("step", ["eta", "edges"])
def test_eta_zero_and_no_edges_are_the_identity_to_the_bit(step):
    models = [{m: f.astype(np.float32) for m, f in own.items()} for own in clients([1, 4, 2])]
    a = graph.complete(3) if step == "eta" else np.zeros((3, 3))
    result = product_step(models, a, sizes(3), 0.0 if step == "eta" else 0.7, FRESH)
    assert same_bits(result.adapters, models)
    assert [t.share for t in result.truncations] == [0, 0, 0]


def test_a_client_alone_is_untouched_and_the_others_are_as_without_it():
    models, n, a = clients([2, 3, 1, 2]), [50.0] * 4, adjacency(4)
    a[2] = a[:, 2] = 0
    tail = {"m": factors(np.random.default_rng(1), 1)}
    result = product_step(models, a, n, 0.3, FRESH, tails=[{}, {}, tail, {}])
    assert same_bits([result.adapters[2]], [models[2]])
    assert result.tails[2] == tail  # kept for the day it has neighbours
    rest = [0, 1, 3]
    without = product_step([models[k] for k in rest], a[np.ix_(rest, rest)], [50.0] * 3, 0.3, FRESH)
    for k, own in zip(rest, without.adapters, strict=True):
        np.testing.assert_allclose(result.adapters[k]["m"].product(), own["m"].product(), **close)


def test_constant_models_are_a_fixed_point_whatever_their_factors():
    rng = np.random.default_rng(4)
    one = factors(rng, 3, 2.0)
    models = []
    for scale in (1.0, 0.25, 8.0, 2.0):
        gauge = rng.standard_normal((3, 3)) + 4 * np.eye(3)
        models.append(
            {"m": type(one)(np.linalg.solve(gauge, one.a), one.b @ gauge * 2 / scale, scale)}
        )
    result = product_step(models, adjacency(4), sizes(4), 0.1, FRESH)
    np.testing.assert_allclose(products(result.adapters), products(models), **close)
    assert max(t.moved for t in result.truncations) < 1e-12
    assert [t.tail for t in result.truncations] == [0, 0, 0, 0]  # rounding is no tail


def test_the_weighted_sum_is_preserved_and_roughness_falls():
    models, n, a = clients(FULL), sizes(5), adjacency(5, 2)
    eta = 0.5 * graph.largest_step(a, n)
    before = roughness(products(models), a)
    total = np.average(products(models), axis=0, weights=n)
    for _ in range(4):
        models = product_step(models, a, n, eta, FRESH).adapters
        after = roughness(products(models), a)
        assert after < before
        before = after
        np.testing.assert_allclose(np.average(products(models), axis=0, weights=n), total, **close)


def test_roughness_does_not_grow_at_the_bound():
    models, n, a = clients(FULL), sizes(5), adjacency(5, 2)
    result = product_step(models, a, n, graph.largest_step(a, n), FRESH)
    assert roughness(products(result.adapters), a) <= roughness(products(models), a) * (1 + 1e-12)


def test_t_steps_are_the_power_of_the_matrix():
    models, n, a = clients(FULL), sizes(5), adjacency(5, 6)
    eta = 0.8 * graph.largest_step(a, n)
    oracle = np.einsum(
        "kl,lij->kij", np.linalg.matrix_power(matrix(a, n, eta), 6), products(models)
    )
    for _ in range(6):
        models = product_step(models, a, n, eta, FRESH).adapters
    np.testing.assert_allclose(products(models), oracle, **close)


def test_two_clients_contract_in_closed_form():
    models, a, eta = clients([8, 9]), np.array([[0, 0.7], [0.7, 0]]), 0.4
    gap = products(models)[0] - products(models)[1]
    for t in range(1, 5):
        models = product_step(models, a, [10, 10], eta, FRESH).adapters
        now = products(models)[0] - products(models)[1]
        np.testing.assert_allclose(now, (1 - 2 * eta * 0.7) ** t * gap, **close)


def test_on_a_complete_graph_a_full_step_is_the_mean_of_the_others():
    models, dense = clients(FULL[:4]), products(clients(FULL[:4]))
    result = product_step(models, graph.complete(4), [9] * 4, 1.0, FRESH)
    for k in range(4):
        others = np.delete(dense, k, axis=0).mean(axis=0)
        np.testing.assert_allclose(result.adapters[k]["m"].product(), others, **close)


def flexlora(models, n, ranks_of):
    """Average the products, cut to each rank: FlexLoRA with balanced factors."""
    mean = ProductMean()
    for own, weight in zip(models, n, strict=True):
        mean.add(own, weight)
    whole = {module: svd(f) for module, f in mean.result().items()}
    return [
        {m: balanced(whole[m], f.rank, f.scale, FRESH[m]).product() for m, f in own.items()}
        for own in ranks_of
    ]


@pytest.mark.parametrize("weighted", [False, True])
def test_one_complete_cluster_is_flexlora(weighted):
    """§11: η = (n − 1) / n at a = 1 / (n − 1) for equal sizes, η = 1 at a = ñ ñ / n for any."""
    models = clients([1, 4, 2, 3])
    n = sizes(4) if weighted else [25.0] * 4
    a, eta = (graph.size_weighted(n), 1.0) if weighted else (graph.complete(4), 3 / 4)
    result = product_step(models, a, n, eta, FRESH)
    for own, oracle in zip(result.adapters, flexlora(models, n, models), strict=True):
        for module, product in oracle.items():
            np.testing.assert_allclose(own[module].product(), product, **close)


def test_complete_clusters_are_flexlora_in_each():
    models, n, labels = clients([1, 4, 2, 3, 2, 5]), sizes(6), [0, 1, 0, 1, 1, 2]
    result = product_step(models, graph.size_weighted(n, labels), n, 1.0, FRESH)
    for label in (0, 1):
        at = [k for k in range(6) if labels[k] == label]
        members = [models[k] for k in at]
        oracle = flexlora(members, [n[k] for k in at], members)
        for k, own in zip(at, oracle, strict=True):
            np.testing.assert_allclose(result.adapters[k]["m"].product(), own["m"], **close)
    assert same_bits([result.adapters[5]], [models[5]])  # a cluster of one: local training


def test_after_averaging_in_a_cluster_the_step_is_vacuous():
    """Average, then a Laplacian on the same partition does nothing: so ATLAS does not average."""
    models, n, labels = clients(FULL), sizes(5), [0, 0, 1, 1, 1]
    averaged = product_step(models, graph.size_weighted(n, labels), n, 1.0, FRESH).adapters
    a = graph.within(adjacency(5), labels)
    again = product_step(averaged, a, n, 0.3, FRESH).adapters
    np.testing.assert_allclose(products(again), products(averaged), **close)
    fresh = product_step(models, a, n, 0.3, FRESH).adapters
    assert np.abs(products(fresh) - products(models)).max() > 0.1


def test_blocks_run_alone():
    models, n = clients([1, 4, 2, 3, 2]), [10.0, 30, 10, 20, 30]  # of equal mean
    blocks = [adjacency(2, 1), adjacency(3, 2)]
    whole = product_step(models, block_diag(*blocks), n, 0.2, FRESH).adapters
    parts = [
        product_step(models[s], a, n[s], 0.2, FRESH).adapters
        for s, a in zip((slice(2), slice(2, 5)), blocks, strict=True)
    ]
    np.testing.assert_allclose(products(whole), products(parts[0] + parts[1]), **close)


def test_small_clients_move_further():
    models = clients(FULL[:2])
    steps = product_step(models, graph.complete(2) * 0.2, [10, 90], 1.0, FRESH).truncations
    assert steps[0].moved == pytest.approx(9 * steps[1].moved, rel=1e-10)


def test_the_cut_is_counted_and_bounded():
    models, n, a = clients([1, 3, 2, 1]), sizes(4), adjacency(4, 5)
    eta = 0.7 * graph.largest_step(a, n)
    result = product_step(models, a, n, eta, FRESH)
    shares = graph.pulls(a, n, eta)
    for k, seen in enumerate(result.truncations):
        tail, step, bound = [], [], []
        for module in ("m", "wide"):
            dense = moved(models, a, n, eta, module)[k]
            old = products(models, module)
            tail.append(np.linalg.norm(dense - cut(dense, models[k][module].rank)))
            step.append(np.linalg.norm(dense - old[k]))
            bound.append(min(step[-1], np.linalg.norm(np.tensordot(shares[k], old, 1))))
        assert seen.tail == pytest.approx(np.linalg.norm(tail), rel=1e-10)
        assert seen.moved == pytest.approx(np.linalg.norm(step), rel=1e-10)
        assert seen.bound == pytest.approx(np.linalg.norm(bound), rel=1e-10)
        assert 0 < seen.tail <= seen.bound <= seen.moved
        assert seen.share == seen.tail / seen.moved


def test_the_bound_is_reached_by_small_orthogonal_neighbours():
    """P_k of full rank r and a small neighbour in other directions: the graph does nothing."""
    e = np.eye(D_OUT), np.eye(D_IN)
    own = {"m": type(factors(np.random.default_rng(), 1))(e[1][:2], e[0][:, :2] * 5, 1.0)}
    other = {"m": replace(own["m"], a=e[1][2:4], b=e[0][:, 2:4] * 0.1)}
    result = product_step([own, other], graph.complete(2), [1, 1], 0.01, FRESH)
    assert result.truncations[0].tail == pytest.approx(result.truncations[0].bound, rel=1e-10)
    assert result.truncations[0].share == pytest.approx(0.02, rel=0.01)


def test_error_feedback_keeps_the_weighted_sum_through_every_cut():
    models, n, a = clients([1, 2, 1, 3]), sizes(4), adjacency(4, 7)
    total = np.average(products(models), axis=0, weights=n)
    tails = [{}] * 4
    for _ in range(4):
        step = product_step(models, a, n, 0.1, FRESH, tails=tails)
        models, tails = step.adapters, step.tails
        held = [
            own["m"].product() + (tail["m"].product() if "m" in tail else 0)
            for own, tail in zip(models, tails, strict=True)
        ]
        np.testing.assert_allclose(np.average(held, axis=0, weights=n), total, **close)
    plain = product_step(clients([1, 2, 1, 3]), a, n, 0.1, FRESH)
    assert plain.tails == [{}] * 4
    assert np.abs(np.average(products(plain.adapters), axis=0, weights=n) - total).max() > 1e-3


def test_a_tail_is_added_to_the_next_step_and_compressed_to_its_rank():
    models, n, a = clients([2, 3, 1]), sizes(3), adjacency(3)
    tails = [{"m": factors(np.random.default_rng(k), 2, 1.0)} for k in range(3)]
    result = product_step(models, a, n, 0.1, FRESH, tails=tails, tail_rank=1)
    for k, step in enumerate(moved(models, a, n, 0.1)):
        dense = step + tails[k]["m"].product()
        rank = models[k]["m"].rank
        np.testing.assert_allclose(result.adapters[k]["m"].product(), cut(dense, rank), **close)
        oracle = cut(dense, rank + 1) - cut(dense, rank)
        np.testing.assert_allclose(result.tails[k]["m"].product(), oracle, **close)
        assert result.tails[k]["m"].rank == 1


def test_error_feedback_delivers_what_the_rank_held_back():
    """Over steps, a rank-1 client reaches a neighbour's small second direction's mean."""
    rng = np.random.default_rng(2)
    models, a, n = [{"m": factors(rng, 1)}, {"m": factors(rng, 4)}], graph.complete(2), [1, 1]
    with_tails, without = models, models
    tails = [{}, {}]
    for _ in range(3):
        step = product_step(with_tails, a, n, 0.2, FRESH, tails=tails)
        with_tails, tails = step.adapters, step.tails
        without = product_step(without, a, n, 0.2, FRESH).adapters
    assert "m" in tails[0]
    assert np.abs(products(with_tails) - products(without)).max() > 1e-3


def test_at_round_0_the_nested_start_comes_back():
    models = [
        {"m": replace(factors(np.random.default_rng(0), r), a=FRESH["m"][:r])} for r in (2, 4)
    ]
    models = [{"m": replace(own["m"], b=np.zeros_like(own["m"].b))} for own in models]
    result = product_step(models, graph.complete(2), [1, 1], 0.5, FRESH)
    assert same_bits(result.adapters, models)


def test_a_module_is_stepped_among_the_clients_that_have_it():
    models, a, n = clients([2, 3, 1]), adjacency(3), [10.0] * 3
    del models[1]["wide"]
    result = product_step(models, a, n, 0.2, FRESH)
    assert result.adapters[1].keys() == {"m"}
    pair = [0, 2]
    alone = product_step([models[k] for k in pair], a[np.ix_(pair, pair)], [10.0] * 2, 0.2, FRESH)
    for k, own in zip(pair, alone.adapters, strict=True):
        np.testing.assert_allclose(
            result.adapters[k]["wide"].product(), own["wide"].product(), **close
        )


def test_what_can_not_be_stepped_is_refused():
    models, a, n = clients([2, 3]), graph.complete(2), [1, 1]
    bad = [dict(models[0]), {"m": replace(models[1]["m"], b=models[1]["m"].b * np.nan)}]
    other = [dict(models[0]), {"m": factors(np.random.default_rng(0), 2, 1.0, 5)}]
    for text, call in {
        r"\[0, 1\] on this graph, got 1.5": lambda: product_step(models, a, n, 1.5, FRESH),
        "2 adapters for": lambda: product_step(models, graph.complete(3), [1] * 3, 0.1, FRESH),
        "m.lora_B: holds": lambda: product_step(bad, a, n, 0.1, FRESH),
        "m: the product's shape": lambda: product_step(other, a, n, 0.1, FRESH),
        "no fresh rows": lambda: product_step(models, a, n, 0.1, {}),
        "rank is at least 1": lambda: product_step(models, a, n, 0.1, FRESH, tail_rank=0),
    }.items():
        with pytest.raises(AggregationError, match=text):
            call()
