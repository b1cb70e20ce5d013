"""Clusters as the record tells them: by every method, each label space apart, in plain values."""

from __future__ import annotations

import json

import numpy as np
import pytest

from planted import flipped, prints_of, world
from strategies import found
from strategies.found import METHODS, Method

TASKS = (0, 0, 0, 1, 1, 1)
SPACES = (2,) * 6


def prints(rows: int = 40, seed: int = 0):
    clients = [(task, [rows, rows]) for task in TASKS]
    return dict(enumerate(prints_of(world(tasks=2), clients, seed)))


@pytest.mark.parametrize("method", METHODS)
def test_planted_tasks_are_found_and_told_in_plain_values(method: Method) -> None:
    clusters, facts = found.find(prints(), SPACES, method=method, seed=1)
    assert [clusters[p] for p in range(6)] == list(TASKS)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts["k"] == 2
    assert facts["clusters"] == {str(p): c for p, c in clusters.items()}
    (space,) = facts["spaces"]
    assert space["labels"] == 2
    assert space["partitions"] == list(range(6))
    assert space["why"] in facts["why"]
    shown = space["z" if method == "merge_test" else "similarity"]
    assert np.shape(shown) == (6, 6)
    scores = "z" if method == "merge_test" else "silhouette"
    assert "2" in space[f"{scores}_by_number_of_clusters"]


def test_the_merge_test_is_the_default() -> None:
    assert found.find(prints(), SPACES) == found.find(prints(), SPACES, method="merge_test")


def test_the_test_statistic_decides_and_not_the_largest_score_alone() -> None:
    """Clients of one task: silhouettes are told, and the one that would be needed."""
    alone = dict(enumerate(prints_of(world(), [(0, [40, 40])] * 6)))
    clusters, facts = found.find(alone, SPACES, method="agglomerative")
    (space,) = facts["spaces"]
    best = max(space["silhouette_by_number_of_clusters"].values())
    assert set(clusters.values()) == {0}
    assert best <= space["silhouette_without_clusters"]
    assert space["p_value"] > 0.02


@pytest.mark.parametrize("method", ["merge_test", "agglomerative"])
def test_label_spaces_and_partitions_that_are_absent(method: Method) -> None:
    """Fingerprints of other classes are of other shapes; clients 1 and 6 are not there."""
    two = prints_of(world(), [(0, [30, 30])] * 4)
    three = prints_of(world(classes=3), [(0, [30, 30, 30])] * 4)
    own = dict(enumerate([*two, *three]))
    del own[1], own[6]
    clusters, facts = found.find(own, (2,) * 4 + (3,) * 4, method=method)
    assert clusters == {0: 0, 2: 0, 3: 0, 4: 1, 5: 1, 7: 1}
    assert [space["partitions"] for space in facts["spaces"]] == [[0, 2, 3], [4, 5, 7]]
    assert [space["labels"] for space in facts["spaces"]] == [2, 3]


def test_late_comers_join_the_nearest_or_open_their_label_space() -> None:
    old = prints()
    clusters, _ = found.find(old, SPACES)
    late = {7: prints(seed=3)[0], 6: prints(seed=3)[5], 8: prints(seed=4)[5]}
    placed = found.place(late, old, clusters, (*SPACES, 2, 2, 5))
    assert placed == {6: 1, 7: 0, 8: 2}


def test_a_late_comer_is_placed_by_what_is_given() -> None:
    """And sees those who were placed before it."""
    asked: list[tuple[int, ...]] = []

    def one(new, prints, labels, *, space, spaces):
        asked.append((len(prints), space, *spaces))
        return 7

    placed = found.place({4: {}, 3: {}}, {0: {}, 1: {}}, {0: 0, 1: 0}, [2, 2, 2, 3, 4], one)
    assert placed == {3: 7, 4: 7}
    assert asked == [(2, 3, 2, 2), (3, 4, 2, 2, 3)]


def test_exchanged_labels_are_one_cluster_to_no_method() -> None:
    plain = flipped(world(tasks=1, between=0.6), 0)
    own = dict(enumerate(prints_of(plain, [(task, [60, 60]) for task in TASKS])))
    for method in ("merge_test", "agglomerative"):
        clusters, _ = found.find(own, SPACES, method=method)
        assert [clusters[p] for p in range(6)] == list(TASKS)
