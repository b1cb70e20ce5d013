"""Planted clusters are found, none are invented, and label spaces stay apart."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from atlas_flwr.clustering.cluster import cluster, nearest, place
from atlas_flwr.clustering.null import cosine
from atlas_flwr.errors import AggregationError

D = 200


def planted(groups: list[int], seed: int, signal: float = 1.0, skew: float = 0.0):
    """Fingerprints with a common part, a group's part, one nuisance direction and noise.

    ``signal`` is the ratio of a group's variance to the noise's; returns whole fingerprints, their
    two halves, and the groups.
    """
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(groups)), groups)
    common = 3 * rng.standard_normal(D)
    own = np.sqrt(signal) * rng.standard_normal((len(groups), D))[labels]
    nuisance = skew * rng.standard_normal((len(labels), 1)) * rng.standard_normal(D)
    whole = common + own * (len(groups) > 1) + nuisance + rng.standard_normal((len(labels), D))
    spread = rng.standard_normal(whole.shape)
    return whole, (whole + spread, whole - spread), labels


PLANTED = {
    "4 tasks of 3": [3, 3, 3, 3],
    "3 of 4": [4, 4, 4],
    "2 of 3": [3, 3],
    "2 of 2": [2, 2],
    "48 clients": [12, 12, 12, 12],
    "unequal, with a client alone": [6, 4, 3, 1],
}


@pytest.mark.parametrize("groups", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("with_halves", [False, True])
def test_planted_clusters_are_found_without_being_told_how_many(groups, with_halves):
    for seed in range(3):
        whole, halves, labels = planted(groups, seed, 4.0)
        found = cluster(whole, seed=seed, halves=halves if with_halves else None)
        assert adjusted_rand_score(labels, found.labels) == 1
        assert normalized_mutual_info_score(labels, found.labels) == pytest.approx(1)
        (choice,) = found.choices
        assert found.k == choice.k == len(groups) == max(choice.scores, key=choice.scores.get)
        assert choice.scores[choice.k] > choice.threshold
        assert choice.p_value <= 0.02
        assert f"{found.k} clusters" in found.why


def test_k_means_finds_them_too():
    for groups in ([3, 3, 3, 3], [4, 4]):
        whole, halves, labels = planted(groups, 1, 4.0)
        found = cluster(whole, "kmeans", halves=halves, most=5, draws=49)
        assert adjusted_rand_score(labels, found.labels) == 1


@pytest.mark.parametrize("n", [4, 12, 48])
@pytest.mark.parametrize("with_halves", [False, True])
def test_noise_is_one_cluster(n, with_halves):
    ones = 0
    for seed in range(40 if n < 48 else 10):
        whole, halves, _ = planted([n], seed)
        found = cluster(whole, seed=seed, halves=halves if with_halves else None, draws=99)
        ones += found.k == 1
    assert ones >= 0.95 * (seed + 1)


def test_noise_of_few_dimensions_is_one_cluster():
    ones = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        flat = 5 * np.eye(3)[0] + 0.3 * rng.standard_normal((12, 3))
        ones += cluster(flat, seed=seed, draws=99).k == 1
    assert ones >= 38


def test_clients_that_differ_by_degrees_are_one_cluster():
    """Skew along one direction: beyond the noise, with a high silhouette, and yet no clusters."""
    ones = 0
    for seed in range(40):
        whole, halves, _ = planted([8], seed, skew=1.0)
        found = cluster(whole, seed=seed, halves=halves)
        assert found.choices[0].reliability > 0.1
        assert max(found.choices[0].scores.values()) > 0.4
        ones += found.k == 1
    assert ones >= 38


def test_clusters_under_skew_are_found():
    scores = [
        adjusted_rand_score(labels, cluster(whole, seed=seed, halves=halves).labels)
        for seed in range(10)
        for whole, halves, labels in [planted([3, 3, 3, 3], seed, 4.0, skew=0.5)]
    ]
    assert np.mean(scores) > 0.95


def test_silhouettes_of_noise_do_not_count_but_are_recorded():
    whole, _, _ = planted([12], 0)
    (choice,) = cluster(whole).choices
    assert set(choice.scores) == set(range(2, 12))
    assert max(choice.scores.values()) <= choice.threshold
    assert choice.p_value > 0.02
    assert choice.why.startswith("One cluster: the best silhouette")
    assert cluster(whole, level=None).k > 1  # untested, the best silhouette is taken


def test_halves_alone_can_say_that_clients_are_alike():
    whole, halves, _ = planted([12], 0)
    (choice,) = cluster(whole, halves=halves).choices
    assert choice.reliability < 0.1
    assert choice.why.startswith("Clients differ no more than halves of one client do")


def test_similarities_serve_as_well_as_vectors():
    whole, halves, _ = planted([3, 3, 3, 3], 2, 0.6)
    vectors = cluster(whole, halves=halves)
    assert cluster(cosine(whole), halves=cosine(np.vstack(halves))) == vectors


def test_different_label_spaces_are_never_joined():
    whole, halves, _ = planted([12], 0)
    spaces = ["two", "three"] * 6
    found = cluster(whole, spaces=spaces, halves=halves)
    assert found.labels == (0, 1) * 6
    assert [choice.space for choice in found.choices] == ["two", "three"]
    assert found.choices[0].members == (0, 2, 4, 6, 8, 10)
    assert "Of clients with three labels, " in found.why
    same = cluster(np.ones((4, 3)), spaces=[2, 3, 2, 4])  # alike to the bit
    assert same.labels == (0, 1, 0, 2)


def test_each_label_space_is_clustered_as_if_it_were_alone():
    whole, halves, labels = planted([3, 3, 3, 3], 5, 4.0)
    order = np.random.default_rng(0).permutation(12)
    spaces = [("a", "b")[label // 2] for label in labels[order]]
    found = cluster(whole[order], spaces=spaces, halves=(halves[0][order], halves[1][order]))
    assert adjusted_rand_score(labels[order], found.labels) == 1
    assert list(dict.fromkeys(found.labels)) == [0, 1, 2, 3]
    for choice in found.choices:
        assert choice.k == 2
        assert {spaces[member] for member in choice.members} == {choice.space}


@pytest.mark.parametrize("method", ["agglomerative", "kmeans"])
def test_renumbering_the_clients_renumbers_the_clusters(method):
    for seed, signal in ((0, 0.6), (1, 4.0), (2, 0.0)):
        whole, halves, _ = planted([3, 3, 3, 3], seed, signal)
        order = np.random.default_rng(seed).permutation(12)
        more = {"most": 5, "draws": 49} if method == "kmeans" else {}
        one = cluster(whole, method, halves=halves, **more)
        other = cluster(whole[order], method, halves=(halves[0][order], halves[1][order]), **more)
        assert adjusted_rand_score(np.array(one.labels)[order], other.labels) == 1
        if method == "agglomerative" and one.choices[0].threshold is not None:
            assert other.choices[0].threshold == pytest.approx(one.choices[0].threshold, abs=1e-6)


def test_scaling_and_rotating_fingerprints_changes_nothing():
    whole, _, _ = planted([3, 3, 3], 3, 1.0)
    turn, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((D, D)))
    lengths = np.random.default_rng(1).uniform(0.1, 10, (9, 1))
    assert cluster(lengths * whole @ turn).labels == cluster(whole).labels


@pytest.mark.parametrize("method", ["agglomerative", "kmeans"])
def test_the_same_seed_gives_the_same_to_the_bit(method):
    whole, halves, _ = planted([3, 3, 3], 1, 0.3)
    more = {"most": 4, "draws": 49}
    one, two = (cluster(whole, method, seed=7, halves=halves, **more) for _ in range(2))
    assert one == two
    assert cluster(whole, seed=8).choices[0].threshold != cluster(whole).choices[0].threshold


@pytest.mark.parametrize("method", ["agglomerative", "kmeans"])
def test_k_can_be_given(method):
    whole, _, labels = planted([3, 3, 3, 3], 0, 4.0)
    found = cluster(whole, method, 4)
    assert adjusted_rand_score(labels, found.labels) == 1
    assert found.choices[0].threshold is None
    assert found.why == "4 clusters were asked for."
    assert cluster(whole, method, 1).labels == (0,) * 12
    assert cluster(whole, method, 12).labels == tuple(range(12))
    assert cluster(whole, method, 2, spaces=[0] * 6 + [1] * 6).k == 4


def test_few_clients_are_one_cluster():
    assert cluster(np.eye(2)).labels == (0, 0)
    assert cluster(np.ones((1, 4))).labels == (0,)
    assert cluster(np.ones((5, 4))).why == "All fingerprints are alike: one cluster."


def test_copies_of_a_few_fingerprints_are_their_clusters():
    for method in ("agglomerative", "kmeans"):
        copies = np.repeat(np.random.default_rng(0).standard_normal((3, 9)), 4, axis=0)
        assert cluster(copies, method, draws=49).labels == (0,) * 4 + (1,) * 4 + (2,) * 4


def test_late_comers_join_the_nearest_cluster_of_their_label_space():
    whole, _, labels = planted([3, 3, 3, 3], 4, 4.0)
    found = cluster(np.delete(whole, [2, 7], axis=0)).labels
    rest = np.delete(whole, [2, 7], axis=0)
    assert place(whole[2], rest, found) == found[0]
    assert place(whole[7], rest, found) == found[5]
    spaces = [int(label) for label in np.delete(labels, [2, 7])]
    assert place(whole[2], rest, found, space=3, spaces=spaces) == found[-1]
    assert place(whole[2], rest, found, space=9, spaces=spaces) == max(found) + 1
    assert nearest(np.array([0.9, 0.0, 0.5]), [0, 0, 1]) == 1  # the mean, not one member


BAD = {
    "not one vector": lambda: cluster(np.ones(3)),
    "fingerprint 1 is zero": lambda: cluster(np.array([[1.0, 0], [0, 0], [1, 1]])),
    "finite": lambda: cluster(np.full((3, 2), np.nan)),
    "2 label spaces for 3": lambda: cluster(np.ones((3, 2)), spaces=[0, 1]),
    "no clustering is named 'dbscan'": lambda: cluster(np.ones((3, 2)), "dbscan"),
    "most must be": lambda: cluster(np.ones((3, 2)), most=1),
    "9 null draws": lambda: cluster(np.ones((3, 2)), draws=9),
    "4 half fingerprints for 3": lambda: cluster(
        np.ones((3, 2)), halves=(np.ones((2, 2)), np.ones((2, 2)))
    ),
    "can't form 4": lambda: cluster(np.eye(3, 5), k=4),
    "1 different": lambda: cluster(np.ones((3, 2)), k=2),
    "can't be placed": lambda: place(np.ones(3), np.ones((2, 4)), [0, 0]),
    "2 similarities for 3": lambda: nearest(np.ones(2), [0, 0, 0]),
}


@pytest.mark.parametrize("text", BAD)
def test_what_can_not_be_clustered_is_refused(text):
    with pytest.raises(AggregationError, match=text):
        BAD[text]()
