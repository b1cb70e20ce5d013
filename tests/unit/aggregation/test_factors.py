"""Truncation, padding and scales keep the products they must; means by rows against NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.aggregation.factors import (
    RowMean,
    at_scale,
    check_factors,
    pad,
    truncate,
    up_at_scale,
)
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors

DO, DI = 7, 5


def factors(rank: int, scale: float = 1.0, seed: int = 0) -> LoraFactors:
    rng = np.random.default_rng([seed, rank])
    return LoraFactors(rng.standard_normal((rank, DI)), rng.standard_normal((DO, rank)), scale)


def test_padding_keeps_the_product_and_truncating_undoes_it() -> None:
    small = factors(2, 0.5)
    padded = pad(small, 4)
    assert padded.rank == 4
    np.testing.assert_array_equal(padded.product(), small.product())
    back = truncate(padded, 2)
    np.testing.assert_array_equal(back.a, small.a)
    np.testing.assert_array_equal(back.b, small.b)


def test_truncating_keeps_the_first_rows_and_columns_contiguous() -> None:
    cut = truncate(factors(4, 2.0), 3)
    np.testing.assert_allclose(
        cut.product(), 2.0 * factors(4).b[:, :3] @ factors(4).a[:3], rtol=1e-12
    )
    assert cut.a.flags.c_contiguous
    assert cut.b.flags.c_contiguous


@pytest.mark.parametrize("absent", ["a", "b"])
def test_an_absent_factor_stays_absent_when_cut(absent: str) -> None:
    whole = factors(4)
    a, b = (np.zeros((4, 0)), whole.b) if absent == "a" else (whole.a, np.zeros((0, 4)))
    cut = truncate(LoraFactors(a, b, 1.0), 2)
    assert (cut.a if absent == "a" else cut.b).size == 0
    assert cut.rank == 2


@pytest.mark.parametrize("rank", [0, 5])
def test_truncating_beyond_the_rank_is_refused(rank: int) -> None:
    with pytest.raises(AggregationError, match="rank 4"):
        truncate(factors(4), rank)


def test_padding_to_less_is_refused() -> None:
    with pytest.raises(AggregationError, match="rank 4"):
        pad(factors(4), 3)


@pytest.mark.parametrize("scale", [0.25, 1.0, 16.0])
def test_scales_change_factors_and_not_products(scale: float) -> None:
    given = factors(3, 2.0)
    for move in (at_scale, up_at_scale):
        moved = move(given, scale)
        assert moved.scale == scale
        assert moved.b.dtype == np.float64
        np.testing.assert_allclose(moved.product(), given.product(), rtol=1e-12)
    # The change is even on both sides, or on B alone.
    np.testing.assert_allclose(at_scale(given, scale).a, np.sqrt(2.0 / scale) * given.a, rtol=1e-12)
    assert up_at_scale(given, scale).a is given.a


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_no_scales_are_refused(scale: float) -> None:
    for move in (at_scale, up_at_scale):
        with pytest.raises(AggregationError, match="scale"):
            move(factors(2), scale)
        with pytest.raises(AggregationError, match="scale"):
            move(factors(2, scale), 1.0)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (LoraFactors(np.ones((2, DI)), np.ones((DO, 3)), 1.0), "m: .* disagree on the rank"),
        (LoraFactors(np.ones((2, DI)), np.zeros((0, 2)), 1.0), "m.lora_B: .* missing"),
        (LoraFactors(np.zeros((2, 0)), np.ones((DO, 2)), 1.0), "m.lora_A: .* missing"),
        (LoraFactors(np.full((2, DI), np.nan), np.ones((DO, 2)), 1.0), "m.lora_A: .* not finite"),
        (LoraFactors(np.ones((2, DI)), np.full((DO, 2), np.inf), 1.0), "m.lora_B: .* not finite"),
        (LoraFactors(np.ones((2, DI), np.int64), np.ones((DO, 2)), 1.0), "m.lora_A: dtype"),
        (LoraFactors(np.ones(DI), np.ones((DO, 1)), 1.0), "m.lora_A: .* not a matrix"),
        (LoraFactors(np.ones((2, DI)), np.ones((DO, 2)), 0.0), "m: scale"),
        (LoraFactors(np.ones((2, DI)), np.ones((DO, 2)), float("nan")), "m: scale"),
    ],
)
def test_bad_factors_are_refused_by_name(bad: LoraFactors, message: str) -> None:
    with pytest.raises(AggregationError, match=message):
        check_factors("m", bad)


def test_rows_a_shorter_matrix_lacks_are_zero_or_nobodys() -> None:
    rng = np.random.default_rng(0)
    short, tall = rng.standard_normal((2, 3)), rng.standard_normal((4, 3))
    mean = RowMean(3)
    mean.add(short, 1.0)
    mean.add(tall, 3.0)
    padded = np.vstack([short, np.zeros((2, 3))])
    np.testing.assert_allclose(mean.mean(), np.average([padded, tall], axis=0, weights=[1, 3]))
    np.testing.assert_allclose(mean.owner_mean()[2:], tall[2:])
    np.testing.assert_allclose(mean.owner_mean()[:2], mean.mean()[:2])


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_weight_zero_sets_the_height_and_nothing_else(order: tuple[int, ...]) -> None:
    rows = [np.full((4, 2), 9.0), np.full((2, 2), 1.0), np.full((2, 2), 3.0)]
    mean = RowMean(2)
    for index in order:
        mean.add(rows[index], [0.0, 1.0, 1.0][index])
    np.testing.assert_array_equal(mean.mean(), [[2, 2], [2, 2], [0, 0], [0, 0]])
