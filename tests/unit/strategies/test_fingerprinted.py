"""When fingerprints are asked for, of whom, and what becomes of late-comers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.aggregation.information import informative_rows
from atlas_flwr.engine.codec import encode
from atlas_flwr.errors import ConfigError
from atlas_flwr.fingerprint.privacy import epsilon
from federations import ALL, EQUAL, MIXED, TASKS, of_rank, widest
from players import PRINTED, Player, crew, play
from strategies.asking import Asking
from strategies.base import Method, State
from strategies.fingerprinted import FingerprintClustered
from strategies.found import METHODS
from strategies.registry import STRATEGIES, build

Asked = list[tuple[int, list[int]]]


def played(
    method: Method,
    cohorts: Sequence[Collection[int]],
    players: Sequence[Player],
    lose: Collection[int] = (),
) -> tuple[State, Asked]:
    """The state after the rounds, and who was asked for a fingerprint in which; the first answers
    of those in ``lose`` are lost."""
    state, asked, lost = method.start(), Asked(), set(lose)
    for number, cohort in enumerate(cohorts, start=1):
        state = replace(state, round=number, phase=0)
        while jobs := method.plan(state, sorted(cohort)):
            if jobs[0].action == "train.fingerprint":
                asked.append((number, [job.partition for job in jobs]))
            heard = [job for job in jobs if job.partition not in lost]
            lost -= {job.partition for job in jobs}
            state = method.merge(state, (players[job.partition].answer(job) for job in heard))
            state = method.acknowledged(state, heard)
    return state, asked


def test_everybody_is_asked_once() -> None:
    method = of_rank("atlas", MIXED)
    state, asked = played(method, [[0, 3], ALL, [1]], crew(method))
    assert asked == [(1, list(ALL))]
    assert sorted(state.prints) == list(ALL)


def test_who_comes_late_is_placed_and_given_ranks_and_changes_nobody_else() -> None:
    method = of_rank("atlas", MIXED)
    first, _ = played(method, [ALL], crew(method), lose=[4])
    assert sorted(first.clusters) == sorted(first.ranks) == [0, 1, 2, 3, 5]
    state, asked = played(method, [ALL, [0, 4]], crew(method), lose=[4])
    assert asked == [(1, list(ALL)), (2, [4])]
    assert state.clusters[4] == state.clusters[3] == state.clusters[5]
    assert {p: c for p, c in state.clusters.items() if p != 4} == dict(first.clusters)
    assert {p: r for p, r in state.ranks.items() if p != 4} == dict(first.ranks)
    told = state.found
    assert told["clusters"] == {str(p): c for p, c in sorted(state.clusters.items())}
    assert sorted(told["ranks"]["clients"]) == [str(p) for p in ALL]


def test_every_so_many_rounds_the_cohort_is_asked_again_and_all_are_clustered_anew() -> None:
    method = of_rank("atlas", MIXED, every=2)
    state, asked = played(method, [ALL, ALL, [0, 1, 3], ALL, ALL], crew(method))
    assert asked == [(1, list(ALL)), (3, [0, 1, 3]), (5, list(ALL))]
    once, _ = played(of_rank("atlas", MIXED), [ALL], crew(method))
    assert state.clusters == once.clusters  # rows have not changed
    assert state.ranks == once.ranks


ASKING = [name for name, method in STRATEGIES.items() if issubclass(method, Asking)]


@pytest.mark.parametrize("name", ASKING)
def test_who_never_answers_stops_nobody(name: str) -> None:
    """A client that is lost for good is asked whenever it is drawn; the others train on."""
    method = of_rank(name, MIXED if STRATEGIES[name].mixed_ranks else EQUAL)
    players, state = crew(method), method.start()
    for number in (1, 2, 3):
        state, actions = replace(state, round=number, phase=0), []
        while jobs := method.plan(state, ALL):
            actions.append((jobs[0].action, len(jobs)))
            heard = [job for job in jobs if job.partition != 4]
            state = method.merge(state, (players[job.partition].answer(job) for job in heard))
            state = method.acknowledged(state, heard)
        assert actions[:2] == [("train.fingerprint", 6 if number == 1 else 1), ("train", 5)]
    assert sorted(state.sizes) == [0, 1, 2, 3, 5]


def test_a_late_answer_does_not_delay_the_next_asking() -> None:
    method = of_rank("atlas", MIXED, every=2)
    _, asked = played(method, [ALL, [4], [0, 4], [1], [0]], crew(method), lose=[4])
    assert asked == [(1, list(ALL)), (2, [4]), (3, [0, 4]), (5, [0])]


def test_a_late_comer_unlike_all_others_is_a_cluster_of_its_own() -> None:
    method = of_rank("atlas", MIXED)
    state, _ = played(method, [[0, 1, 2], [0, 3]], crew(method), lose=[3, 4, 5])
    assert state.clusters[3] not in {state.clusters[p] for p in (0, 1, 2)}


class Moving(Player):
    """A client of task a that has rows of task b after its first fingerprint."""

    def _fingerprint(self, job):  # type: ignore[no-untyped-def]
        if job.round > 1:
            self.setting = replace(self.setting, tasks=("b", *TASKS[1:]))
        return super()._fingerprint(job)


def test_rows_that_change_change_the_cluster_when_asked_again() -> None:
    method = of_rank("atlas", MIXED, every=1)
    players = crew(method)
    players[0] = Moving(method.setting, 0)
    before, _ = played(method, [ALL], crew(method))
    after, _ = played(method, [ALL, ALL], players)
    assert before.clusters[0] == before.clusters[1] != before.clusters[3]
    assert after.clusters[0] == after.clusters[3] != after.clusters[1]
    assert after.ranks[0] == before.ranks[0]  # a model in training keeps its ranks


def test_what_was_cut_off_a_step_towards_others_is_dropped_with_them() -> None:
    """A tail of the first cluster's mean is no part of the next one's."""
    method = of_rank("atlas", [2] * 6, every=1, **{"ranks": "fixed", "error-feedback": True})
    players = [Moving(method.setting, 0), *crew(method)[1:]]
    first = play(method, [ALL], players)
    again = replace(first, round=2, phase=0)
    jobs = method.plan(again, ALL) or []
    again = method.merge(again, (players[job.partition].answer(job) for job in jobs))
    assert again.clusters[0] == again.clusters[3] != again.clusters[1]
    assert sorted(first.tails) == [*ALL]
    # Who left is a loss to those it left, and no news to those who got one more.
    assert sorted(again.tails) == [3, 4, 5]
    for p in (3, 4, 5):
        assert again.tails[p] is first.tails[p]


def test_a_new_cluster_begins_from_what_its_members_count_for() -> None:
    """Client 0 comes from a cluster of 23 informative rows to one of few."""
    counts = [(4, 36), (36, 4), (20, 20), (20, 20), (20, 20), (20, 20)]
    found = {}
    for weights in ("rows", "information"):
        method = of_rank("cluster_fedavg", EQUAL, every=1, weights=weights)
        players = [Moving(method.setting, 0), *crew(method)[1:]]
        players = [replace(p, counts=c, rows=40) for p, c in zip(players, counts, strict=True)]
        first = play(method, [ALL], players)
        again = replace(first, round=2, phase=0)
        jobs = method.plan(again, ALL) or []
        again = method.merge(again, (players[job.partition].answer(job) for job in jobs))
        assert again.clusters[0] == again.clusters[3]
        own = [first.bodies[f"cluster-{first.clusters[p]}"].adapter["m.q"].b for p in (0, 3, 4, 5)]
        worth = [40.0] * 4
        if weights == "information":
            worth = [informative_rows(counts[p]) for p in (0, 3, 4, 5)]
        mean = np.average(own, 0, worth)
        new = again.bodies[f"cluster-{again.clusters[0]}"].adapter["m.q"].b
        np.testing.assert_allclose(new, mean, atol=1e-6)
        found[weights] = new
    assert not np.allclose(found["rows"], found["information"], atol=1e-4)


@pytest.mark.parametrize("method_", METHODS)
def test_planted_tasks_are_found_by_every_clustering(method_: str) -> None:
    method = of_rank("atlas", MIXED, clustering=method_)
    state, _ = played(method, [ALL], crew(method))
    assert [state.clusters[p] for p in ALL] == [0, 0, 0, 1, 1, 1]
    assert state.found["k"] == 2


def test_noise_says_what_it_is_worth() -> None:
    noisy = {"noise": 2.0, "clip": 1.0, "ranks": "uniform", "every": 1}
    method = of_rank("atlas", MIXED, **noisy)
    state, _ = played(method, [ALL, ALL], crew(method))
    told = state.found["privacy"]
    assert told["times"] == 2  # asked twice: the two compose as one of a √2 smaller multiplier
    assert told["epsilon"] == epsilon(2.0 / 2**0.5, told["delta"])
    plain = of_rank("atlas", MIXED)
    assert "privacy" not in played(plain, [ALL], crew(plain))[0].found


def test_who_is_asked_again_spends_again_and_the_record_says_so() -> None:
    """Client 4's answer is lost twice, that of everybody in round 3 too."""
    method = of_rank("atlas", MIXED, noise=2.0, clip=1.0, ranks="uniform")
    lost = {(1, "train", 4), (2, "train", 4)}
    for number, lose in ((3, lost), (2, {(1, "train", 4)}), (1, set())):
        state = play(method, [ALL] * 4, lose=lose)
        told = state.found["privacy"]
        assert told["times"] == number
        assert told["epsilon"] == epsilon(2.0 / number**0.5, told["delta"])


