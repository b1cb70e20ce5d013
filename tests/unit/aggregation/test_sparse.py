"""Sparse updates keep what is largest, and say what they lost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation.sparse import keep_largest, lost
from atlas_flwr.errors import AggregationError


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "z": rng.standard_normal((3, 5)).astype(np.float32),
        "a": 10 * rng.standard_normal((4, 2)),
        "e": np.zeros((0, 3), np.float32),
        "s": rng.standard_normal(()).reshape(()),
    }


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 1.0))
def test_keeps_the_largest_of_all_tensors_together(seed: int, density: float) -> None:
    dense = tensors(seed)
    sparse = keep_largest(dense, density)
    assert list(sparse) == list(dense)
    whole = np.concatenate([np.abs(t).ravel() for t in dense.values()])
    kept = np.concatenate([np.abs(t).ravel() for t in sparse.values()])
    count = math.ceil(density * whole.size)
    np.testing.assert_array_equal(np.sort(kept)[-count:], np.sort(whole)[-count:])
    assert np.count_nonzero(kept) == count
    for name, tensor in sparse.items():
        assert tensor.dtype == dense[name].dtype
        assert tensor.shape == dense[name].shape
        np.testing.assert_array_equal(tensor[tensor != 0], dense[name][tensor != 0])


def test_density_one_changes_nothing_and_keeping_twice_nothing_more() -> None:
    dense = tensors()
    for name, tensor in keep_largest(dense, 1.0).items():
        np.testing.assert_array_equal(tensor, dense[name])
    once = keep_largest(dense, 0.3)
    for name, tensor in keep_largest(once, 0.3).items():
        np.testing.assert_array_equal(tensor, once[name])


def test_ties_go_to_the_first_position_whatever_the_order_of_names() -> None:
    one = {"b": np.array([1.0, -1.0]), "a": np.array([1.0, 2.0, -1.0])}
    other = dict(reversed(one.items()))
    for given_ in (one, other):
        sparse = keep_largest(given_, 0.6)
        np.testing.assert_array_equal(sparse["a"], [1, 2, -1])
        np.testing.assert_array_equal(sparse["b"], [0, 0])
    np.testing.assert_array_equal(keep_largest(one, 0.4)["a"], [1, 2, 0])


@pytest.mark.parametrize(("density", "count"), [(0.07, 7), (0.1, 10), (0.29, 29), (0.001, 1)])
def test_the_count_is_not_raised_by_binary_fractions(density: float, count: int) -> None:
    dense = {"x": np.arange(1.0, 101.0)}
    assert np.count_nonzero(keep_largest(dense, density)["x"]) == count


def test_zeros_and_nothing_are_fine() -> None:
    assert keep_largest({}, 0.5) == {}
    np.testing.assert_array_equal(keep_largest({"x": np.zeros(4)}, 0.5)["x"], np.zeros(4))


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, float("nan")])
def test_densities_that_are_none_are_refused(density: float) -> None:
    with pytest.raises(AggregationError, match="density"):
        keep_largest(tensors(), density)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(AggregationError, match=r"x: .* not finite"):
        keep_largest({"x": np.array([1.0, value])}, 0.5)


def test_what_is_lost_is_the_relative_norm() -> None:
    dense = {"x": np.array([3.0, 0.0]), "y": np.array([[4.0]], np.float16)}
    sparse = {"x": np.array([0.0, 0.0]), "y": np.array([[4.0]])}
    assert lost(dense, sparse) == pytest.approx(3 / 5, rel=1e-15)
    assert lost(dense, dense) == 0.0
    assert lost({"x": np.zeros(2)}, {"x": np.zeros(2)}) is None
    assert lost({}, {}) is None


def test_more_density_never_loses_more() -> None:
    dense = tensors()
    losses = [lost(dense, keep_largest(dense, d)) for d in (0.05, 0.2, 0.5, 0.8, 1.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0.0


def test_sides_that_differ_are_refused() -> None:
    with pytest.raises(AggregationError, match="y: not on both"):
        lost({"x": np.ones(2)}, {"x": np.ones(2), "y": np.ones(2)})
    with pytest.raises(AggregationError, match="x: shape"):
        lost({"x": np.ones(2)}, {"x": np.ones((2, 1))})
