"""LoRA-FAIR's closed form against least squares, its two limits, and its optimality."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation.fair import fair
from atlas_flwr.aggregation.product_mean import ProductMean
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors, ModelParts
from strategies.folds import FlatMean

DO, DI, RANK = 9, 7, 3


def client(seed: int, scale: float = 2.0) -> LoraFactors:
    rng = np.random.default_rng(seed)
    return LoraFactors(rng.standard_normal((RANK, DI)), rng.standard_normal((DO, RANK)), scale)


def cohort(seed: int, count: int = 3, scale: float = 2.0) -> tuple[LoraFactors, LoraFactors]:
    return folded([client(seed + index, scale) for index in range(count)])


def folded(clients: list[LoraFactors]) -> tuple[LoraFactors, LoraFactors]:
    """The means of factors and of products, as the strategy makes them."""
    mean, exact = FlatMean(), ProductMean()
    for index, factors in enumerate(clients):
        mean.add(ModelParts({"m": factors}), 1.0 + index)
        exact.add({"m": factors}, 1.0 + index)
    return mean.result().adapter["m"], exact.result()["m"]


def close(ours: np.ndarray, oracle: np.ndarray, tolerance: float = 1e-10) -> None:
    np.testing.assert_allclose(ours, oracle, rtol=tolerance, atol=tolerance)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(1e-4, 1e3), st.floats(0.1, 16))
def test_is_the_ridge_regression_numpy_solves(seed: int, lam: float, scale: float) -> None:
    mean, exact = cohort(seed, scale=scale)
    ours = fair(mean, exact, lam)
    error = exact.product() / scale - mean.b @ mean.a
    # min ‖E − X A‖² + λ‖X‖², as one ordinary least-squares problem over [A, √λ I].
    wide = np.hstack([mean.a, np.sqrt(lam) * np.eye(RANK)])
    target = np.hstack([error, np.zeros((DO, RANK))])
    change = np.linalg.lstsq(wide.T, target.T, rcond=None)[0].T
    np.testing.assert_allclose(ours.b, mean.b + change, rtol=1e-8, atol=1e-9)
    np.testing.assert_array_equal(ours.a, mean.a)
    assert ours.scale == mean.scale


def test_an_infinite_penalty_gives_the_factor_mean() -> None:
    mean, exact = cohort(0)
    close(fair(mean, exact, 1e15).b, mean.b)


def test_without_a_penalty_the_residual_is_orthogonal_to_the_rows_of_a() -> None:
    mean, exact = cohort(0)
    ours = fair(mean, exact, 0.0)
    close((exact.product() / 2.0 - ours.b @ ours.a) @ ours.a.T, np.zeros((DO, RANK)))
    left = np.linalg.norm(exact.product() - ours.product())
    assert left < np.linalg.norm(exact.product() - mean.product())
    # What is left is the part of the mean product outside A's row space, no more.
    outside = np.eye(DI) - np.linalg.pinv(mean.a) @ mean.a
    np.testing.assert_allclose(left, np.linalg.norm(exact.product() @ outside), rtol=1e-10)
    # A small penalty comes near.
    close(fair(mean, exact, 1e-9).b, ours.b, 1e-6)


def test_within_the_row_space_it_is_exact() -> None:
    down = np.random.default_rng(0).standard_normal((RANK, DI))
    rng, clients = np.random.default_rng(1), []
    for _ in range(3):
        # Each A_k = G_k A⁰ spans the rows of A⁰: the factor mean is wrong, its row space right.
        g = np.eye(RANK) + 0.4 * rng.standard_normal((RANK, RANK))
        clients.append(LoraFactors(g @ down, rng.standard_normal((DO, RANK)), 2.0))
    plain, whole = folded(clients)
    assert np.linalg.norm(plain.product() - whole.product()) > 0.1
    close(fair(plain, whole, 0.0).product(), whole.product())


def test_one_client_is_a_fixed_point_at_every_penalty() -> None:
    only = client(0)
    for lam in (0.0, 0.01, 10.0):
        close(fair(only, only, lam).b, only.b)


def test_a_down_factor_without_full_rank_takes_the_pseudo_inverse() -> None:
    mean, exact = cohort(0)
    a = np.vstack([mean.a[:2], mean.a[0] + mean.a[1]])
    flat = LoraFactors(a, mean.b, mean.scale)
    ours = fair(flat, exact, 0.0)
    error = exact.product() / 2.0 - flat.b @ flat.a
    close(ours.b, flat.b + error @ np.linalg.pinv(a))
    still = LoraFactors(np.zeros_like(a), mean.b, mean.scale)
    np.testing.assert_array_equal(fair(still, exact, 0.0).b, mean.b)


def test_the_exact_means_own_factors_and_scale_do_not_matter() -> None:
    mean, exact = cohort(0)
    u, s, vt = np.linalg.svd(exact.product(), full_matrices=False)
    other = LoraFactors(vt, u * s / 5.0, 5.0)
    close(fair(mean, other, 0.1).b, fair(mean, exact, 0.1).b)


def test_half_precision_is_solved_in_double() -> None:
    mean, exact = cohort(0)
    half = LoraFactors(mean.a.astype(np.float16), mean.b.astype(np.float16), 2.0)
    double = LoraFactors(half.a.astype(np.float64), half.b.astype(np.float64), 2.0)
    ours = fair(half, exact, 0.1)
    assert ours.a.dtype == ours.b.dtype == np.float64
    close(ours.b, fair(double, exact, 0.1).b)


@pytest.mark.parametrize("lam", [-1e-9, float("nan"), float("inf")])
def test_penalties_that_are_none_are_refused(lam: float) -> None:
    with pytest.raises(AggregationError, match="lambda"):
        fair(*cohort(0), lam)


def test_products_of_other_shape_or_without_values_are_refused() -> None:
    mean, exact = cohort(0)
    with pytest.raises(AggregationError, match="shape"):
        fair(mean, LoraFactors(exact.a[:, :1], exact.b, 1.0), 0.1)
    with pytest.raises(AggregationError, match=r"exact.lora_A: holds values"):
        fair(mean, LoraFactors(np.full_like(exact.a, np.nan), exact.b, 1.0), 0.1)
    with pytest.raises(AggregationError, match=r"mean.lora_B: .* missing"):
        fair(LoraFactors(mean.a, np.zeros((0, RANK)), 1.0), exact, 0.1)