def test_noise_does_not_make_strangers_alike() -> None:
    """η is of the rows that train, not of those that hidden means are worth."""
    etas = {}
    for noise in (0.0, 1.0):
        options = {"noise": noise, "clip": 12.0, "ranks": "uniform"}
        method = of_rank("atlas_one_cluster", MIXED, **options)
        etas[noise] = max(play(method, [ALL], crew(method)).etas.values())
    assert etas[0.0] < 0.02
    assert etas[1.0] < 0.15  # the largest spread that the clip allows stands in for the rows' own


BLIND = sorted({*ASKING, "ifca", "mira"} - {"oracle_cluster", "random_cluster", "fedlease"})


@pytest.mark.parametrize("name", BLIND)
def test_the_server_never_reads_the_tasks(name: str) -> None:
    """Six clients of two tasks, and the same clients whose server is told of six."""
    told = widest(name)
    own, tasks = told.setting, tuple(f"task of {p}" for p in ALL)
    labels = {task: own.num_labels[own.tasks[p]] for p, task in enumerate(tasks)}
    blind = build(name, {}, replace(own, tasks=tasks, num_labels=labels))
    tensors = []
    for method in (told, blind):
        state = play(method, [ALL, ALL], crew(told))
        tensors.append({n: t.tobytes() for n, t in encode(state)[1].items()})
        assert set(state.clusters.values()) != {0} or name in ("mira", "atlas_one_cluster")
    assert tensors[0] == tensors[1]


