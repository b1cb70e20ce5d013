"""IFCA, FL-TAC, MIRA and FedAvg inside clusters: their limits, and what tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from atlas_flwr.aggregation import graph
from atlas_flwr.errors import AggregationError, ConfigError, WireError
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Array, Job
from federations import ALL, EQUAL, ROWS, TASKS, Dense, believed, distance, equal, of_rank, setting
from players import Player, crew, first_round, opened, play, rounds
from strategies.base import Method, Setting, State
from strategies.registry import build
from strategies.rounds.rules import check_schema

SOME = [[0, 1, 4], ALL, [2, 3]]
MERGED = ("cluster_fedavg", "fl_tac", "ifca")


def one_task() -> Setting:
    return replace(setting("personal"), tasks=("a",) * 6)


def shown(method: Method, players: Sequence[Player], state: State) -> list[dict[str, Array]]:
    """Everybody's model as the client has it: every tensor of adapter and head."""
    models = [p.model(method.job(state, p.partition, "evaluate")).parts for p in players]
    return [{**parts.body(), **parts.head} for parts in models]


def after(method: Method, cohorts: Sequence[Sequence[int]], **how: object) -> list[dict]:
    players = crew(method, **how)
    return shown(method, players, play(method, cohorts, players))


def assert_same(left: list[dict[str, Array]], right: list[dict[str, Array]]) -> None:
    for one, other in zip(left, right, strict=True):
        assert distance(one, other) <= 1e-6


# ------------------------------------------------------------------ limits


@pytest.mark.parametrize(
    ("name_", "options"),
    [
        ("cluster_fedavg", {}),
        ("fl_tac", {"clusters": 1}),
        ("fl_tac", {}),
        ("ifca", {"clusters": 1}),
    ],
)
def test_one_cluster_is_fedit(name_: str, options: dict[str, int]) -> None:
    """Its found clusters, the tasks it is told, or the option say one: heads and all."""
    method = build(name_, options, one_task())
    fedit = build("fedit", {}, replace(one_task(), head_policy="shared"))
    # Who is in no cluster yet, and who was not drawn since, is served the seeded start or the mean.
    assert_same(after(method, [ALL, [2, 3]]), after(fedit, [ALL, [2, 3]]))


def test_no_step_is_local_training_with_heads_at_the_server() -> None:
    graph_, local = equal("mira", eta=0.0), equal("local_only")
    for one, other in zip(after(graph_, SOME), after(local, SOME), strict=True):
        assert one.keys() == other.keys()
        for name, tensor in one.items():
            np.testing.assert_array_equal(tensor, other[name])


