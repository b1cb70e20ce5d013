"""ATLAS's graphs, variants and chosen steps: laws of the step, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.errors import AggregationError, ConfigError
from atlas_flwr.fingerprint.shrinkage import shrinkages
from atlas_flwr.types import Array, Job, ModelParts, Report, Update
from federations import ALL, EQUAL, MIXED, MODULES, ROWS, TASKS, believed, of_rank
from players import Player, crew, opened, play, rounds
from strategies.atlas import GRID
from strategies.base import Method, State
from strategies.registry import build
from strategies.state import Rows

FREE = [16] * 6  # ranks that hold every mean of the players' updates but for the last bits
GRAPHS: dict[str, dict[str, object]] = {
    "complete": {},
    "rbf": {"graph": "rbf"},
    "knn": {"graph": "knn", "neighbours": 1},
    "crossing": {"graph": "rbf", "cross": 0.5},
}


def trained(options: Mapping[str, object], ranks: list[int], players: list[Player]) -> State:
    """The state after round 1 without a step, from the same answers."""
    return play(of_rank("atlas", ranks, **{**options, "eta": 0.0}), [ALL], players)


def stacked(method: Method, state: State) -> Array:
    return np.stack([believed(method, state, p)["m.q"] for p in ALL])


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_mean_by_rows_is_preserved_and_clients_come_nearer(graph: str) -> None:
    options = {**GRAPHS[graph], "ranks": "fixed", "error-feedback": True}
    method = of_rank("atlas", FREE, **options, eta=1.0)
    before = stacked(method, trained(options, FREE, crew(method)))
    state = play(method, [ALL], crew(method))
    after = stacked(method, state)
    for p in ALL:  # what the rank cut off is kept for the next step
        after[p] = after[p] + (state.tails[p]["m.q"].product() if state.tails[p] else 0.0)
    rows = np.array(ROWS, float)
    np.testing.assert_allclose(
        np.tensordot(rows, after, 1), np.tensordot(rows, before, 1), atol=1e-6
    )
    assert np.linalg.norm(after[0] - after[1]) < np.linalg.norm(before[0] - before[1])
    # A cluster's mean stays where it is, unless edges lead out of it.
    means = [np.average(m[:3], 0, ROWS[:3]) for m in (before, after)]
    assert np.allclose(*means, atol=1e-6) == (graph != "crossing")


def test_a_graph_of_neighbours_is_no_complete_one() -> None:
    found = {}
    for name, options in GRAPHS.items():
        method = of_rank("atlas", FREE, **{**options, "ranks": "fixed"}, eta=1.0)
        found[name] = stacked(method, play(method, [ALL], crew(method)))
    names = list(found)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not np.allclose(found[one], found[other]), (one, other)


@pytest.mark.parametrize("graph", ["rbf", "knn"])
def test_at_the_whole_step_every_client_keeps_its_share_and_clusters_stay_apart(graph: str) -> None:
    method = of_rank("atlas", EQUAL, ranks="fixed", **GRAPHS[graph])
    state = play(method, [ALL], crew(method))
    found = method.graph(state, list(ALL))
    kept = 1 - found.sum(axis=1) / (np.array(ROWS) / np.mean(ROWS))
    assert (kept >= np.array(ROWS) / sum(ROWS)).all()
    assert not found[:3, 3:].any()
    if graph == "rbf":  # what is left of distances inside a task is noise: nobody is cut off
        inside = found[:3, :3][~np.eye(3, dtype=bool)]
        assert inside.min() > 0.2 * inside.max()
    if graph == "knn":  # one neighbour each: three clients have two edges, not three
        assert [np.count_nonzero(np.triu(part)) for part in (found[:3, :3], found[3:, 3:])] == [
            2,
            2,
        ]


def test_steps_on_factors_products_and_b_alone_differ_and_agree_where_they_must() -> None:
    options = {"ranks": "fixed", "eta": 0.5}
    found = {}
    for variant in ("product", "factor", "ffa"):
        method = of_rank("atlas", [16] * 6, **options, variant=variant)
        found[variant] = stacked(method, play(method, [ALL], crew(method)))
    assert not np.allclose(found["product"], found["factor"])
    assert not np.allclose(found["product"], found["ffa"])
    # Where A is shared all three are one step: the players move B alone, in the first round from
    # one A. Products are then written back with an A of each client's own.
    for variant in ("product", "factor", "ffa"):
        method = of_rank("atlas", [16] * 6, **options, variant=variant)
        players = crew(method, moves=frozenset({"lora_B", "head"}))
        found[variant] = stacked(method, play(method, [ALL], players))
    np.testing.assert_allclose(found["factor"], found["ffa"], atol=1e-6)
    np.testing.assert_allclose(found["product"], found["ffa"], atol=1e-6)


@pytest.mark.parametrize("ranks", ["fixed", "importance"])
def test_a_frozen_a_is_never_sent_back_and_never_changes(ranks: str) -> None:
    method = of_rank("atlas", MIXED, variant="ffa", ranks=ranks)
    state = play(method, [ALL], crew(method))
    for job in method.plan(replace(state, round=2, phase=0), ALL) or []:
        assert not any(name.endswith("lora_A") for name in job.expects)
        sent = {n for n in job.parts.body() if n.endswith("lora_A")}
        assert bool(sent) == (ranks != "fixed")
        seeded = method.whole(state, job.partition).adapter["m.q"].a
        served = method.model_for(state, job.partition).parts.adapter["m.q"].a
        np.testing.assert_array_equal(served, seeded)


def test_error_feedback_changes_the_second_step_and_not_the_first() -> None:
    states = {}
    for feedback in (False, True):
        method = of_rank("atlas", MIXED, **{"ranks": "fixed", "error-feedback": feedback})
        players = crew(method)
        first = play(method, [ALL], crew(method))
        states[feedback] = stacked(method, first), stacked(method, play(method, [ALL] * 2, players))
    np.testing.assert_array_equal(states[False][0], states[True][0])
    assert not np.allclose(states[False][1], states[True][1])


# ------------------------------------------------------------------ η that fingerprints tell


def test_each_cluster_takes_the_step_that_its_fingerprints_ask_for() -> None:
    method = of_rank("atlas", EQUAL, ranks="fixed")
    players = [replace(player, own=0.2 if p < 3 else 0.0) for p, player in enumerate(crew(method))]
    state = play(method, [ALL], players)
    a, b = state.clusters[0], state.clusters[3]
    assert a != b
    asked = shrinkages([state.prints[p] for p in ALL], [state.clusters[p] for p in ALL])
    assert dict(state.etas) == {p: asked[state.clusters[p]] for p in ALL}
    assert state.found["eta"] == {str(cluster): eta for cluster, eta in asked.items()}
    assert 0 < asked[a] < asked[b]
    for cluster, members in ((a, (0, 1, 2)), (b, (3, 4, 5))):
        given = of_rank("atlas", EQUAL, eta=asked[cluster], ranks="fixed")
        want = play(given, [ALL], crew(given))
        for p in members:
            np.testing.assert_array_equal(
                believed(method, state, p)["m.q"], believed(given, want, p)["m.q"]
            )


def test_clients_of_one_cluster_that_are_of_two_tasks_keep_to_themselves() -> None:
    method = of_rank("atlas_one_cluster", EQUAL)
    (eta,) = set(play(method, [ALL], crew(method)).etas.values())
    assert eta < 0.1


def test_late_comers_have_a_step_too() -> None:
    method = of_rank("atlas", EQUAL)
    first, last = rounds(method, [ALL, ALL], crew(method), {(1, "train", 5)})
    assert sorted(first.etas) == [0, 1, 2, 3, 4]
    assert sorted(last.etas) == [*ALL]
    assert {str(last.clusters[p]): last.etas[p] for p in ALL} == last.found["eta"]


# ------------------------------------------------------------------ η that is chosen


def played(method: Method, best: Mapping[str, float], seen: list[Job]) -> State:
    """One round whose clients lose least at the step that their task likes best."""
    players = crew(method)
    state = opened(method, players)
    while jobs := method.plan(state, ALL):
        seen += jobs
        if jobs[0].action == "train.score":
            answers = [scored(job, best) for job in jobs]
        else:
            answers = [players[job.partition].answer(job) for job in jobs]
        state = method.acknowledged(method.merge(state, iter(answers)), jobs)
    return state


def scored(job: Job, best: Mapping[str, float]) -> Update:
    losses = np.abs(np.array(GRID) - best[TASKS[job.partition]])
    return Update(job.partition, Report(5), fingerprint={"losses": losses})


def test_each_cluster_takes_the_step_that_loses_least() -> None:
    method, seen = of_rank("atlas", EQUAL, eta="auto", ranks="fixed"), list[Job]()
    state = played(method, {"a": 0.25, "b": 1.0}, seen)
    a, b = state.clusters[0], state.clusters[3]
    assert dict(state.etas) == {p: 0.25 if TASKS[p] == "a" else 1.0 for p in ALL}
    assert state.measured.eta == {str(a): 0.25, str(b): 1.0}
    assert state.measured.eta_loss is not None
    assert min(state.measured.eta_loss[str(a)], key=state.measured.eta_loss[str(a)].get) == "0.25"  # type: ignore[arg-type]
    for eta, members in ((0.25, (0, 1, 2)), (1.0, (3, 4, 5))):
        given = of_rank("atlas", EQUAL, eta=eta, ranks="fixed")
        want = play(given, [ALL], crew(given))
        for p in members:
            np.testing.assert_array_equal(
                believed(method, state, p)["m.q"], believed(given, want, p)["m.q"]
            )


def test_the_models_to_score_are_those_after_each_step() -> None:
    method, seen = of_rank("atlas", EQUAL, eta="auto", ranks="fixed"), list[Job]()
    played(method, {"a": 0.0, "b": 0.0}, seen)
    training = [job for job in seen if job.action == "train"]
    scoring = [job for job in seen if job.action == "train.score"]
    assert [job.partition for job in training] == [job.partition for job in scoring] == list(ALL)
    assert {job.options["hold-back"] for job in (*training, *scoring)} == {0.2}
    for job in scoring:
        assert (job.rows, len(job.choices), job.parts) == ("held", len(GRID), ModelParts())
    for eta, choice in zip(GRID, scoring[0].choices, strict=True):
        given = of_rank("atlas", EQUAL, eta=eta, ranks="fixed")
        want = play(given, [ALL], crew(given))
        np.testing.assert_array_equal(
            choice.adapter["m.q"].b, given.model_for(want, 0).parts.adapter["m.q"].b
        )


def test_heads_take_the_adapters_step_or_their_own() -> None:
    found = {
        (eta, heads): play(of_rank("atlas", MIXED, eta=eta, **{"head-eta": heads}), [ALL])
        for eta, heads in [(0.5, "same"), (0.5, 0.5), (0.5, 0.0), (0.0, 0.5), (0.0, 0.0)]
    }
    both, same, bodies, heads, neither = (numbers(state) for state in found.values())
    assert both == same
    assert bodies == (both[0], neither[1])
    assert heads == (neither[0], both[1])
    assert both[0] != neither[0]
    assert both[1] != neither[1]


def numbers(state: State) -> tuple[object, object]:
    """The bits of all adapters, and of all heads."""
    bodies = {
        (key, module, name): np.asarray(getattr(factors, name)).tobytes()
        for key, parts in state.bodies.items()
        for module, factors in parts.adapter.items()
        for name in ("a", "b")
    }
    heads = {(k, n): np.asarray(t).tobytes() for k, h in state.heads.items() for n, t in h.items()}
    return bodies, heads


def test_a_chosen_step_leaves_the_heads_to_theirs() -> None:
    method, seen = of_rank("atlas", EQUAL, eta="auto", **{"head-eta": 0.0}), list[Job]()
    played(method, {"a": 0.0, "b": 0.0}, seen)
    scoring = [job for job in seen if job.action == "train.score"]
    for job in scoring:  # each step of the grid leaves a client the head it trained
        heads = [{n: t.tobytes() for n, t in choice.head.items()} for choice in job.choices]
        assert heads == [heads[0]] * len(GRID)
    assert len({scoring[p].choices[0].head["head.weight"].tobytes() for p in ALL}) == len(ALL)


def test_clients_of_two_rows_choose_and_where_nobody_can_the_step_is_the_last_one() -> None:
    """Who has two rows trains on one and scores on the other; who has one scores nothing."""
    actions = {}
    for train in (2, 1):
        method = of_rank("atlas", EQUAL, eta="auto", ranks="fixed")
        dealt = replace(method.setting, rows=(Rows(train, 1, 1),) * 6)
        method = build("atlas", {"eta": "auto", "ranks": "fixed"}, dealt)
        players = [replace(player, rows=1) for player in crew(method)]
        state = replace(opened(method, players), etas=dict.fromkeys(ALL, 1.0))
        seen = []
        while jobs := method.plan(state, ALL):
            seen.append((jobs[0].action, len(jobs)))
            state = method.merge(state, (players[job.partition].answer(job) for job in jobs))
        actions[train] = seen
        models = stacked(method, state)
        if train == 1:
            for own in ([0, 1, 2], [3, 4, 5]):
                np.testing.assert_allclose(models[own], models[own[:1] * 3], atol=1e-6)
    assert actions == {2: [("train", 6), ("train.score", 6)], 1: [("train", 6)]}


@pytest.mark.parametrize("name", ["oracle_cluster", "random_cluster", "atlas_one_cluster"])
def test_a_way_to_cluster_is_refused_where_clusters_are_given(name: str) -> None:
    with pytest.raises(ConfigError, match=r"clustering: 'kmeans' changes nothing"):
        of_rank(name, EQUAL, clustering="kmeans")


def test_a_highest_rank_is_refused_where_ranks_are_fixed() -> None:
    with pytest.raises(ConfigError, match=r"max-rank: 64 bounds"):
        of_rank("atlas", EQUAL, **{"ranks": "fixed", "max-rank": 64})


def test_losses_that_are_none_are_refused() -> None:
    method = of_rank("atlas", EQUAL, eta="auto")
    with pytest.raises(AggregationError, match="partition 0: told no losses"):
        played(method, {"a": np.nan, "b": 0.0}, [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "factor"}, r"variant: 'factor' .*ranks = 'fixed'"),
        ({"variant": "ffa", "error-feedback": True}, r"error-feedback: variant 'ffa'"),
        ({"cross": 0.1}, r"cross: 0\.1, but a 'complete' graph"),
        ({"eta": "auto", "hold-back": 0.0}, r"hold-back: 0, but eta = 'auto'"),
        (
            {"fingerprint": "rms_gradient", "clip": 1.0, "eta": 0.5},
            r"options\.clip: 1 is not for fingerprint = 'rms_gradient'",
        ),
        ({"fingerprint": "rms_gradient"}, r"options\.eta: 'shrinkage' needs features of rows"),
        ({"eta": "most"}, r"strategy\.options\.eta"),
        ({"eta": 1.5}, r"strategy\.options\.eta"),
    ],
)
def test_options_that_have_no_meaning_together_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        of_rank("atlas", EQUAL, **options)


def test_rows_are_held_back_at_any_step_and_are_not_measured_either() -> None:
    for options, share in (
        ({}, None),
        ({"hold-back": 0.3}, 0.3),
        ({"eta": "auto"}, 0.2),
        ({"eta": "auto", "hold-back": 0.1}, 0.1),
    ):
        method = of_rank("atlas", EQUAL, **options)
        state = replace(method.start(), round=1)
        first = (method.plan(state, ALL) or [])[0]
        then = (method.plan(opened(method, crew(method)), ALL) or [])[0]
        assert [first.action, then.action] == ["train.fingerprint", "train"]
        assert first.options.get("hold-back") == then.options.get("hold-back") == share


def test_a_step_is_kept_by_client_when_clusters_change_their_numbers() -> None:
    method = of_rank("atlas", EQUAL, eta="auto", ranks="fixed")
    state = played(method, {"a": 0.25, "b": 1.0}, [])
    swapped = {p: 1 - cluster for p, cluster in state.clusters.items()}
    later = replace(state, clusters=swapped)
    assert [method.eta_of(later, p) for p in ALL] == [0.25] * 3 + [1.0] * 3


def test_clients_that_wait_keep_their_models_and_pull_nobody() -> None:
    cohorts = [ALL, (0, 1)]
    models = {}
    for absent in ("pull", "wait"):
        method = of_rank("atlas", FREE, ranks="fixed", absent=absent, eta=1.0)
        *_, first, second = rounds(method, cohorts, crew(method))
        models[absent] = (stacked(method, first), stacked(method, second))
    np.testing.assert_array_equal(models["pull"][0], models["wait"][0])
    before, after = models["wait"]
    np.testing.assert_array_equal(after[2], before[2])
    np.testing.assert_array_equal(after[3:], before[3:])
    # The two that were drawn have one model, their mean: client 2's old one pulls nobody.
    np.testing.assert_allclose(after[0], after[1], atol=1e-6)
    assert not np.allclose(models["pull"][1][0], after[0])


def test_where_a_is_frozen_the_budget_is_spent_on_b() -> None:
    for ranks in ("uniform", "importance"):
        sizes = {}
        for variant in ("product", "ffa"):
            method = of_rank("atlas", EQUAL, variant=variant, ranks=ranks)
            job = (method.plan(opened(method, crew(method)), ALL) or [])[0]
            expected = {n: s for n, s in job.expects.items() if "lora" in n}
            sizes[variant] = sum(math.prod(shape) for shape in expected.values())
        # As much is sent up, but for the one step that no longer fits.
        assert sizes["product"] - 96 < sizes["ffa"] <= 4 * sum(sum(s) for s in MODULES.values())