# ------------------------------------------------------------------ label mixes of clusters

POOLING = [name for name in ASKING if issubclass(STRATEGIES[name], FingerprintClustered)]


def adjusting(name: str, **options: object) -> Method:
    """The method of clients that adjust logits."""
    own = widest(name).setting
    return build(name, options, replace(own, adjusts=True))


@pytest.mark.parametrize("name", POOLING)
def test_clients_are_told_the_label_mix_of_their_cluster(name: str) -> None:
    """In every job that trains or scores; the sums are those of the rows dealt, by class."""
    method = adjusting(name, label_mix="cluster")
    players = crew(method)
    state, _ = played(method, [ALL], players)
    for partition in ALL:
        size = sum(c == state.clusters[partition] for c in state.clusters.values())
        even = (size * PRINTED // 2,) * 2
        assert method.train_job(state, partition).pooled == even
        assert method.job(state, partition, "evaluate", "full").pooled == even
    plain = adjusting(name)
    assert plain.train_job(state, 0).pooled == ()


def test_models_are_scored_for_a_step_with_the_same_mix() -> None:
    method = adjusting("atlas", label_mix="cluster", eta="auto")
    state, _ = played(method, [ALL], crew(method))
    jobs = method.plan(replace(state, round=1, phase=state.phase - 1), ALL)
    assert jobs
    assert {job.action for job in jobs} == {"train.score"}
    assert {job.pooled for job in jobs} == {(3 * PRINTED // 2,) * 2}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"noise": 1.0, "clip": 1.0, "ranks": "uniform"}, "without noise"),
        ({"fingerprint": "mean_gradient"}, "class_means"),
    ],
)
def test_a_label_mix_that_fingerprints_do_not_tell_is_refused(
    options: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=f"label-mix.*{says}"):
        adjusting("atlas", label_mix="cluster", **options)


def test_a_label_mix_that_nobody_adds_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"label-mix.*train\.logit-adjustment = 1"):
        widest("atlas", label_mix="cluster")


def test_a_label_mix_of_more_classes_than_are_measured_is_refused() -> None:
    own = widest("atlas").setting
    many = replace(own, adjusts=True, features=384, num_labels={"a": 2, "b": 300})
    many = replace(many, initial={**own.initial, **{(300, r): own.initial[2, r] for r in MIXED}})
    with pytest.raises(ConfigError, match=r"label-mix.*of 300 classes"):
        build("atlas", {"label-mix": "cluster"}, many)
