"""Clusters by silhouette and by angles: planted ones found, and none where there is none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from atlas_flwr.clustering.compared import Compared, by_angles, by_silhouette, place_by_angles
from atlas_flwr.clustering.partition import METHODS, Method
from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.subspace import MEASURES, Measure, subspace
from atlas_flwr.types import Tensors
from planted import flipped, prints_of, world

FOUR = np.repeat(np.arange(4), 4)


def subspaces(tasks=FOUR, rows: int = 60, seed: int = 0, classes: int = 1, p: int = 3):
    """Rows around three directions of their task, some for each class."""
    rng = np.random.default_rng([seed, 1])
    found: list[Tensors] = []
    for task in tasks:
        axes = np.random.default_rng([int(task), 2]).standard_normal((classes, 3, 40))
        y = rng.integers(classes, size=rows)
        x = np.einsum("nk,nkd->nd", rng.standard_normal((rows, 3)), axes[y])
        x += 1.5 * rng.standard_normal(x.shape)
        found.append(subspace(x, y, classes, p, seed=0))
    return found


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("classes", [1, 2])
def test_planted_subspaces_are_found(measure: Measure, classes: int) -> None:
    for seed in range(3):
        found = by_angles(subspaces(seed=seed, classes=classes), measure=measure)
        assert adjusted_rand_score(FOUR, found.labels) == 1.0
        assert found.k == 4


@pytest.mark.parametrize("measure", MEASURES)
def test_one_task_is_one_cluster(measure: Measure) -> None:
    split = [by_angles(subspaces([0] * 12, seed=s), measure=measure).k > 1 for s in range(10)]
    assert sum(split) <= 1
    assert by_angles(subspaces([0])).labels == (0,)
    assert by_angles(subspaces([0, 1])).k == 1  # two clients can't show clusters


def test_a_threshold_cuts_as_the_paper_does() -> None:
    prints = subspaces()
    for threshold, k in ((0.0, len(FOUR)), (270.0, 1)):
        assert by_angles(prints, threshold=threshold).k == k
    found = by_angles(prints, threshold=200.0)
    assert adjusted_rand_score(FOUR, found.labels) == 1.0
    assert "4 cluster(s) at a mean angle of 200" in found.why
    assert by_angles(prints[:1], threshold=1.0).labels == (0,)


def test_the_order_of_clients_does_not_matter() -> None:
    prints = subspaces()
    order = np.random.default_rng(3).permutation(len(FOUR))
    for how in ({}, {"threshold": 200.0}):
        plain = np.array(by_angles(prints, **how).labels)
        turned = by_angles([prints[i] for i in order], **how).labels
        assert adjusted_rand_score(plain[order], turned) == 1.0
        assert turned[0] == 0


def test_label_spaces_are_never_joined() -> None:
    spaces = [2, 3] * 8
    same = [0] * 16
    assert by_angles(subspaces(same), spaces).k == 2
    mixed: list[Tensors] = [{}] * 16  # of other classes, so of other shapes
    mixed[::2] = subspaces(same[::2], classes=2)
    mixed[1::2] = subspaces(same[1::2], classes=3)
    for how in ({}, {"threshold": 1e3}):
        found = by_angles(mixed, spaces, **how)
        assert found.labels == tuple([0, 1] * 8)
        assert [choice.members for choice in found.choices] == [
            tuple(range(0, 16, 2)),
            tuple(range(1, 16, 2)),
        ]


def test_reasons_are_told() -> None:
    found = by_angles(subspaces(), [2] * 16)
    (choice,) = found.choices
    assert isinstance(choice, Compared)
    assert np.shape(choice.similarity) == np.shape(choice.angles) == (16, 16)
    assert max(choice.scores, key=lambda k: choice.scores[k]) == choice.k == 4
    assert choice.why.startswith("Of clients with 2 labels, 4 clusters: silhouette")
    assert choice.threshold is not None
    assert choice.scores[4] > choice.threshold


def test_late_comers_go_to_the_least_angle() -> None:
    prints, labels = subspaces(), FOUR.tolist()
    for task, new in enumerate(subspaces(range(4), seed=5)):
        assert place_by_angles(new, prints, labels) == task
        assert place_by_angles(new, prints, labels, space=3, spaces=[2] * 16) == 4
        assert place_by_angles(new, prints, labels, threshold=1.0) == 4
        assert place_by_angles(new, prints, labels, threshold=250.0) == task
    (stranger,) = subspaces([9])
    assert place_by_angles(stranger, prints, labels, threshold=200.0) == 4
    assert place_by_angles(stranger, [], []) == 0
    with pytest.raises(AggregationError, match="15 fingerprints for 16"):
        place_by_angles(stranger, prints[1:], labels)


# ------------------------------------------------------------------ fingerprints


CLIENTS = [(task, [40, 40]) for task in range(4) for _ in range(4)]


def test_planted_tasks_are_found_by_silhouette() -> None:
    plain, alone = world(), [(0, [40, 40])] * 12
    for seed in range(3):
        found = by_silhouette(prints_of(plain, CLIENTS, seed))
        assert adjusted_rand_score(FOUR, found.labels) == 1.0
        assert by_silhouette(prints_of(plain, alone, seed)).k == 1


@pytest.mark.parametrize("method", METHODS)
def test_exchanged_labels_are_told_by_class_means(method: Method) -> None:
    """Both methods, and the number of clusters, on clients whose texts are the same."""
    plain = flipped(world(tasks=1, between=0.6), 0)
    clients = [(task, [60, 60]) for task in (0, 1) for _ in range(4)]
    found = by_silhouette(prints_of(plain, clients), method=method, draws=49)
    assert found.labels == (0, 0, 0, 0, 1, 1, 1, 1)
    again = by_silhouette(prints_of(plain, clients), method=method, draws=49)
    assert again == found


def test_prints_without_classes_are_compared_by_cosine_and_halves() -> None:
    clients = [(task, [80]) for task in range(4) for _ in range(4)]
    found = by_silhouette(prints_of(world(classes=1, apart=0.6), clients))
    assert adjusted_rand_score(FOUR, found.labels) == 1.0
    assert 0 < (found.choices[0].reliability or 0) < 1
    alone = by_silhouette(prints_of(world(classes=1), clients[:4] * 3))
    assert alone.k == 1


def test_clients_that_nothing_can_be_told_of_are_alike_to_nobody() -> None:
    prints = prints_of(world(), [*CLIENTS, (0, [1, 0])])
    found = by_silhouette(prints)
    assert adjusted_rand_score(FOUR, found.labels[:-1]) == 1.0
    assert np.isfinite(found.choices[0].similarity).all()  # type: ignore[attr-defined]
    assert by_silhouette(prints[-1:]).labels == (0,)


def test_no_clients_are_refused() -> None:
    for find in (by_angles, by_silhouette):
        with pytest.raises(AggregationError, match="no fingerprints"):
            find([])


@pytest.mark.parametrize("kind", ["classes", "embedding"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("single", [1, 3])
def test_clients_of_one_row_join_their_nearest_and_change_nothing_else(
    single: int, method: Method, kind: str
) -> None:
    """One row has no noise to be told apart from: it took clusters with it, or ended the run."""
    own = world(1, 2, apart=1.0)
    tasks = [0, 0, 0, 1, 1, 1]
    classes = (30, 30) if kind == "classes" else (60,)
    plain = own if kind == "classes" else world(1, 2, 1, apart=1.0)
    many = prints_of(plain, [(task, classes) for task in tasks], 3)
    one = (1, 0) if kind == "classes" else (1,)
    lone = prints_of(plain, [(k % 2, one) for k in range(single)], 4)
    want = by_silhouette(many, method=method, draws=49)
    found = by_silhouette([*lone, *many], method=method, draws=49)
    assert want.k == found.k == 2
    assert adjusted_rand_score(found.labels[single:], want.labels) == 1.0
    assert "without two rows" in found.why
    (choice,) = found.choices
    assert isinstance(choice, Compared)
    assert np.shape(choice.similarity) == (6 + single, 6 + single)
    alone = by_silhouette(lone, method=method, draws=49)
    assert alone.labels == (0,) * single
    none = {name: np.zeros_like(tensor) for name, tensor in many[0].items()}  # of other classes
    assert by_silhouette([none, *many], method=method, draws=49).labels[0] == 0
