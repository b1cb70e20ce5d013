"""Ranks by module: within the budget, from the cluster's gradients, and really in the model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atlas_flwr.errors import AggregationError, ConfigError
from atlas_flwr.ranks.budget import Grant
from atlas_flwr.types import Report, Update
from federations import ALL, MIXED, MODULES, TASKS, initial, of_rank, setting
from players import crew, opened, play
from strategies.allocated import Allocated
from strategies.registry import STRATEGIES, build, widest_rank

COST = {module: sum(shape) for module, shape in MODULES.items()}
HOWS = ("importance", "uniform", "random", "reversed")


def spent(ranks: dict[str, int]) -> int:
    return sum(COST[m] * r for m, r in ranks.items())


@pytest.mark.parametrize("how", HOWS)
def test_the_budget_is_that_of_the_clients_ranks_and_is_never_exceeded(how: str) -> None:
    method = of_rank("atlas", MIXED, ranks=how)
    state = opened(method, crew(method))
    for partition in ALL:
        budget = MIXED[partition] * sum(COST.values())
        left = budget - spent(dict(state.ranks[partition]))
        assert 0 <= left < max(COST.values())  # but for the one step that no longer fits


@pytest.mark.parametrize("how", HOWS)
def test_clients_train_and_keep_the_ranks_they_were_given(how: str) -> None:
    method = of_rank("atlas", MIXED, ranks=how)
    players = crew(method)
    state = opened(method, players)
    for job in method.plan(state, ALL) or []:
        given = dict(state.ranks[job.partition])
        assert job.parts.ranks() == given
        assert job.expects["m.q.lora_A"] == (given["m.q"], MODULES["m.q"][1])
        answer = players[job.partition].answer(job)
        assert answer.parts.ranks() == given
    state = play(method, [ALL, ALL], crew(method))
    for partition in ALL:
        assert method.model_for(state, partition).parts.ranks() == dict(state.ranks[partition])


def test_a_module_that_matters_to_a_cluster_gets_more_of_its_budget() -> None:
    """The players of task a put their energy into the first module, those of b into the last."""
    method = of_rank("atlas", [8] * 6)
    state = opened(method, crew(method))
    for partition in ALL:
        ranks = state.ranks[partition]
        first, last = ranks["m.q"], ranks["m.up"]
        assert first > last if TASKS[partition] == "a" else last > first
    reversed_ = opened(of_rank("atlas", [8] * 6, ranks="reversed"), crew(method))
    assert reversed_.ranks[0]["m.up"] > reversed_.ranks[0]["m.q"]


def test_the_ways_to_allocate_differ_at_equal_bytes() -> None:
    ranks = {
        how: opened(of_rank("atlas", [8] * 6, ranks=how), crew(of_rank("atlas", [8] * 6))).ranks
        for how in HOWS
    }
    assert ranks["importance"] != ranks["uniform"] != ranks["reversed"] != ranks["importance"]
    assert ranks["random"] != ranks["importance"]


def test_equal_ranks_under_the_budget_of_the_setting_are_the_settings() -> None:
    method = of_rank("atlas", MIXED, ranks="uniform")
    state = opened(method, crew(method))
    for partition in ALL:
        assert set(state.ranks[partition].values()) == {MIXED[partition]}
    seeded = initial(MIXED[0]).adapter["m.q"]
    assert method.model_for(state, 0).parts.adapter["m.q"].scale == seeded.scale


def test_a_device_grants_what_it_affords() -> None:
    least = sum(COST.values())
    grants = tuple(Grant(least * (1 + p), "uplink", "phone") for p in ALL)
    own = replace(setting("personal", [8] * 6), grants=grants)
    method = build("atlas", {"ranks": "uniform"}, own)
    state = opened(method, crew(method))
    assert [set(state.ranks[p].values()) for p in ALL] == [{1 + p} for p in ALL]
    told = state.found["ranks"]["clients"]["3"]
    assert (told["device"], told["by"], told["allowed"]) == ("phone", "uplink", 4 * least)
    assert told["used"] == spent(told["ranks"]) == 4 * least
    with pytest.raises(ConfigError, match=r"devices\.profiles: 'phone' .* needs 144"):
        build("atlas", {}, replace(own, grants=(Grant(least - 1, "uplink", "phone"),) * 6))


def test_what_makes_no_sense_together_is_refused_with_a_remedy() -> None:
    patterned = setting("personal", [4] * 6)
    parts = initial(4)
    odd = {**parts.adapter, "m.up": initial(2).adapter["m.up"]}
    own = {key: replace(parts, adapter=odd) if key[1] == 4 else p
           for key, p in patterned.initial.items()}  # fmt: skip
    with pytest.raises(ConfigError, match=r"lora\.rank-pattern: .*ranks = 'fixed'"):
        build("atlas", {}, replace(patterned, initial=own))
    build("atlas", {"ranks": "fixed"}, replace(patterned, initial=own))
    with pytest.raises(ConfigError, match=r"max-rank: 8 is below the rank 16 of partition 3"):
        of_rank("atlas", MIXED, **{"max-rank": 8})
    with pytest.raises(ConfigError, match=r"options\.noise: 1 covers the fingerprint.*'uniform'"):
        of_rank("atlas", [4] * 6, noise=1.0, clip=1.0)
    of_rank("atlas", [4] * 6, noise=1.0, clip=1.0, ranks="uniform")


def test_who_tells_no_gradients_is_refused() -> None:
    method = of_rank("atlas", [4] * 6)
    state, players = replace(method.start(), round=1), crew(method)
    jobs = method.plan(state, ALL) or []
    answers = [players[job.partition].answer(job) for job in jobs]
    print_ = {k: v for k, v in answers[2].fingerprint.items() if k != "importance"}
    answers[2] = Update(2, Report(10), fingerprint=print_)
    with pytest.raises(AggregationError, match="partition 2: told singular values of shape"):
        method.merge(state, iter(answers))


def test_only_methods_that_allocate_ask_for_wide_factors() -> None:
    allocating = {name for name in STRATEGIES if widest_rank(name, {})}
    assert allocating == {n for n, method in STRATEGIES.items() if issubclass(method, Allocated)}
    assert {"atlas", "oracle_cluster", "atlas_no_laplacian"} < allocating
    assert not {"fedavg", "cluster_fedavg", "mira", "local_only"} & allocating
    assert widest_rank("atlas", {"ranks": "fixed"}) == 0
    assert widest_rank("atlas", {"max-rank": 7}) == 7


def test_no_laplacian_is_local_training_at_the_allocated_ranks() -> None:
    """With nothing averaged before the step, ATLAS at η = 0 is each client's training alone."""
    method = of_rank("atlas_no_laplacian", [8] * 6)
    players, alone = crew(method), crew(method)
    state = play(method, [ALL, ALL], players)
    start = opened(method, alone)
    for player in alone:
        parts = method.whole(start, player.partition)
        for round_ in (1, 2):
            served = method.train_job(replace(start, round=round_), player.partition)
            answer = player.answer(replace(served, parts=parts))
            parts = answer.parts
        for module, factors in parts.adapter.items():
            got = state.bodies[f"client-{player.partition}"].adapter[module]
            assert (got.a == factors.a).all()
            assert (got.b == factors.b).all()
