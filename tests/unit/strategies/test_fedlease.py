"""FedLEASE's server: experts from the B of a warm-up, means inside clusters, its bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.aggregation.experts import routers_of, unpack
from atlas_flwr.errors import ConfigError
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Array, Job, Update
from atlas_flwr.wire import count_bytes, pack_job, pack_update, read_job
from federations import ALL, Dense, believed, distance, equal, setting
from players import Player, crew, play, rounds
from strategies.base import Method, State
from strategies.registry import build

ROUNDS = [ALL] * 3


class Talented(Player):
    """A player whose movements have much in common with those of its task."""

    def move(self, job: Job, name: str, tensor: Array) -> Array:
        task = self.setting.tasks[self.partition]
        common = rng_for(0, f"talent/{task}/{name}").standard_normal(tensor.shape)
        return super().move(job, name, tensor) + (0.5 * common).astype(np.float32)


def talented(method: Method) -> list[Player]:
    return [Talented(method.setting, p) for p in ALL]


def mean(updates: dict[int, Update], members: list[int], tensor: str) -> Array:
    rows = [updates[p].report.num_examples for p in members]
    return np.average([updates[p].parts.body()[tensor] for p in members], axis=0, weights=rows)


def answers(method: Method, state: State, players: list[Player]) -> dict[int, Update]:
    state = replace(state, round=state.round + 1, phase=0)
    return {j.partition: players[j.partition].answer(j) for j in method.plan(state, ALL) or []}


# ------------------------------------------------------------------ experts


def test_two_planted_groups_are_found_after_one_round() -> None:
    method = equal("fedlease")
    state = play(method, [ALL], talented(method))
    assert dict(state.clusters) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1}
    facts = method.explain(state)
    assert (facts["k"], facts["partitions"]) == (2, [*ALL])
    assert set(facts["silhouette_by_number_of_experts"]) == {"2", "3", "4"}
    assert facts["clusters"] == {"0": 0, "1": 0, "2": 0, "3": 1, "4": 1, "5": 1}


def test_experts_and_routers_are_numpys_means_inside_their_cluster() -> None:
    method = equal("fedlease")
    players = talented(method)
    state = replace(method.start(), round=0)
    for _ in range(3):
        updates = answers(method, state, players)
        state = replace(state, round=state.round + 1, phase=0)
        state = method.merge(state, iter(updates.values()))
        for members in ([0, 1, 2], [3, 4, 5]):
            for partition in members:
                parts = method.model_for(state, partition).parts
                for name, tensor in replace(parts, weights={}).body().items():
                    np.testing.assert_allclose(tensor, mean(updates, members, name), rtol=1e-5)
                for name, router in routers_of(parts.weights).items():
                    if state.round > 1:  # the warm-up has none
                        oracle = mean(updates, members, name)
                        np.testing.assert_allclose(router, oracle, rtol=1e-5, atol=1e-7)


def test_everybody_is_served_the_other_clusters_experts_as_they_are() -> None:
    method = equal("fedlease")
    state = play(method, ROUNDS, talented(method))
    served = [method.model_for(state, p) for p in ALL]
    assert [s.key for s in served] == ["cluster-0-task-a"] * 3 + ["cluster-1-task-b"] * 3
    for own, other in ((0, 3), (3, 0)):
        for module, found in unpack(served[own].parts.weights).items():
            factors = served[other].parts.adapter[module]
            assert (found.own, found.count) == (own // 3, 2)
            ((a, b),) = found.others.values()
            np.testing.assert_array_equal(a, factors.a)
            np.testing.assert_array_equal(b, factors.b)


def test_the_first_routers_are_one_draw_of_the_seed_for_all() -> None:
    method = equal("fedlease")
    state = play(method, [ALL], talented(method))
    first, last = (routers_of(method.model_for(state, p).parts.weights) for p in (0, 5))
    for name, router in first.items():
        np.testing.assert_array_equal(router, last[name])
        d_in = router.shape[1]
        assert router.shape == (3, d_in)
        assert 0 < np.abs(router).max() <= 1 / np.sqrt(d_in)


def test_the_tasks_never_matter_but_for_heads() -> None:
    shared = build("fedlease", {}, setting("shared"))
    state = play(shared, ROUNDS, talented(shared))
    blind = build("fedlease", {}, replace(setting("shared"), tasks=("a",) * 6))
    other = play(blind, ROUNDS, talented(shared))
    assert state.clusters == other.clusters
    for p in ALL:
        one, two = (m.model_for(s, p) for m, s in ((shared, state), (blind, other)))
        assert one.key == two.key == f"cluster-{p // 3}"
        for name, tensor in one.parts.body().items():
            np.testing.assert_array_equal(tensor, two.parts.body()[name])


# ------------------------------------------------------------------ limits


def models(method: Method, cohorts: list[object] | None = None) -> list[Dense]:
    state = play(method, cohorts or ROUNDS)  # type: ignore[arg-type]
    return [{**believed(method, state, p), **method.model_for(state, p).parts.head} for p in ALL]


def test_one_expert_is_fedit() -> None:
    for one, other in zip(
        models(equal("fedlease", **{"max-experts": 1})), models(equal("fedit")), strict=True
    ):
        assert distance(one, other) <= 1e-6


def test_own_experts_alone_are_fedit_inside_each_cluster() -> None:
    """And no router or other expert is ever sent."""
    method = equal("fedlease", experts="own")
    players = talented(method)
    state = play(method, ROUNDS, players)
    fedit = equal("fedit")
    for members in ([0, 1, 2], [3, 4, 5]):
        alone = play(fedit, [members] * 3, talented(fedit))
        for partition in members:
            assert not method.model_for(state, partition).parts.weights
            left, right = believed(method, state, partition), believed(fedit, alone, members[0])
            assert distance(left, right) <= 1e-6
    jobs = method.plan(replace(state, round=4, phase=0), ALL) or []
    assert {job.action for job in jobs} == {"train"}
    assert method.job(state, 0, "evaluate").action == "evaluate"


def test_mixtures_are_trained_and_scored_as_such() -> None:
    method = equal("fedlease", **{"warm-up-epochs": 7})
    first = method.plan(replace(method.start(), round=1), ALL) or []
    assert {(job.action, job.stages[0].epochs) for job in first} == {("train", 7)}
    state = play(method, [ALL], talented(method))
    jobs = method.plan(replace(state, round=2, phase=0), ALL) or []
    assert {(job.action, job.stages[0].epochs) for job in jobs} == {("train.experts", None)}
    assert method.job(state, 0, "evaluate").action == "evaluate.experts"
    assert method.job(method.start(), 0, "evaluate").action == "evaluate"


def test_who_comes_late_warms_up_and_is_placed_without_touching_the_experts() -> None:
    method = equal("fedlease")
    players = talented(method)
    *_, one, two = rounds(method, [[0, 1, 3, 4], [2, 5]], players)
    assert dict(one.clusters) == {0: 0, 1: 0, 3: 1, 4: 1}
    assert method.model_for(one, 2).key == "start-task-a"  # the seeded start, and its task's head
    assert dict(two.clusters) == {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1}
    for p in (0, 3):
        assert distance(believed(method, two, p), believed(method, one, p)) <= 1e-12
    assert distance(believed(method, two, 2), believed(method, two, 0)) == 0.0


def test_a_lost_warm_up_is_made_up_for() -> None:
    method = equal("fedlease")
    players = talented(method)
    one, two = rounds(method, [ALL, ALL], players, lose={(1, "train", 4)})
    assert 4 not in one.clusters
    assert two.clusters[4] == two.clusters[3] == 1


# ------------------------------------------------------------------ numbers of the merge


def test_the_measured_error_is_the_dense_one_over_the_clusters() -> None:
    method = equal("fedlease")
    players = talented(method)
    for state in rounds(method, [ALL, [0, 1, 3, 4], ALL], players):
        cohort = [0, 1, 3, 4] if state.round == 2 else [*ALL]
        exact, applied = {}, {}
        for cluster in (0, 1):
            who = [p for p in cohort if state.clusters[p] == cluster]
            rows = [players[p].rows for p in who]
            for module in players[0].said:
                said = [players[p].said[module] for p in who]
                exact[f"{cluster}/{module}"] = np.average(said, axis=0, weights=rows)
                expert = state.bodies[f"expert-{cluster}"].adapter[module]
                applied[f"{cluster}/{module}"] = expert.product()
        error = state.measured.aggregation_error
        assert error == pytest.approx(distance(applied, exact), rel=1e-4)
        assert error > 1e-3
        assert state.measured.truncation_error == {"4": pytest.approx(0.0, abs=1e-12)}


def test_identical_clients_share_one_expert_without_error() -> None:
    method = equal("fedlease")
    state = play(method, [ALL, ALL], crew(method, voice=0))
    assert set(state.clusters.values()) == {0}
    assert state.measured.aggregation_error <= 1e-6


# ------------------------------------------------------------------ bytes and refusals


def test_bytes_are_all_experts_and_routers_down_and_the_own_ones_up() -> None:
    modules, rank, experts = {"m.q": (256, 512), "m.up": (384, 256)}, 4, 2
    method = build("fedlease", {}, setting("per_task", modules=modules))
    players = talented(method)
    state = play(method, [ALL], players)
    adapter = 4 * rank * sum(d_out + d_in for d_out, d_in in modules.values())
    routers = 4 * (2 * experts - 1) * sum(d_in for _, d_in in modules.values())
    asked = method.plan(replace(state, round=2, phase=0), ALL) or []
    for job in [*asked, method.job(state, 0, "evaluate")]:
        content = pack_job(job, "")
        down, (heard, _) = count_bytes(content), read_job(content)
        assert down["adapter"] == pytest.approx(adapter, rel=0.05)
        assert down["weights"] == pytest.approx((experts - 1) * adapter + routers, rel=0.05)
        if job.action.startswith("train"):
            up = count_bytes(pack_update(players[job.partition].answer(heard)))
            assert up["adapter"] == pytest.approx(adapter, rel=0.05)
            assert up["weights"] == pytest.approx(routers, rel=0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experts": "all"}, r"strategy\.options\.experts.*'all'"),
        ({"max-experts": 0}, r"strategy\.options\.max-experts.*0"),
        ({"warm-up-epochs": -1}, r"strategy\.options\.warm-up-epochs.*-1"),
    ],
)
def test_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        equal("fedlease", **options)
