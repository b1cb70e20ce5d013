"""Personal models on a graph: against dense sums, and at the ends of the step."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from federations import ALL, EQUAL, MIXED, ROWS, TASKS, believed, of_rank, setting, widest
from players import crew, opened, play, rounds
from strategies.registry import STRATEGIES, build

LAST = (1, 2, 4)  # a cohort that leaves some of each task out


def test_no_step_is_local_training_to_the_bit() -> None:
    """With nothing averaged before it, the graph step at η = 0 changes nothing at all."""
    graph, alone = widest("oracle_cluster", eta=0.0, ranks="fixed"), widest("local_only")
    players, others = crew(alone), crew(graph)
    local = play(alone, [ALL, LAST, ALL], players)
    state = play(graph, [ALL, LAST, ALL], others)
    for mine, theirs in zip(players, others, strict=True):
        left = mine.effective(alone.job(local, mine.partition, "evaluate"))
        right = theirs.effective(graph.job(state, theirs.partition, "evaluate"))
        assert left.keys() == right.keys()
        for module, product in left.items():
            np.testing.assert_array_equal(product, right[module])


def test_the_whole_step_is_the_tasks_mean_product() -> None:
    """At equal ranks that hold it, against dense sums; heads are the tasks' mean heads."""
    method = of_rank("oracle_cluster", [16] * 6, eta=1.0, ranks="fixed")
    players = crew(method)
    state = next(iter(rounds(method, [ALL], players)))
    free = of_rank("oracle_cluster", [16] * 6, eta=0.0, ranks="fixed")
    trained = play(free, [ALL], crew(free))
    for task in ("a", "b"):
        members = [p for p in ALL if TASKS[p] == task]
        weights = np.array([ROWS[p] for p in members], float)
        for module in ("m.q", "m.up"):
            parts = [believed(free, trained, p)[module] for p in members]
            mean = np.average(parts, axis=0, weights=weights)
            u, s, vt = np.linalg.svd(mean)
            best = (u[:, :16] * s[:16]) @ vt[:16]
            for p in members:
                np.testing.assert_allclose(believed(method, state, p)[module], best, atol=1e-6)
        heads = [trained.heads[f"client-{p}"]["head.weight"] for p in members]
        for p in members:
            got = state.heads[f"client-{p}"]["head.weight"]
            np.testing.assert_allclose(got, np.average(heads, 0, weights), atol=1e-6)


def test_a_step_brings_the_clients_of_a_task_nearer_and_no_others() -> None:
    spread, centre = {}, {}
    for eta in (0.0, 0.3, 0.7, 1.0):
        method = of_rank("oracle_cluster", [16] * 6, eta=eta, ranks="fixed")
        state = play(method, [ALL], crew(method))
        dense = [believed(method, state, p)["m.q"] for p in ALL]
        spread[eta] = np.linalg.norm(dense[0] - dense[1])
        centre[eta] = [
            np.average([dense[p] for p in members], 0, [ROWS[p] for p in members])
            for members in ([p for p in ALL if TASKS[p] == task] for task in ("a", "b"))
        ]
    assert spread[0.0] > spread[0.3] > spread[0.7] > spread[1.0]
    between = np.linalg.norm(np.subtract(*centre[0.0]))
    for eta, both in centre.items():  # the tasks' means stay, but for what the ranks cut off
        for now, before in zip(both, centre[0.0], strict=True):
            assert np.linalg.norm(now - before) < 0.1 * between, eta


def test_who_never_trained_keeps_its_start_and_pulls_nobody() -> None:
    options, cohort = {"ranks": "fixed", "absent": "pull"}, [0, 1]
    method = of_rank("oracle_cluster", EQUAL, eta=1.0, **options)
    state = play(method, [cohort], crew(method))
    initial = method.setting.initial_for(2)
    np.testing.assert_array_equal(
        method.model_for(state, 2).parts.adapter["m.q"].a, initial.adapter["m.q"].a
    )
    alone = of_rank("oracle_cluster", EQUAL, eta=0.0, **options)
    trained = play(alone, [cohort], crew(alone))
    weights = [ROWS[p] for p in cohort]
    pair = np.average([believed(alone, trained, p)["m.q"] for p in cohort], 0, weights)
    u, s, vt = np.linalg.svd(pair)  # of the two who trained, client 2 not among them
    best = (u[:, : EQUAL[0]] * s[: EQUAL[0]]) @ vt[: EQUAL[0]]
    for p in cohort:
        np.testing.assert_allclose(believed(method, state, p)["m.q"], best, atol=1e-6)


def test_clusters_differ_as_their_names_say() -> None:
    models = {}
    for name in ("oracle_cluster", "random_cluster", "atlas_one_cluster"):
        method = widest(name)
        state = play(method, [ALL], crew(method))
        models[name] = [believed(method, state, p)["m.q"] for p in ALL]
        assert sorted(state.clusters) == list(ALL)
    for (one, left), (other, right) in itertools.combinations(models.items(), 2):
        assert any(not np.allclose(a, b) for a, b in zip(left, right, strict=True)), (one, other)


@pytest.mark.parametrize("name_", ["random_cluster", "atlas_one_cluster"])
def test_label_spaces_are_never_joined(name_: str) -> None:
    own = setting("personal", MIXED, {"a": 2, "b": 3})
    method = build(name_, {}, own)
    clusters = opened(method, crew(method)).clusters
    joined = {(clusters[p], own.num_labels[TASKS[p]]) for p in ALL}
    assert len(joined) == len(set(clusters.values()))


def test_the_share_that_was_cut_is_told_by_rank() -> None:
    method = widest("oracle_cluster", ranks="fixed")
    measured = play(method, [ALL], crew(method)).measured
    assert measured.step_loss is not None
    assert set(measured.step_loss) == {str(rank) for rank in MIXED}
    shares = [measured.step_loss[str(rank)] for rank in sorted(set(MIXED))]
    assert all(share is not None and 0 <= share <= 1 for share in shares)
    assert shares[0] > shares[-1]  # the lowest rank cuts most


def test_a_control_is_atlas_but_for_its_clusters() -> None:
    """Where the clusters found are the tasks, the oracle's models are ATLAS's to the bit."""
    found, told = widest("atlas"), widest("oracle_cluster")
    state, oracle = (play(method, [ALL, LAST, ALL], crew(method)) for method in (found, told))
    assert state.clusters == oracle.clusters
    for p in ALL:
        for module, product in believed(found, state, p).items():
            np.testing.assert_array_equal(product, believed(told, oracle, p)[module])
    assert STRATEGIES["oracle_cluster"].options_type is STRATEGIES["atlas"].options_type
