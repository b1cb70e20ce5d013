"""The null keeps what it should, and its tests reject as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import helmert
from sklearn.metrics.pairwise import cosine_similarity

from atlas_flwr.clustering import null
from atlas_flwr.errors import AggregationError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((7, 30)) + 1


def centred(x: np.ndarray) -> np.ndarray:
    return x - x.mean(axis=0)


def test_cosines_are_scikit_learns():
    np.testing.assert_allclose(null.cosine(X), cosine_similarity(X), atol=1e-14)
    np.testing.assert_array_equal(np.diagonal(null.cosine(X)), 1)
    for bad in (np.zeros((2, 3)), np.full((2, 3), np.nan), np.ones(3)):
        with pytest.raises(AggregationError):
            null.cosine(bad)


def test_contrasts_are_scipys_helmert():
    np.testing.assert_allclose(np.abs(null._contrasts(6)), np.abs(helmert(6).T), atol=1e-15)
    np.testing.assert_allclose(null._contrasts(6).sum(axis=0), 0, atol=1e-15)


def test_axes_and_spectrum_are_the_coordinates_of_the_points():
    values, axes = null.centred_axes(X @ X.T)
    points = axes * np.sqrt(values)
    np.testing.assert_allclose(points @ points.T, centred(X) @ centred(X).T, atol=1e-10)
    np.testing.assert_allclose(axes.T @ axes, np.eye(6), atol=1e-12)


def test_rotated_copies_keep_mean_and_spectrum_and_nothing_else():
    values, _ = null.centred_axes(X @ X.T)
    first, second = null.rotations(values, 2, np.random.default_rng(0))
    for copy in (first, second):
        assert copy.shape == (7, 6)
        np.testing.assert_allclose(copy.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(copy.T @ copy, np.diag(values), atol=1e-10)
    assert np.abs(first - second).max() > 0.1


def test_renumbering_changes_no_draw():
    order = np.random.default_rng(1).permutation(7)
    values, _ = null.centred_axes(X @ X.T)
    other, _ = null.centred_axes(X[order] @ X[order].T)
    for one, two in zip(
        null.rotations(values, 3, np.random.default_rng(2)),
        null.rotations(other, 3, np.random.default_rng(2)),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_noise_is_measured_from_halves_and_guessed_from_the_spectrum():
    rng = np.random.default_rng(3)
    signal = np.repeat(rng.standard_normal((3, 4000)), 4, axis=0)
    first, second = (signal + rng.standard_normal(signal.shape) for _ in range(2))
    whole = null.cosine(first + second)
    share = 0.5 / 1.5  # the mean of two halves has half their noise
    assert null.half_noise(null.cosine(np.vstack([first, second]))) == pytest.approx(
        share, abs=0.02
    )
    values, _ = null.centred_axes(whole)
    assert np.median(values) == pytest.approx(share, abs=0.05)
    for floor in (None, share):
        assert np.count_nonzero(null.denoised(values, floor) > 0.2) == 2  # three means: a plane
    assert null.half_noise(null.cosine(rng.standard_normal((8, 9000)))) == pytest.approx(1, abs=0.1)


def test_equal_eigenvalues_leave_nothing():
    assert not null.denoised(np.full(5, 0.3) + 1e-14 * np.arange(5), None).any()
    assert not null.denoised(np.zeros(3), None).any()


@pytest.mark.parametrize("n", [4, 12])
@pytest.mark.parametrize("dimensions", [3, 300])
def test_halves_of_equal_clients_are_told_apart_as_often_as_the_level_says(n, dimensions):
    ps = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        halves = 2 + rng.standard_normal((2 * n, dimensions)) * np.linspace(0.2, 1, dimensions)
        ps.append(null.excess(halves @ halves.T, 99, rng)[1])
    assert np.mean(np.array(ps) <= 0.1) <= 0.2
    assert 0.35 < np.mean(ps) < 0.65


def test_clients_that_differ_are_found_and_by_how_much():
    rng = np.random.default_rng(0)
    for n in (2, 4, 12):
        own = rng.standard_normal((n, 2000))
        first, second = (own + rng.standard_normal(own.shape) for _ in range(2))
        halves = np.vstack([first, second])
        share, p = null.excess(halves @ halves.T, 199, rng)
        # Of the variance of a mean of two halves, 1 is the client's and ½ is noise.
        assert share == pytest.approx(2 / 3, abs=0.06)
        assert p <= 0.02 or n == 2


def test_halves_that_are_all_alike_show_nothing():
    assert null.excess(np.ones((6, 6)), 9, np.random.default_rng(0)) == (0.0, 1.0)
