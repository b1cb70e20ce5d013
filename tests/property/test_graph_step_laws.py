"""Laws of the graph step on products: any graph, sizes, ranks, scales and gauge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation import graph
from atlas_flwr.aggregation.laplacian import Step, product_step
from atlas_flwr.aggregation.laplacian_linear import factor_step
from atlas_flwr.types import LoraFactors
from walks import D_IN, FRESH, adjacency, clients, moved, products, roughness, sizes

laws = settings(max_examples=25, deadline=None)
close = {"rtol": 0, "atol": 1e-9}


@dataclass(frozen=True)
class Walk:
    models: list[dict[str, LoraFactors]]
    a: np.ndarray
    n: list[float]
    eta: float

    def step(self, models=None) -> Step:
        return product_step(models or self.models, self.a, self.n, self.eta, FRESH)


@st.composite
def walks(draw: st.DrawFn, whole: bool = False) -> Walk:
    """Clients on a graph, some alone; ``whole``: ranks that nothing is cut at."""
    low, high = (D_IN, D_IN + 2) if whole else (1, 5)
    ranks = draw(st.lists(st.integers(low, high), min_size=1, max_size=6))
    seed = draw(st.integers(0, 2**32 - 1))
    a = adjacency(len(ranks), seed, draw(st.sampled_from([0.0, 0.4, 1.0])))
    n = sizes(len(ranks), seed)
    bound = min(graph.largest_step(a, n), 1.0)
    return Walk(clients(ranks, seed), a, n, draw(st.floats(0, 1)) * bound)


def by_module(step: Step, module: str = "m") -> np.ndarray:
    return products(step.adapters, module)


@laws
@given(walks(), st.integers(0, 2**32 - 1))
def test_gauge_and_scale_change_nothing(walk: Walk, seed: int) -> None:
    rng = np.random.default_rng(seed)
    turned = []
    for own in walk.models:
        turned.append({})
        for module, f in own.items():
            gauge, c = rng.standard_normal((f.rank, f.rank)) + 6 * np.eye(f.rank), rng.uniform(0.1)
            a, b = np.linalg.solve(gauge, f.a), f.b @ gauge / c
            turned[-1][module] = LoraFactors(a, b, c * f.scale)
    one, other = walk.step(), walk.step(turned)
    dense = moved(walk.models, walk.a, walk.n, walk.eta)
    for k, own in enumerate(walk.models):
        s = np.linalg.svd(dense[k], compute_uv=False)
        rank = own["m"].rank
        assert one.truncations[k].tail == pytest.approx(other.truncations[k].tail, abs=1e-8)
        if rank >= len(s) or s[rank - 1] - s[rank] > 1e-3:  # a cut between equals is not unique
            np.testing.assert_allclose(by_module(one)[k], by_module(other)[k], rtol=0, atol=1e-8)


def test_the_factor_step_is_not_gauge_invariant() -> None:
    models = clients([3, 3, 3], 1)
    flipped = [
        {m: LoraFactors(-f.a, -f.b, f.scale) if k else f for m, f in own.items()}
        for k, own in enumerate(models)
    ]
    np.testing.assert_array_equal(products(models), products(flipped))
    one, other = (factor_step(c, graph.complete(3), [1] * 3, 0.3) for c in (models, flipped))
    assert np.abs(products(one) - products(other)).max() > 0.1


@laws
@given(walks(), st.randoms(use_true_random=False))
def test_renumbering_the_clients_renumbers_the_result(walk: Walk, random) -> None:
    order = list(range(len(walk.models)))
    random.shuffle(order)
    models, n = [walk.models[k] for k in order], [walk.n[k] for k in order]
    other = product_step(models, walk.a[np.ix_(order, order)], n, walk.eta, FRESH)
    np.testing.assert_allclose(by_module(other), by_module(walk.step())[order], rtol=0, atol=1e-8)


@laws
@given(walks())
def test_the_cut_never_exceeds_the_step(walk: Walk) -> None:
    result = walk.step()
    dense = moved(walk.models, walk.a, walk.n, walk.eta)
    old = products(walk.models)
    for k, seen in enumerate(result.truncations):
        assert seen.tail <= seen.bound + 1e-9
        assert seen.bound <= seen.moved
        assert 0 <= seen.share <= 1 + 1e-9
        step = np.linalg.norm(dense[k] - old[k])
        assert np.linalg.norm(dense[k] - by_module(result)[k]) <= step + 1e-9
        assert seen.moved >= step * (1 - 1e-9) - 1e-9  # one of its two modules


@laws
@given(walks(whole=True))
def test_uncut_the_weighted_sum_stays_and_roughness_does_not_grow(walk: Walk) -> None:
    after, before = by_module(walk.step()), products(walk.models)
    np.testing.assert_allclose(after, moved(walk.models, walk.a, walk.n, walk.eta), **close)
    np.testing.assert_allclose(
        np.average(after, axis=0, weights=walk.n),
        np.average(before, axis=0, weights=walk.n),
        **close,
    )
    assert roughness(after, walk.a) <= roughness(before, walk.a) * (1 + 1e-9)


@laws
@given(walks())
def test_no_direction_dies(walk: Walk) -> None:
    for own in walk.step().adapters:
        assert all(np.linalg.norm(f.a, axis=1).min() > 0 for f in own.values())
