"""Merging finds planted tasks under label skew, tells flipped labels apart and invents nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from atlas_flwr.clustering.merge import Merging, merge_test, place
from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.distance import distances
from atlas_flwr.fingerprint.summary import summarise
from planted import flipped, prints_of, skewed, world

EVEN = (40, 40)


def ari(clients, found) -> float:
    return adjusted_rand_score([task for task, _ in clients], found.labels)


def enough(clients):
    return [min(counts) >= 8 for _, counts in clients]


@pytest.mark.parametrize("alpha", [np.inf, 0.5])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_planted_tasks_are_found_without_being_told_how_many(classes, alpha):
    for seed in range(4):
        plain = world(seed, 4, classes)
        if alpha == np.inf:
            clients = [(task, (96 // classes,) * classes) for task in range(4) for _ in range(3)]
        else:
            clients = skewed(range(4), 3, 96, alpha, seed, classes)
        found = merge_test(prints_of(plain, clients, seed))
        assert ari(clients, found) == 1
        assert found.k == found.choices[0].k == 4


def test_at_strong_skew_clients_with_rows_of_each_class_are_right():
    whole = []
    for seed in range(10):
        clients = skewed(range(4), 3, 150, 0.1, seed)
        found = merge_test(prints_of(world(seed), clients, seed))
        known = np.flatnonzero(enough(clients))
        (choice,) = found.choices
        assert choice.marked == tuple(np.flatnonzero(~np.array(enough(clients))))
        tasks = [clients[k][0] for k in known]
        assert adjusted_rand_score(tasks, [found.labels[k] for k in known]) == 1
        whole.append(ari(clients, found))
    assert np.mean(whole) > 0.9


@pytest.mark.parametrize("alpha", [np.inf, 0.5])
def test_the_same_texts_with_flipped_labels_are_another_task(alpha):
    for seed in range(4):
        plain = flipped(world(seed, 2, between=0.3), 0)
        clients = [(task, EVEN) for task in range(3) for _ in range(4)]
        if alpha != np.inf:
            clients = skewed(range(3), 4, 150, alpha, seed)
        known = np.flatnonzero(enough(clients))
        found = merge_test(prints_of(plain, clients, seed))
        tasks = [clients[k][0] for k in known]
        assert adjusted_rand_score(tasks, [found.labels[k] for k in known]) == 1


@pytest.mark.parametrize("n", [2, 4, 12, 30])
@pytest.mark.parametrize("alpha", [np.inf, 0.5])
def test_one_task_is_one_cluster(n, alpha):
    """At the level the threshold states, 99 of 100: of these draws none or one may be split."""
    plain, seeds = world(0, 1), {2: 60, 4: 60, 12: 40, 30: 8}[n]
    ones = 0
    for seed in range(seeds):
        clients = [(0, (32, 32))] * n if alpha == np.inf else skewed([0], n, 64, alpha, seed)
        ones += merge_test(prints_of(plain, clients, seed)).k == 1
    assert ones >= seeds - 1


def test_labels_that_say_nothing_make_no_clusters():
    plain = world(1, 2, between=0.0)
    clients = skewed(range(2), 6, 100, 0.5, 0)
    found = merge_test(prints_of(plain, clients))
    assert ari(clients, found) == 1  # the texts' domains, and no more
    assert found.k == 2


def test_many_clients_of_few_rows():
    clients = [(task, (30, 30)) for task in range(4) for _ in range(12)]
    found = merge_test(prints_of(world(3), clients))
    assert ari(clients, found) == 1
    assert "4 clusters: the closest two differ by z" in found.why


def test_clusters_show_what_single_clients_cannot():
    """Differences below the noise of a pair are found, for noise shrinks as rows are pooled."""
    plain = world(4, 2, apart=0.32, between=0.0)
    clients = [(task, (10, 10)) for task in range(2) for _ in range(12)]
    own = prints_of(plain, clients)
    apart = distances(own).z[:12, 12:]
    assert np.mean(apart > 4.5) < 0.2
    assert ari(clients, merge_test(own)) >= 0.8


def test_a_client_alone_and_tasks_of_unequal_size():
    clients = [(0, EVEN)] * 6 + [(1, EVEN)] * 3 + [(2, EVEN)]
    found = merge_test(prints_of(world(5), clients))
    assert ari(clients, found) == 1
    assert found.labels[-1] == 2


def test_clients_that_lack_a_class_are_placed_by_the_others():
    plain = world(6, 2, 3, between=0.4)
    clients = [
        (t, c) for t in range(2) for c in ((60, 60, 0), (0, 60, 60), (60, 0, 60), (90, 9, 9))
    ]
    found = merge_test(prints_of(plain, clients))
    assert ari(clients, found) == 1
    assert found.choices[0].marked == (0, 1, 2, 4, 5, 6)
    bare = [(0, (80, 0)), (0, (60, 60)), (0, (0, 80)), (1, (0, 80)), (1, (50, 50))]
    assert ari(bare, merge_test(prints_of(world(7, 2), bare))) == 1


def test_different_label_spaces_are_never_joined():
    plain = world(8, 1)
    own = prints_of(plain, [(0, EVEN)] * 6)
    found = merge_test(own, ["a", "b"] * 3)
    assert found.labels == (0, 1) * 3
    assert [choice.members for choice in found.choices] == [(0, 2, 4), (1, 3, 5)]
    assert "Of clients with b labels, one cluster" in found.why
    three = prints_of(world(9, 1, 3), [(0, (30, 30, 30))] * 2)
    assert merge_test([*own[:2], *three], [2, 2, 3, 3]).labels == (0, 0, 1, 1)
    both = prints_of(world(10, 2), [(t, EVEN) for t in (0, 0, 1, 1)] * 2)
    split = merge_test(both, ["a"] * 4 + ["b"] * 4)
    assert split.labels == (0, 0, 1, 1, 2, 2, 3, 3)
    assert sorted(split.choices[1].steps) == [(4, 5), (6, 7)]


def test_renumbering_the_clients_renumbers_the_clusters():
    for seed in range(5):
        clients = skewed(range(3), 4, 60, 0.5, seed)
        own = prints_of(world(seed, 3), clients, seed)
        order = np.random.default_rng(seed).permutation(12)
        one, other = merge_test(own), merge_test([own[k] for k in order])
        assert adjusted_rand_score(np.array(one.labels)[order], other.labels) == 1
        want = sorted(one.choices[0].scores.items())
        np.testing.assert_allclose(want, sorted(other.choices[0].scores.items()), rtol=1e-6)


def test_the_record_explains_the_choice():
    clients = [(task, EVEN) for task in range(3) for _ in range(3)]
    own = prints_of(world(11, 3), clients)
    (choice,) = merge_test(own).choices
    assert isinstance(choice, Merging)
    assert set(choice.scores) == set(range(2, 10))
    assert max(choice.scores[k] for k in range(4, 10)) <= choice.threshold < choice.scores[3]
    assert choice.p_value < 1e-5
    assert len(choice.steps) == 6
    assert all(clients[one][0] == clients[other][0] for one, other in choice.steps)
    np.testing.assert_array_equal(choice.z, distances(own).z)
    assert choice.reliability == pytest.approx(np.mean(choice.reliabilities))
    assert choice.reliability > 0.6
    assert choice.marked == ()
    assert merge_test(own) == merge_test(own)


def test_k_can_be_given():
    clients = [(task, EVEN) for task in range(3) for _ in range(3)]
    own = prints_of(world(12, 3), clients)
    for k in range(1, 10):
        found = merge_test(own, k=k)
        assert found.k == k
        assert found.choices[0].threshold is None
        assert found.why == f"{k} clusters were asked for."
    assert ari(clients, merge_test(own, k=3)) == 1
    assert merge_test(own, [0] * 5 + [1] * 4, 2).k == 4
    for k in (0, 10):
        with pytest.raises(AggregationError, match="can't form"):
            merge_test(own, k=k)


def test_small_differences_can_be_ignored_and_thresholds_moved():
    plain = world(13, 2, apart=0.15, between=0.0)
    own = prints_of(plain, [(t, (500, 500)) for t in (0, 0, 1, 1)])
    effect = distances(own).effect[0, 2]
    assert merge_test(own, least=effect / 2).k == 2
    assert merge_test(own, least=effect * 2).k == 1
    assert merge_test(own, least=0.0, threshold=1e6).k == 1


def test_few_clients_and_clients_that_say_nothing():
    plain = world(14, 2)
    assert merge_test(prints_of(plain, [(0, EVEN)])).why == "One client: one cluster."
    assert merge_test(prints_of(plain, [(0, EVEN), (0, (70, 10))])).k == 1
    assert merge_test(prints_of(plain, [(0, EVEN), (1, EVEN)])).k == 2
    mute = merge_test(prints_of(plain, [(0, EVEN), (1, EVEN), (0, (1, 0)), (1, (0, 0))]))
    assert mute.k == 2
    assert mute.choices[0].marked == (2, 3)
    with pytest.raises(AggregationError, match="no fingerprints"):
        merge_test([])


def test_a_late_client_joins_the_closest_cluster():
    plain = flipped(world(15, 3, between=0.3), 0)
    clients = [(task, EVEN) for task in range(4) for _ in range(3)]
    own = prints_of(plain, clients)
    labels = merge_test(own).labels
    for task in range(4):
        for counts in ((30, 30), (12, 90)):
            (new,) = prints_of(plain, [(task, counts)], 99)
            assert place(new, own, labels) == labels[3 * task]
    (stranger,) = prints_of(world(99, 1), [(0, EVEN)])
    assert place(stranger, own, labels) in labels
    assert place(stranger, own, labels, threshold=4.5) == max(labels) + 1
    assert place(new, own, labels, space=1, spaces=[0] * 12) == max(labels) + 1
    spaces = [int(label == labels[0]) for label in labels]
    assert place(new, own, labels, space=1, spaces=spaces) == labels[0]
    assert place(new, [], []) == 0
    with pytest.raises(AggregationError, match="labels"):
        place(new, own, labels[:-1])


def test_a_late_comer_is_judged_by_the_rule_of_those_before_it():
    """Sites of one task are never exactly alike: with many rows their differences are sure, and
    too small to matter, for who was there and for who comes."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        y, centres = np.arange(800) % 2, rng.normal(size=(2, 24))
        prints = [
            summarise(
                centres[y] + 0.05 * rng.normal(size=24) + rng.normal(size=(800, 24)),
                y,
                2,
                seed=0,
                rng=rng,
            )
            for _ in range(6)
        ]
        assert merge_test(prints).k == 1
        assert place(prints[5], prints[:5], [0] * 5, threshold=4.0) == 0


def test_nobody_is_marked_for_what_noise_leaves_of_its_rows():
    x, y = np.random.default_rng(0).normal(size=(120, 16)), np.arange(120) % 2
    noisy = [
        summarise(x, y, 2, seed=0, rng=np.random.default_rng(k), clip=20.0, noise=2.0)
        for k in range(4)
    ]
    assert merge_test(noisy).choices[0].marked == (0, 1, 2, 3)  # worth little, of 60 rows a class
    assert merge_test(noisy, counted=False).choices[0].marked == ()


def test_a_task_of_many_classes_is_one_task_under_skew():
    """More classes than a fingerprint holds: cells that shared them would tell label mixes."""
    for seed in range(2):
        rng = np.random.default_rng(seed)
        centres = rng.normal(size=(200, 48))
        prints = []
        for _ in range(6):
            y = rng.choice(200, 600, p=rng.dirichlet(np.full(200, 0.5)))
            x = centres[y] + rng.normal(size=(600, 48))
            prints.append(summarise(x, y, 200, seed=0, rng=rng))
        assert merge_test(prints).k == 1
