"""Laws of product means and truncation, for any ranks, scales, weights and well-conditioned G."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation.measures import relative_error, tail
from atlas_flwr.aggregation.product_mean import ProductMean
from atlas_flwr.aggregation.products import compress, difference, gram_norm, norm, svd
from atlas_flwr.aggregation.write_back import balanced, unbalanced
from atlas_flwr.types import LoraFactors

laws = settings(max_examples=40, deadline=None)
Clients = list[tuple[LoraFactors, float]]


@st.composite
def cohorts(draw: st.DrawFn, least: int = 1) -> Clients:
    """Clients of one product shape, d_out ≠ d_in; some have a zero update."""
    d_out = draw(st.integers(1, 9))
    d_in = draw(st.integers(1, 9).filter(lambda d: d != d_out))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    clients: Clients = []
    for _ in range(draw(st.integers(least, 6))):
        rank = draw(st.integers(1, 5))
        b = rng.standard_normal((d_out, rank)) * draw(st.sampled_from([0.0, 1e-3, 1.0]))
        scale = draw(st.sampled_from([0.25, 1.0, 8.0]))
        clients.append(
            (LoraFactors(rng.standard_normal((rank, d_in)), b, scale), draw(st.integers(1, 900)))
        )
    return clients


seeds = st.integers(0, 2**32 - 1)


def mean_of(clients: Clients, max_rank: int | None = None) -> LoraFactors:
    mean = ProductMean(max_rank)
    for factors, weight in clients:
        mean.add({"m": factors}, weight)
    return mean.result()["m"]


def size_of(clients: Clients) -> float:
    """What rounding is relative to: the mean of norms."""
    return sum(w * norm(f) for f, w in clients) / sum(w for _, w in clients)


def same(ours: LoraFactors, theirs: LoraFactors, size: float) -> None:
    np.testing.assert_allclose(ours.product(), theirs.product(), rtol=0, atol=1e-11 * size + 1e-300)


@laws
@given(cohorts())
def test_the_mean_is_the_dense_mean(clients: Clients) -> None:
    products, weights = [f.product() for f, _ in clients], [w for _, w in clients]
    oracle = np.average(products, axis=0, weights=weights)
    np.testing.assert_allclose(
        mean_of(clients).product(), oracle, rtol=0, atol=1e-12 * size_of(clients)
    )


@laws
@given(cohorts(least=2), st.randoms(use_true_random=False))
def test_order_changes_nothing_but_the_last_bits(clients: Clients, random) -> None:
    shuffled = clients.copy()
    random.shuffle(shuffled)
    same(mean_of(shuffled), mean_of(clients), size_of(clients))


@laws
@given(cohorts(), st.integers(2, 1000))
def test_scaling_all_weights_changes_nothing(clients: Clients, times: int) -> None:
    same(mean_of([(f, times * w) for f, w in clients]), mean_of(clients), size_of(clients))


@laws
@given(cohorts(), seeds)
def test_gauge_changes_nothing(clients: Clients, seed: int) -> None:
    """(B G, G⁻¹ A) is the same client: same mean, same norms."""
    rng = np.random.default_rng(seed)
    turned: Clients = []
    for f, weight in clients:
        gauge = rng.standard_normal((f.rank, f.rank)) + 6 * np.eye(f.rank)
        other = LoraFactors(np.linalg.solve(gauge, f.a), f.b @ gauge, f.scale)
        turned.append((other, weight))
        assert norm(other) == pytest.approx(norm(f), rel=1e-11)
        assert gram_norm(other) == pytest.approx(norm(f), rel=1e-6)
    same(mean_of(turned), mean_of(clients), size_of(clients))


@laws
@given(cohorts(), st.floats(1e-3, 1e3))
def test_scale_changes_nothing(clients: Clients, c: float) -> None:
    """(c s, B / c) is the same client."""
    other = [(LoraFactors(f.a, f.b / c, c * f.scale), w) for f, w in clients]
    same(mean_of(other), mean_of(clients), size_of(clients))


@laws
@given(cohorts(), st.integers(2, 12))
def test_identical_clients_are_a_fixed_point(clients: Clients, times: int) -> None:
    one, weight = clients[0]
    same(mean_of([(one, weight)] * times), one, norm(one))
    same(mean_of(clients[:1]), one, norm(one))  # m = 1


@laws
@given(cohorts(), st.integers(1, 9), st.integers(0, 8))
def test_truncation_is_nested_and_monotone(clients: Clients, high: int, less: int) -> None:
    whole = mean_of(clients)
    low = max(high - less, 1)
    (wide, lost_wide), (narrow, lost_narrow) = compress(whole, high), compress(whole, low)
    s = svd(whole).s
    # With σ_low = σ_low+1 the best cut is not unique; what it loses still is.
    if len(s) <= low or s[low - 1] - s[low] > 1e-6 * s[0]:
        same(compress(wide, low)[0], narrow, size_of(clients))
    assert lost_wide <= lost_narrow <= 1
    bound = tail([{"m": whole}], lambda _: low)
    if bound is not None:
        error = relative_error([({"m": narrow}, {"m": whole})])
        assert error == pytest.approx(bound, rel=1e-7, abs=1e-9)


@laws
@given(cohorts(), st.integers(1, 4))
def test_what_a_cap_loses_is_never_more_than_it_says(clients: Clients, cap: int) -> None:
    mean = ProductMean(cap)
    for factors, weight in clients * 3:
        mean.add({"m": factors}, weight)
    gap = norm(difference(mean.result()["m"], mean_of(clients)))
    assert mean.result()["m"].rank <= 2 * cap
    assert gap <= mean.lost * norm(mean.result()["m"]) * (1 + 1e-9) + 1e-11 * size_of(clients)


@laws
@given(cohorts(), st.integers(1, 12), st.sampled_from([0.25, 1.0, 8.0]), seeds)
def test_written_back_is_the_truncated_product_without_dead_rows(
    clients: Clients, rank: int, scale: float, seed: int
) -> None:
    whole = mean_of(clients)
    fresh = np.random.default_rng(seed).standard_normal((rank, whole.a.shape[1]))
    for write in (balanced, unbalanced):
        back = write(svd(whole), rank, scale, fresh)
        assert back.a.shape == fresh.shape
        assert np.linalg.norm(back.a, axis=1).min() > 0
        same(back, compress(whole, rank)[0], size_of(clients))
