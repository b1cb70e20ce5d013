"""Heads and label spaces, server optimizers, and what is refused before a run begins."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from atlas_flwr.errors import ConfigError
from federations import ALL, EQUAL, EQUAL_VOICES, MIXED, ON_A_GRAPH, equal, grouped, setting
from players import crew, first_round, play
from strategies.base import Method, State
from strategies.registry import STRATEGIES, build, parse_options

POLICIES = ("shared", "per_task", "local")


def head(method: Method, state: State, partition: int) -> np.ndarray:
    return method.model_for(state, partition).parts.head["head.weight"]


# ------------------------------------------------------------------ heads


@pytest.mark.parametrize("name_", ["fedavg", "flora", "flexlora", "fedsb", "rolora", "flasc"])
def test_heads_follow_their_policy(name_: str) -> None:
    served = {}
    for policy in POLICIES:
        method = build(name_, {}, setting(policy))
        state = play(method, [ALL])
        served[policy] = [method.model_for(state, p) for p in ALL]
    shared, per_task, local = (served[policy] for policy in POLICIES)
    assert len({s.key for s in shared}) == 1
    assert [s.key for s in per_task] == ["task-a"] * 3 + ["task-b"] * 3
    assert [s.key for s in local] == [f"client-{p}" for p in ALL]
    assert all("head" in s.private and not s.parts.head for s in local)
    a, b = (per_task[p].parts.head["head.weight"] for p in (0, 3))
    assert not np.allclose(a, b)
    for name, tensor in per_task[0].parts.body().items():  # the body is everybody's
        np.testing.assert_array_equal(tensor, per_task[3].parts.body()[name])


def test_heads_are_numpys_weighted_average_in_their_group(name: str) -> None:
    method = equal(name)
    state, updates = first_round(method)
    after = method.merge(state, iter(updates))
    groups: dict[str, list[Any]] = {}
    for update in updates:
        if update.parts.head:
            key = grouped(method, after).head_key(update.partition)
            groups.setdefault(key, []).append(update)
    for key, group in groups.items():
        heads = [update.parts.head["head.weight"] for update in group]
        oracle = np.average(heads, axis=0, weights=[u.report.num_examples for u in group])
        # They step towards a mean, or give no client its rows' weight.
        if name not in {"fedadam"} | ON_A_GRAPH | EQUAL_VOICES:
            np.testing.assert_allclose(after.heads[key]["head.weight"], oracle, rtol=1e-5)


@pytest.mark.parametrize("name_", sorted(n for n, m in STRATEGIES.items() if m.head == "local"))
@pytest.mark.parametrize("policy", POLICIES)
def test_methods_of_local_heads_keep_them_whatever_the_policy(name_: str, policy: str) -> None:
    method = build(name_, {}, setting(policy))
    players = crew(method)
    state = play(method, [ALL, [0, 1]], players)
    assert "head" in method.private()
    assert not state.heads
    assert [method.model_for(state, p).since for p in ALL] == [2, 2, 1, 1, 1, 1]


def test_tasks_of_other_label_spaces_share_the_body_alone(name: str) -> None:
    policy = STRATEGIES[name].head or "per_task"
    ranks = MIXED if STRATEGIES[name].mixed_ranks else EQUAL
    method = build(name, {}, setting(policy, ranks, {"a": 2, "b": 3}))
    players = crew(method)
    state = play(method, [ALL, [0, 4]], players)
    for partition, rows in zip(ALL, (2, 2, 2, 3, 3, 3), strict=True):
        model = players[partition].model(method.job(state, partition, "evaluate")).parts
        assert model.head["head.weight"].shape == (rows, 5)


def test_a_shared_head_needs_one_label_space() -> None:
    with pytest.raises(ConfigError, match=r"model\.head.*\[2, 3\]"):
        build("fedavg", {}, setting("shared", labels={"a": 2, "b": 3}))


def test_absent_clients_keep_their_private_parts() -> None:
    method = build("local_only", {}, setting())
    state = play(method, [[0, 1], [1, 2]])
    assert [method.model_for(state, p).since for p in ALL] == [1, 2, 2, 0, 0, 0]


# ------------------------------------------------------------------ methods of one name


@pytest.mark.parametrize(("steps", "expected"), [("total", (12, 3)), ("client", (5, 1))])
def test_centralised_pools_each_task_at_equal_steps(steps: str, expected: tuple[int, int]) -> None:
    uneven = replace(setting(), steps=(3, 5, 4, 1, 1, 1))
    method = build("centralised", {"steps": steps}, uneven)
    jobs = method.plan(replace(method.start(), round=1), [4]) or []
    assert [(j.partition, j.pool, j.options["max-steps"]) for j in jobs] == [
        (0, (0, 1, 2), expected[0]),
        (3, (3, 4, 5), expected[1]),
    ]


def test_fedadam_counts_the_steps_of_a_group_and_not_the_rounds() -> None:
    method = equal("fedadam")
    late = play(method, [[0], [0], [3]])  # task b's head is first touched in round 3
    player = crew(method)[3]
    state = replace(method.start(), round=3)
    early = method.merge(state, iter([player.answer(j) for j in method.plan(state, [3]) or []]))
    np.testing.assert_allclose(head(method, late, 3), head(method, early, 3), rtol=1e-6)


def test_fedadams_first_step_is_its_closed_form() -> None:
    method = equal("fedadam", **{"learning-rate": 0.5, "tau": 0.25})
    state, updates = first_round(method)
    before = head(method, state, 0)
    heads = [update.parts.head["head.weight"].astype(float) for update in updates[:3]]
    change = np.average(heads, axis=0, weights=[10, 20, 30]) - before
    # As in Flower the rate carries the bias corrections: τ is not corrected beside √((1 − β₂) Δ²).
    oracle = before + 0.5 * 0.1 * change / (0.1 * np.abs(change) + 0.25)
    after = head(method, method.merge(state, iter(updates)), 0)
    np.testing.assert_allclose(after, oracle, rtol=1e-5)


# ------------------------------------------------------------------ refusals


def test_mixed_ranks_are_refused_where_factors_are_averaged(name: str) -> None:
    policy = STRATEGIES[name].head or "per_task"
    if STRATEGIES[name].mixed_ranks:
        build(name, {}, setting(policy, MIXED))
        return
    with pytest.raises(ConfigError, match=r"lora\.rank.*\[2, 4, 8, 16\]") as refused:
        build(name, {}, setting(policy, MIXED))
    assert "\n" not in str(refused.value)
    named = set(re.findall(r"'(\w+)'", str(refused.value)))
    takes = {other for other, method in STRATEGIES.items() if method.mixed_ranks}
    # One learns from nobody; of personal models on a graph ATLAS stands for all.
    assert named == takes - {"local_only"} - ON_A_GRAPH | {"atlas"}


def test_full_fine_tuning_is_refused_where_factors_are_merged(name: str) -> None:
    policy = STRATEGIES[name].head or "per_task"
    if not STRATEGIES[name].needs_lora:
        method = build(name, {}, setting(policy, ()))
        play(method, [ALL, [1, 2]])
        return
    with pytest.raises(ConfigError, match=r"model\.adaptation.*'full'.*'lora'") as refused:
        build(name, {}, setting(policy, ()))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name_", "options", "message"),
    [
        ("fedavgg", {}, "did you mean 'fedavg'"),
        ("fedprox", {"mu": -1}, r"strategy\.options\.mu.*-1"),
        ("fedprox", {"muu": 1}, r"strategy\.options\.muu.*did you mean 'mu'"),
        ("fedavg", {"mu": 1}, "it has no options"),
        ("fedit", {"mu": 1}, "it has no options"),
        ("fedavgm", {"momentum": 1.0}, r"strategy\.options\.momentum"),
        ("fedadam", {"beta-1": "x"}, r"strategy\.options\.beta-1.*'x'"),
        ("hetlora", {"weights": "norms"}, r"strategy\.options\.weights.*'norms'"),
        ("hetlora", {"prune-keep": 0.0}, r"strategy\.options\.prune-keep.*0\.0"),
        ("hetlora", {"prune-penalty": -1.0}, r"strategy\.options\.prune-penalty.*-1\.0"),
        ("flexlora", {"write-back": "dense"}, r"strategy\.options\.write-back.*'dense'"),
        ("raflora", {"write-back": 1}, r"strategy\.options\.write-back.*1"),
        ("ffa", {"average": "mine"}, r"strategy\.options\.average.*'mine'"),
        ("lora_fair", {"ridge": float("inf")}, r"strategy\.options\.ridge.*inf"),
        ("lora_fair", {"ridge": -0.1}, r"strategy\.options\.ridge.*-0\.1"),
        ("flasc", {"up-density": 0.0}, r"strategy\.options\.up-density.*0\.0"),
        ("flasc", {"down-density": 1.5}, r"strategy\.options\.down-density.*1\.5"),
        ("fedrep", {"head-epochs": 0}, r"strategy\.options\.head-epochs.*0"),
        ("ditto", {"lambda": -1.0}, r"strategy\.options\.lambda.*-1\.0"),
        ("fedsb", {"init": "svd"}, r"strategy\.options\.init.*'svd'"),
        ("centralised", {"steps": "most"}, r"strategy\.options\.steps.*'most'"),
    ],
)
def test_wrong_names_and_options_are_one_line(
    name_: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse_options(name_, options)
    assert "\n" not in str(refused.value)


def test_ditto_refuses_a_shared_model_without_a_head() -> None:
    with pytest.raises(ConfigError, match=r"model\.head: 'local' with 'ditto'"):
        build("ditto", {}, setting("local"))
