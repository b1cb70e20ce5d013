"""Graphs are symmetric, hollow and non-negative, and bound the step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import kneighbors_graph

from atlas_flwr.aggregation import graph
from atlas_flwr.errors import AggregationError

RNG = np.random.default_rng(0)
POINTS = RNG.standard_normal((9, 4))
DISTANCES = cdist(POINTS, POINTS)
SIZES = [30, 300, 100, 20, 500, 60, 70, 80, 90]
CLUSTERS = list("aabbbcabc")
SAME = np.array([[k == o for o in CLUSTERS] for k in CLUSTERS])

GRAPHS = {
    "rbf": graph.rbf(DISTANCES),
    "knn": graph.knn(DISTANCES, 2),
    "knn of rbf": graph.knn(DISTANCES, 3, graph.rbf(DISTANCES)),
    "complete": graph.complete(9),
    "ones": graph.ones(9),
    "random": graph.random(9, np.random.default_rng(1), 0.5),
    "size weighted": graph.size_weighted(SIZES),
    "size weighted in clusters": graph.size_weighted(SIZES, CLUSTERS),
    "self-weighted": graph.self_weighted(graph.rbf(DISTANCES), SIZES),
    "within": graph.within(graph.rbf(DISTANCES), CLUSTERS, 0.1),
}


@pytest.mark.parametrize("a", GRAPHS.values(), ids=GRAPHS)
def test_an_adjacency_is_one(a):
    assert a.shape == (9, 9)
    assert graph.check(a) is a
    np.testing.assert_allclose(graph.degrees(a), a.sum(axis=0), rtol=1e-14)


@pytest.mark.parametrize("a", GRAPHS.values(), ids=GRAPHS)
def test_the_largest_step_makes_the_hardest_pull_one(a):
    eta = graph.largest_step(a, SIZES)
    shares = graph.pulls(a, SIZES, eta).sum(axis=1)
    assert shares.max() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(
        shares, eta * a.sum(axis=1) / (np.array(SIZES) / np.mean(SIZES)), rtol=1e-12
    )
    with pytest.raises(AggregationError, match=f"{eta:.6g}"):
        graph.pulls(a, SIZES, 1.01 * eta)


def test_rbf_is_its_formula_with_the_median_bandwidth():
    median = np.median(DISTANCES[np.triu_indices(9, 1)])
    oracle = np.exp(-(DISTANCES**2) / median**2) - np.eye(9)
    np.testing.assert_allclose(graph.rbf(DISTANCES), oracle, rtol=1e-12)
    np.testing.assert_allclose(graph.rbf(1000 * DISTANCES), oracle, rtol=1e-12)  # no unit
    np.testing.assert_allclose(graph.rbf(DISTANCES, 2.0)[0, 1], np.exp(-(DISTANCES[0, 1] ** 2) / 4))


def test_rbf_of_clients_that_are_all_alike_pulls_alike():
    np.testing.assert_array_equal(graph.rbf(np.zeros((3, 3))), 1 - np.eye(3))


def test_knn_is_scikit_learns_made_symmetric():
    chosen = kneighbors_graph(POINTS, 3).toarray()
    np.testing.assert_array_equal(graph.knn(DISTANCES, 3), np.maximum(chosen, chosen.T))
    rbf = graph.rbf(DISTANCES)
    kept = graph.knn(DISTANCES, 3, rbf)
    np.testing.assert_array_equal(kept, np.where(np.maximum(chosen, chosen.T) > 0, rbf, 0))


def test_knn_keeps_ties_and_never_crosses_an_infinite_distance():
    corners = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
    np.testing.assert_array_equal(graph.knn(cdist(corners, corners), 1).sum(axis=1), [2, 2, 2, 2])
    apart = np.where(SAME, DISTANCES, np.inf)
    assert not graph.knn(apart, 9)[~SAME].any()


def test_the_size_weighted_step_is_the_weighted_mean_in_each_cluster():
    a = graph.size_weighted(SIZES, CLUSTERS)
    shares = graph.pulls(a, SIZES, 1.0)
    step = shares + np.diag(1 - shares.sum(axis=1))
    sizes = np.array(SIZES, float)
    oracle = np.where(SAME, sizes, 0) / np.where(SAME, sizes, 0).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(step, oracle, rtol=1e-12, atol=1e-15)


def test_with_weights_of_one_self_weighted_is_the_weighted_mean():
    ones = (graph.complete(9) * 8).round()
    np.testing.assert_allclose(
        graph.self_weighted(ones, SIZES), graph.size_weighted(SIZES), rtol=1e-12
    )
    inside = graph.self_weighted(graph.within(ones, CLUSTERS), SIZES)
    np.testing.assert_allclose(inside, graph.size_weighted(SIZES, CLUSTERS), rtol=1e-12)


def test_the_middle_of_a_star_steps_to_the_others_weighted_mean():
    rows = np.array(SIZES[1:], float)
    c = graph.pulls(graph.star(rows / rows.sum()), [1.0] * 9, 1.0)
    moved = POINTS + c @ POINTS - c.sum(axis=1, keepdims=True) * POINTS
    np.testing.assert_allclose(moved[0], np.average(POINTS[1:], 0, rows), rtol=1e-12)
    assert not graph.star(np.ones(3))[1:, 1:].any()


def test_parts_of_a_graph_don_t_know_of_each_other():
    whole = graph.self_weighted(graph.within(graph.rbf(DISTANCES), CLUSTERS), SIZES)
    for label in dict.fromkeys(CLUSTERS):
        at = [k for k, own in enumerate(CLUSTERS) if own == label]
        own = graph.self_weighted(graph.rbf(DISTANCES)[np.ix_(at, at)], [SIZES[k] for k in at])
        # Shares are of one's own size, so a mean size that differs drops out.
        shares = graph.pulls(whole, SIZES, 1.0)[np.ix_(at, at)]
        np.testing.assert_allclose(shares, graph.pulls(own, [SIZES[k] for k in at], 1.0))


def test_at_the_whole_step_every_client_keeps_at_least_its_own_share():
    a = graph.self_weighted(graph.rbf(DISTANCES), SIZES)
    kept = 1 - graph.pulls(a, SIZES, 1.0).sum(axis=1)
    assert (kept >= np.array(SIZES) / sum(SIZES) - 1e-12).all()
    pair = graph.pulls(graph.self_weighted(np.array([[0, 0.5], [0.5, 0]]), [1, 1]), [1, 1], 1.0)
    np.testing.assert_allclose(pair, [[0, 1 / 3], [1 / 3, 0]])  # w / (1 + w)


def test_infinite_distances_are_no_edges_and_no_bandwidth():
    far = DISTANCES.copy()
    far[0, 1:] = far[1:, 0] = np.inf
    a = graph.rbf(far)
    assert not a[0].any()
    np.testing.assert_array_equal(a[1:, 1:], graph.rbf(DISTANCES[1:, 1:]))


def test_a_random_graph_is_its_generators_and_has_its_density():
    a = graph.random(60, np.random.default_rng(5), 0.3)
    np.testing.assert_array_equal(a, graph.random(60, np.random.default_rng(5), 0.3))
    assert np.mean(a[np.triu_indices(60, 1)] > 0) == pytest.approx(0.3, abs=0.03)
    assert not graph.random(5, np.random.default_rng(5), 0.0).any()


def test_within_cuts_or_weakens_what_crosses():
    a = graph.rbf(DISTANCES)
    assert not graph.within(a, CLUSTERS)[~SAME].any()
    weak = graph.within(a, CLUSTERS, 0.25)
    np.testing.assert_array_equal(weak[SAME], a[SAME])
    np.testing.assert_array_equal(weak[~SAME], 0.25 * a[~SAME])
    np.testing.assert_array_equal(graph.within(a, CLUSTERS, 1.0), a)


def test_without_edges_any_step_is_allowed():
    assert graph.largest_step(np.zeros((2, 2)), [1, 2]) == math.inf
    assert not graph.complete(1).any()
    assert graph.knn(np.zeros((1, 1)), 3).shape == (1, 1)


BAD = {
    "not square": lambda: graph.check(np.ones((2, 3))),
    "symmetric": lambda: graph.check(np.array([[0, 1.0], [2, 0]])),
    "diagonal": lambda: graph.check(np.eye(2)),
    "not negative": lambda: graph.check(-graph.complete(3)),
    "finite": lambda: graph.check(np.full((2, 2), np.nan)),
    "bandwidth": lambda: graph.rbf(DISTANCES, 0.0),
    "distances must be": lambda: graph.rbf(np.arange(4.0).reshape(2, 2)),
    "distances of shape": lambda: graph.rbf(np.ones(3)),
    "k of at least 1": lambda: graph.knn(DISTANCES, 0),
    "adjacency .* distances": lambda: graph.knn(DISTANCES, 2, graph.complete(3)),
    "density": lambda: graph.random(3, np.random.default_rng(0), 1.5),
    "cross": lambda: graph.within(graph.complete(2), "aa", -1.0),
    "labels for": lambda: graph.within(graph.complete(2), "aaa"),
    "sizes must": lambda: graph.largest_step(graph.complete(2), [1, 0]),
    "3 sizes for": lambda: graph.largest_step(graph.complete(2), [1, 1, 1]),
    "1 sizes for": lambda: graph.self_weighted(graph.complete(2), [1]),
    "must not exceed 1": lambda: graph.self_weighted(2 * graph.complete(2), [1, 1]),
    "eta must lie": lambda: graph.pulls(graph.complete(2), [1, 1], -0.1),
    r"eta must .* nan": lambda: graph.pulls(graph.complete(2), [1, 1], math.nan),
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_graph_is_refused(text):
    with pytest.raises(AggregationError, match=text):
        BAD[text]()
