"""Clusters from subspaces: the tasks where there are tasks, and the models of the oracle then."""

from __future__ import annotations

import json

import numpy as np
import pytest

from atlas_flwr.errors import ConfigError
from atlas_flwr.types import ModelParts
from federations import ALL, MIXED, TASKS, believed, of_rank, setting, widest
from players import crew, opened, play, rounds
from strategies.registry import build

NAME = "embedding_cluster"
TWO = {partition: "ab".index(task) for partition, task in enumerate(TASKS)}
# One mean a class: class-wise, one direction says it all; pooled, two classes make two.
OPTIONS = (
    {"dimensions": 2},
    {"rows": "class_wise", "dimensions": 1},
    {"dimensions": 2, "angle": "smallest"},
    {"dimensions": 2, "threshold": 60.0},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_tasks_are_found_and_the_models_are_the_oracles(options: dict[str, object]) -> None:
    method, oracle = widest(NAME, **options), widest("oracle_cluster", eta=1.0)
    state = play(method, [ALL, [0, 2, 4]], crew(method))
    assert state.clusters == TWO
    known = play(oracle, [ALL, [0, 2, 4]], crew(oracle))
    for partition in ALL:
        mine, theirs = (believed(m, s, partition) for m, s in ((method, state), (oracle, known)))
        for module, product in theirs.items():
            np.testing.assert_array_equal(mine[module], product)


def test_subspaces_tell_no_shrinkage() -> None:
    with pytest.raises(ConfigError, match=r"strategy\.options\.eta"):
        widest(NAME, eta="shrinkage")


def test_the_job_asks_for_a_subspace_and_nothing_else() -> None:
    method = widest(NAME, dimensions=5, rows="class_wise", ranks="uniform")
    jobs = method.plan(method.start(), ALL) or []
    assert {job.action for job in jobs} == {"train.fingerprint"}
    assert [job.partition for job in jobs] == [*ALL]
    for job in jobs:
        assert job.options == {"kind": "subspace", "dimensions": 5, "class-wise": True}
        assert job.parts == ModelParts()


def test_reasons_are_told_in_plain_values() -> None:
    method = widest(NAME, dimensions=2)
    facts = opened(method, crew(method)).found
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    (space,) = facts["spaces"]
    angles, similarity = np.array(space["angles"]), np.array(space["similarity"])
    np.testing.assert_allclose(similarity, 1 - angles / 180)
    assert space["partitions"] == [*ALL]
    assert facts["clusters"] == {str(p): c for p, c in TWO.items()}
    assert "silhouette" in facts["why"]


def test_late_comers_are_placed_by_their_subspace() -> None:
    method = widest(NAME, dimensions=2)
    lose = {(1, "train", 5), (1, "train", 0)}
    first, last = rounds(method, [ALL, ALL], crew(method), lose)
    assert sorted(first.clusters) == [1, 2, 3, 4]
    assert last.clusters == TWO


def test_label_spaces_are_never_joined() -> None:
    """Even at a threshold that joins everything, and with sets of directions of other shapes."""
    own = setting("personal", MIXED, {"a": 2, "b": 3})
    for rows in ("pooled", "class_wise"):
        method = build(NAME, {"threshold": 1000.0, "rows": rows}, own)
        state = opened(method, crew(method))
        assert state.clusters == TWO
        assert [space["labels"] for space in state.found["spaces"]] == [2, 3]


def test_a_threshold_of_one_cluster_is_the_control_of_one_cluster() -> None:
    method, control = widest(NAME, threshold=1000.0), widest("atlas_one_cluster", eta=1.0)
    state, one = (play(m, [ALL], crew(m)) for m in (method, control))
    for partition in ALL:
        np.testing.assert_array_equal(
            believed(method, state, partition)["m.q"], believed(control, one, partition)["m.q"]
        )


def test_the_cohort_is_asked_again_where_that_is_wanted() -> None:
    method = of_rank(NAME, [4] * 6, dimensions=2, every=2)
    states = list(rounds(method, [ALL, ALL, ALL], crew(method)))
    assert [state.asked for state in states] == [1, 1, 3]
    assert states[-1].clusters == TWO


def test_what_no_fingerprint_holds_is_refused() -> None:
    many = setting("personal", MIXED, {"a": 2, "b": 300})
    with pytest.raises(ConfigError, match=r"strategy\.options\.rows: .*300 classes.*'pooled'"):
        build(NAME, {"rows": "class_wise"}, many)
    build(NAME, {}, many)
    for options, key in (
        ({"dimensions": 0}, "dimensions"),
        ({"threshold": -1.0}, "threshold"),
        ({"angle": "largest"}, "angle"),
        ({"noise": 1.0}, "noise"),
        ({"fingerprint": "embedding"}, "fingerprint"),
    ):
        with pytest.raises(ConfigError, match=f"strategy.options.{key}"):
            build(NAME, options, setting("personal", MIXED))


@pytest.mark.parametrize("graph", ["rbf", "knn"])
def test_a_graph_of_other_fingerprints_is_refused(graph: str) -> None:
    with pytest.raises(ConfigError, match=rf"options\.graph: '{graph}' .* set 'complete'"):
        of_rank("embedding_cluster", MIXED, graph=graph)
