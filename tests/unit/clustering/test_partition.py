"""Cuts and silhouettes are scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, silhouette_score

from atlas_flwr.clustering.partition import cuts, distances, distinct, silhouette

RNG = np.random.default_rng(0)
POINTS = RNG.standard_normal((14, 6)) + 2 * RNG.standard_normal((3, 6))[RNG.integers(0, 3, 14)]


def test_distances_are_half_the_square_and_one_minus_the_cosine_of_unit_vectors():
    unit = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)
    d = distances(unit)
    np.testing.assert_allclose(d, 1 - unit @ unit.T, atol=1e-14)
    np.testing.assert_array_equal(d, d.T)
    assert not np.diagonal(d).any()


def test_average_linkage_is_scikit_learns_for_all_k():
    d = distances(POINTS)
    for k, ours in zip(
        range(2, 14), cuts(POINTS, d, range(2, 14), "agglomerative", 0), strict=True
    ):
        theirs = AgglomerativeClustering(k, metric="precomputed", linkage="average").fit_predict(d)
        assert adjusted_rand_score(theirs, ours) == 1


@pytest.mark.parametrize("method", ["agglomerative", "kmeans"])
def test_the_silhouette_is_scikit_learns_singletons_included(method):
    d = distances(POINTS)
    for labels in cuts(POINTS, d, range(2, 14), method, 3):
        theirs = silhouette_score(d, labels, metric="precomputed")
        assert silhouette(d, labels) == pytest.approx(theirs, abs=1e-12)


def test_equal_points_count_once():
    assert distinct(distances(np.repeat(POINTS[:4], 3, axis=0))) == 4
    assert distinct(distances(POINTS)) == 14
    assert distinct(np.zeros((3, 3))) == 1
    assert silhouette(np.zeros((4, 4)), np.array([0, 0, 1, 1])) == 0