@pytest.mark.parametrize("name_", MERGED)
def test_who_is_in_a_cluster_together_holds_fedits_mean_of_it(name_: str) -> None:
    method = equal(name_)
    state, updates = first_round(method)
    merged = method.merge(state, iter(updates))
    for cluster in set(merged.clusters.values()):
        own = [u for u in updates if merged.clusters[u.partition] == cluster]
        rows = [u.report.num_examples for u in own]
        for update in own:
            parts = method.model_for(merged, update.partition).parts
            for name, tensor in {**parts.body(), **parts.head}.items():
                told = [{**u.parts.body(), **u.parts.head}[name] for u in own]
                np.testing.assert_allclose(tensor, np.average(told, 0, rows), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------ planted groups


class Grouped(Player):
    """A player that moves as all of its task do, but for a tenth."""

    def move(self, job: Job, name: str, tensor: Array) -> Array:
        task = rng_for(0, f"{TASKS[self.partition]}/{name}", job.round)
        common = self.noise * task.standard_normal(tensor.shape)
        own = super().move(job, name, tensor) - tensor
        return (tensor + common + 0.1 * own).astype(np.float32)


def planted(method: Method) -> list[Player]:
    return [Grouped(method.setting, partition) for partition in ALL]


@pytest.mark.parametrize(("name_", "options"), [("fl_tac", {}), ("ifca", {"clusters": 8})])
def test_planted_groups_are_separated(name_: str, options: dict[str, int]) -> None:
    method = equal(name_, **options)
    state = play(method, [ALL, ALL], planted(method))
    a, b = ({state.clusters[p] for p in ALL if TASKS[p] == task} for task in "ab")
    assert len(a) == len(b) == 1
    assert a != b


def test_clusters_keep_their_numbers_and_who_was_not_drawn_its_cluster() -> None:
    method = equal("fl_tac")
    players = planted(method)
    states = list(rounds(method, [ALL, [3], [1, 5]], players))
    assert (
        states[0].clusters
        == states[1].clusters
        == states[2].clusters
        == dict(enumerate([0, 0, 0, 1, 1, 1]))
    )
    first, second, third = (shown(method, players, state) for state in states)
    assert distance(second[0], first[0]) == 0  # its cluster had nobody in round 2
    assert distance(second[5], first[5]) > 1e-3  # its cluster had, and it is served that mean
    assert distance(third[0], third[1]) == distance(third[3], third[5]) == 0


def test_fl_tac_asks_for_no_more_clusters_than_there_are_adapters() -> None:
    method = equal("fl_tac", clusters=5)
    state = play(method, [[0, 1], ALL])
    assert len({state.clusters[p] for p in ALL}) == 5
    same = equal("fl_tac", clusters=5)
    assert set(play(same, [ALL], crew(same, voice=0)).clusters.values()) == {0}


@pytest.mark.parametrize("name_", ["fl_tac", "ifca"])
def test_heads_of_other_label_spaces_are_never_joined(name_: str) -> None:
    method = build(name_, {"clusters": 1}, setting("personal", EQUAL, {"a": 2, "b": 3}))
    players = crew(method)
    state = play(method, [ALL, ALL], players)
    models = [method.model_for(state, p) for p in ALL]
    assert [len(m.parts.head["head.weight"]) for m in models] == [2, 2, 2, 3, 3, 3]
    assert len({m.key for m in models}) == 2
    for name, tensor in models[0].parts.body().items():  # the adapter is everybody's
        np.testing.assert_array_equal(tensor, models[5].parts.body()[name])


# ------------------------------------------------------------------ cluster_fedavg


def test_clustering_again_changes_nothing_where_it_finds_the_same() -> None:
    once, often = equal("cluster_fedavg"), equal("cluster_fedavg", every=1)
    assert_same(after(often, [ALL, ALL, ALL]), after(once, [ALL, ALL, ALL]))


def test_a_new_cluster_begins_with_the_mean_of_what_its_members_held() -> None:
    method = equal("cluster_fedavg", every=1)
    players = crew(method)
    state = replace(play(method, [ALL], players), round=2, phase=0)
    held = [method.model_for(state, p).parts.head["head.weight"] for p in ALL]
    swapped = dict(zip(ALL, (0, 1, 1, 1, 0, 0), strict=True))
    method.find = lambda prints: (swapped, {"k": 2})  # type: ignore[attr-defined]
    asked = method.plan(state, ALL) or []
    assert {job.action for job in asked} == {"train.fingerprint"}
    new = method.merge(state, (players[job.partition].answer(job) for job in asked))
    for cluster in (0, 1):
        members = [p for p in ALL if swapped[p] == cluster]
        mean = np.average([held[p] for p in members], 0, [ROWS[p] for p in members])
        for p in members:
            got = method.model_for(new, p).parts.head["head.weight"]
            np.testing.assert_allclose(got, mean, rtol=1e-5)


# ------------------------------------------------------------------ MIRA


@pytest.mark.parametrize("kind", ["complete", "random"])
def test_mira_steps_on_the_factors_as_numpy_does(kind: str) -> None:
    spaces = {"a": 2, "b": 3}
    method = build("mira", {"graph": kind, "eta": 0.1}, setting("personal", EQUAL, spaces))
    players = crew(method)
    free = build("mira", {"eta": 0.0}, method.setting)
    before = shown(free, crew(free), play(free, [ALL]))
    moved = shown(method, players, play(method, [ALL], players))
    edges = np.full((6, 6), 1 / 5) - np.eye(6) / 5
    if kind == "random":
        edges = graph.random(6, rng_for(method.setting.seed, "mira-graph"))
        assert len(np.unique(edges)) > 10
    for k in ALL:
        for name, x in before[k].items():
            near = [p for p in ALL if name in before[p] and before[p][name].shape == x.shape]
            pull = sum(edges[k, p] * (x.astype(float) - before[p][name]) for p in near)
            np.testing.assert_allclose(moved[k][name], x - 0.1 * pull, atol=1e-6)


def test_who_was_not_drawn_keeps_its_model_and_pulls_the_others() -> None:
    method = equal("mira", eta=0.5)
    players = crew(method)
    states = list(rounds(method, [[0, 1, 2], [0]], players))
    first, second = (shown(method, players, state) for state in states)
    for p in (1, 2, 3, 4, 5):
        assert distance(second[p], first[p]) == 0
    alone = equal("mira", eta=0.0)
    started = replace(states[0], round=2, phase=0)
    update = [players[0].answer(job) for job in method.plan(started, [0]) or []]
    unmoved = shown(alone, players, alone.merge(started, iter(update)))
    assert distance(second[0], unmoved[0]) > 1e-3


@pytest.mark.parametrize(
    ("options", "bound"), [({"eta": 1.01}, "1"), ({"eta": 0.9, "graph": "random"}, r"0\.\d+")]
)
def test_a_step_that_overshoots_is_refused_with_its_bound(
    options: dict[str, object], bound: str
) -> None:
    with pytest.raises(ConfigError, match=rf"strategy\.options\.eta: .*set {bound} or less"):
        equal("mira", **options)
    equal("mira", eta=1.0)


# ------------------------------------------------------------------ IFCA


def test_ifcas_models_differ_from_the_start_in_a_and_heads_at_the_scale_of_the_seeded() -> None:
    method = equal("ifca", clusters=3)
    job = (method.plan(replace(method.start(), round=1), [4]) or [])[0]
    own = method.setting.initial_for(4)
    assert (job.action, len(job.choices), job.parts.shapes()) == ("train.choose", 3, {})
    for name, tensor in {**own.body(), **own.head}.items():
        drawn = [{**c.body(), **c.head}[name] for c in job.choices]
        np.testing.assert_array_equal(drawn[0], tensor)
        if name.endswith("lora_B"):  # no model adds anything to the frozen weights yet
            assert not any(d.any() for d in drawn)
            continue
        assert all(not np.allclose(x, y) for x, y in combinations(drawn, 2))
        for d in drawn:
            assert d.std() == pytest.approx(tensor.std(), rel=0.6)
    # So the first choice is one, though all products are zero.
    assert len(set(Player(method.setting, 4).losses(job))) == 3
    other = build("ifca", {"clusters": 3}, replace(method.setting, seed=1))
    again = (other.plan(replace(other.start(), round=1), [4]) or [])[0]
    assert distance(dict(again.choices[0].head), dict(job.choices[0].head)) == 0
    assert distance(dict(again.choices[1].head), dict(job.choices[1].head)) > 0.1


def test_everybody_trains_the_model_of_lowest_loss_and_is_served_it() -> None:
    method = equal("ifca", clusters=3)
    players = crew(method)
    state = replace(method.start(), round=1)
    jobs = method.plan(state, ALL) or []
    losses = {job.partition: players[job.partition].losses(job) for job in jobs}
    merged = method.merge(state, (players[job.partition].answer(job) for job in jobs))
    assert merged.clusters == {p: int(np.argmin(losses[p])) for p in ALL}
    for p in ALL:
        assert method.model_for(merged, p).key == f"cluster-{merged.clusters[p]}"
    unchosen = {0, 1, 2} - set(merged.clusters.values())
    for cluster in unchosen:
        assert merged.bodies[f"cluster-{cluster}"] is state.bodies[f"cluster-{cluster}"]


def test_dealt_clients_train_every_model_once_and_then_choose() -> None:
    method = equal("ifca", clusters=3, start="assigned")
    players = crew(method)
    state = opened(method, players)
    jobs = method.plan(state, ALL) or []
    assert all(len(job.choices) == 1 for job in jobs)  # and one model goes down
    merged = method.merge(state, (players[job.partition].answer(job) for job in jobs))
    assert sorted(merged.clusters.values()) == [0, 0, 1, 1, 2, 2]
    later = method.plan(replace(merged, round=2, phase=0), [0]) or []
    assert len(later[0].choices) == 3


@pytest.mark.parametrize("losses", [None, np.zeros(3), np.zeros((4, 1))])
def test_losses_that_are_not_one_a_model_are_refused(losses: Array | None) -> None:
    method = equal("ifca")
    state = replace(method.start(), round=1)
    job = (method.plan(state, [2]) or [])[0]
    good = Player(method.setting, 2).answer(job)
    check_schema(job, good)
    bad = replace(good, fingerprint={} if losses is None else {"losses": losses})
    with pytest.raises(WireError, match="losses"):
        check_schema(job, bad)
    with pytest.raises(AggregationError, match="4 models"):
        method.merge(state, iter([bad]))


# ------------------------------------------------------------------ differences


def test_comparators_that_must_differ_do() -> None:
    found: dict[str, list[Dense]] = {}
    options = {"ifca": {"clusters": 8}}
    atlases = ("atlas", "atlas_cluster_mean", "atlas_uniform_rank", "atlas_no_laplacian")
    controls = ("atlas_one_cluster", "random_cluster")
    for name in (*MERGED, "mira", "fedit", "local_only", *atlases, *controls):
        method = of_rank(name, EQUAL, **options.get(name, {}))
        players = planted(method)
        state = play(method, [ALL], players)
        if name == "local_only":
            jobs = [method.job(state, p, "evaluate") for p in ALL]
            found[name] = [players[job.partition].effective(job) for job in jobs]
        else:
            found[name] = [believed(method, state, p) for p in ALL]
    for one, other in combinations(found, 2):
        gaps = [distance(x, y) for x, y in zip(found[one], found[other], strict=True)]
        assert max(gaps) > 1e-3 or {one, other} == {"cluster_fedavg", "fl_tac"}, (one, other)
    # On planted groups K-means finds what fingerprints find: the same means, as it should be.
    for x, y in zip(found["cluster_fedavg"], found["fl_tac"], strict=True):
        assert distance(x, y) <= 1e-6


def test_k_means_on_noise_finds_other_clusters_than_fingerprints() -> None:
    models = [after(equal(name), [ALL]) for name in ("cluster_fedavg", "fl_tac")]
    assert max(distance(x, y) for x, y in zip(*models, strict=True)) > 1e-3
