"""Written back, the product is the best of its rank and no direction is dead."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.aggregation.products import Svd, svd
from atlas_flwr.aggregation.write_back import balanced, unbalanced
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors

D_OUT, D_IN = 9, 12
MODES = pytest.mark.parametrize("write", [balanced, unbalanced])
FRESH = np.random.default_rng(7).uniform(-0.3, 0.3, (8, D_IN)).astype(np.float32)


def svd_of(rank: int, seed: int = 0) -> Svd:
    rng = np.random.default_rng(seed)
    return svd(
        LoraFactors(rng.standard_normal((rank, D_IN)), rng.standard_normal((D_OUT, rank)), 2)
    )


def cut(full: Svd, rank: int) -> np.ndarray:
    return (full.u[:, :rank] * full.s[:rank]) @ full.vt[:rank]


@MODES
@pytest.mark.parametrize("true_rank", [1, 3, 8])
@pytest.mark.parametrize("rank", [1, 3, 5, 8])
@pytest.mark.parametrize("scale", [0.25, 2.0])
def test_the_product_is_the_truncated_one_at_the_receivers_scale(write, true_rank, rank, scale):
    full = svd_of(true_rank)
    back = write(full, rank, scale, FRESH)
    assert (back.a.shape, back.b.shape, back.scale) == ((rank, D_IN), (D_OUT, rank), scale)
    assert (back.a.dtype, back.b.dtype) == (np.float64, np.float64)
    np.testing.assert_allclose(back.product(), cut(full, rank), rtol=1e-11, atol=1e-12)
    assert (np.linalg.norm(back.a, axis=1) > 1e-3).all()


def test_balanced_factors_share_sigma_and_unbalanced_ones_do_not():
    full = svd_of(3)
    even, odd = balanced(full, 3, 4.0, FRESH), unbalanced(full, 3, 4.0, FRESH)
    np.testing.assert_allclose(np.linalg.norm(even.a, axis=1) ** 2, full.s / 4, rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(even.b, axis=0) ** 2, full.s / 4, rtol=1e-12)
    np.testing.assert_array_equal(odd.a, full.vt)
    np.testing.assert_allclose(np.linalg.norm(odd.b, axis=0), full.s / 4, rtol=1e-12)


@MODES
def test_dead_directions_get_fresh_rows_orthogonal_to_the_kept_at_their_own_norm(write):
    back = write(svd_of(3), 8, 0.5, FRESH)
    np.testing.assert_array_equal(back.b[:, 3:], 0)
    np.testing.assert_allclose(back.a[3:] @ back.a[:3].T, 0, atol=1e-14)
    wanted = np.linalg.norm(FRESH[3:].astype(np.float64), axis=1)
    np.testing.assert_allclose(np.linalg.norm(back.a[3:], axis=1), wanted, rtol=1e-12)


@MODES
def test_numerically_zero_values_are_dead_and_small_ones_are_not(write):
    full = svd_of(3)
    dead = Svd(full.u, full.s[0] * np.array([1, 1e-10, 1e-16]), full.vt)
    back = write(dead, 3, 1.0, FRESH)
    assert back.b[:, 1].any()
    np.testing.assert_array_equal(back.b[:, 2], 0)
    assert np.linalg.norm(back.a[2]) == pytest.approx(np.linalg.norm(FRESH[2]), rel=1e-6)


@MODES
def test_a_zero_product_returns_the_nested_initial_rows_bit_for_bit(write):
    zero = svd(LoraFactors(FRESH[:4], np.zeros((D_OUT, 4)), 2.0))
    for rank in (1, 4, 8):  # 8 is beyond the k = 4 triples there are
        back = write(zero, rank, 2.0, FRESH)
        assert back.a.astype(np.float32).tobytes() == FRESH[:rank].tobytes()
        assert not back.b.any()


@MODES
def test_fresh_rows_that_the_kept_ones_span_stay_as_they_are(write):
    full = svd_of(2)
    fresh = np.vstack([FRESH[:2], full.vt.sum(axis=0), FRESH[3]])
    back = write(full, 4, 1.0, fresh)
    np.testing.assert_array_equal(back.a[2], fresh[2])
    np.testing.assert_allclose(back.a[:2] @ back.a[3], 0, atol=1e-14)
    np.testing.assert_allclose(back.product(), cut(full, 2), rtol=1e-11, atol=1e-12)


@MODES
def test_the_refill_revives_both_gradients(write):
    """∂L/∂B = s G Aᵀ does not vanish in a refilled direction; with a zero row of A it would."""
    back = write(svd_of(2), 5, 1.0, FRESH)
    gradient = np.random.default_rng(1).standard_normal((D_OUT, D_IN))
    assert (np.linalg.norm(gradient @ back.a.T, axis=0) > 1e-3).all()


@MODES
@pytest.mark.parametrize(
    ("rank", "scale", "fresh", "says"),
    [
        (0, 1.0, FRESH, "rank"),
        (2, 0.0, FRESH, "scale"),
        (2, -1.0, FRESH, "scale"),
        (2, np.nan, FRESH, "scale"),
        (9, 1.0, FRESH, "fresh"),
        (2, 1.0, FRESH[:, :1], "fresh"),
        (5, 1.0, np.zeros((5, D_IN)), "not zero"),
        (5, 1.0, np.full((5, D_IN), np.nan), "finite"),
    ],
)
def test_a_receiver_that_makes_no_sense_is_refused(write, rank, scale, fresh, says):
    with pytest.raises(AggregationError, match=says):
        write(svd_of(3), rank, scale, fresh)
