"""The weighted mean against NumPy's own, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_flwr.aggregation.mean import GroupedMean, RunningMean
from atlas_flwr.errors import AggregationError


def mean_of(clients: list[dict[str, np.ndarray]], weights: list[float]) -> dict[str, np.ndarray]:
    mean = RunningMean()
    for tensors, weight in zip(clients, weights, strict=True):
        mean.add(tensors, weight)
    return mean.result()


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[dict[str, np.ndarray]], list[int]]:
    size = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = draw(st.lists(st.integers(1, 1000), min_size=size, max_size=size))
    clients = [{"a": rng.standard_normal((3, 5)), "b": rng.standard_normal(7)} for _ in range(size)]
    return clients, weights


@settings(max_examples=50, deadline=None)
@given(cohorts())
def test_equals_numpy_average(cohort: tuple[list[dict[str, np.ndarray]], list[int]]) -> None:
    clients, weights = cohort
    ours = mean_of(clients, weights)
    for name in ours:
        oracle = np.average([client[name] for client in clients], axis=0, weights=weights)
        np.testing.assert_allclose(ours[name], oracle, rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(cohorts(), st.integers(2, 1000))
def test_scaling_all_weights_changes_nothing(
    cohort: tuple[list[dict[str, np.ndarray]], list[int]], factor: int
) -> None:
    clients, weights = cohort
    scaled = mean_of(clients, [factor * w for w in weights])
    for name, tensor in mean_of(clients, weights).items():
        np.testing.assert_allclose(scaled[name], tensor, rtol=1e-12, atol=1e-14)


def test_identical_clients_are_a_fixed_point() -> None:
    tensors = {"a": np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)}
    np.testing.assert_array_equal(mean_of([tensors] * 3, [1, 1, 1])["a"], tensors["a"])


def test_half_precision_is_summed_in_double() -> None:
    tensors = {"a": np.full(4, 0.1, np.float16)}
    result = mean_of([tensors] * 1000, [1] * 1000)["a"]
    assert result.dtype == np.float16
    np.testing.assert_array_equal(result, tensors["a"])


@pytest.mark.parametrize(
    ("second", "weight", "message"),
    [
        ({"a": np.ones((1, 3))}, 1, "shape"),
        ({"b": np.ones((4, 3))}, 1, "not every client"),
        ({"a": np.full((4, 3), np.nan)}, 1, "not finite"),
        ({"a": np.ones((4, 3), np.int64)}, 1, "no mean"),
        ({"a": np.ones((4, 3))}, 0, "positive"),
        ({"a": np.ones((4, 3))}, -2, "positive"),
        ({"a": np.ones((4, 3))}, float("nan"), "positive"),
        ({"a": np.ones((4, 3))}, float("inf"), "positive"),
    ],
)
def test_refuses_and_keeps_what_it_had(
    second: dict[str, np.ndarray], weight: float, message: str
) -> None:
    mean = RunningMean()
    mean.add({"a": np.full((4, 3), 2.0)}, 5)
    with pytest.raises(AggregationError, match=message):
        mean.add(second, weight)
    np.testing.assert_array_equal(mean.result()["a"], np.full((4, 3), 2.0))
    assert mean.weight == 5


def test_the_mean_of_nobody_is_refused() -> None:
    with pytest.raises(AggregationError, match="no client"):
        RunningMean().result()


def test_groups_are_apart() -> None:
    groups = GroupedMean()
    groups.add("x", {"a": np.ones(2)}, 1)
    groups.add("y", {"a": np.zeros(2)}, 3)
    groups.add("x", {"a": np.full(2, 3.0)}, 1)
    groups.add("z", {}, 1)
    results = groups.results()
    assert set(results) == {"x", "y"}
    np.testing.assert_array_equal(results["x"]["a"], [2.0, 2.0])
