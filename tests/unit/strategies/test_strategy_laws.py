"""Laws of every method's merge, over the whole registry, with clients in plain NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.flat import flatten
from atlas_flwr.types import Array
from federations import (
    ALL,
    EQUAL,
    EQUAL_VOICES,
    MIXED,
    Dense,
    believed,
    distance,
    equal,
    of_rank,
    setting,
    widest,
)
from players import Player, crew, first_round, play
from strategies.allocated import Allocated
from strategies.atlas import Stepping
from strategies.base import Method, State
from strategies.registry import STRATEGIES, build

# A round is no plain step to a mean: Adam moves each number by its own rate, and MIRA's graph has
# no sizes.
NOT_A_MEAN = {"fedadam", "mira"}


def shown(method: Method, state: State) -> Dense:
    """What the server knows of each model: products, factors that came alone, weights, heads."""
    found: Dense = {}
    for partition in ALL:
        parts = method.model_for(state, partition).parts
        kinds = {**believed(method, state, partition), **parts.head, **parts.weights}
        for module, factors in parts.adapter.items():
            if not factors.whole:
                kinds |= {f"{module}.alone": factors.a}
        found |= {f"{partition}/{key}": tensor for key, tensor in kinds.items()}
    return found


def assert_close(left: Dense, right: Dense, within: float = 1e-6) -> None:
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        assert distance({key: tensor}, {key: right[key]}) <= within, key


def next_start(
    method: Method, state: State, players: Sequence[Player], partition: int
) -> Dense | None:
    """What the client's next training starts from; None if it is asked for nothing."""
    jobs = method.plan(replace(state, round=2, phase=0), ALL) or []
    job = next((job for job in jobs if job.partition == partition), None)
    return None if job is None else players[partition].effective(job)


def dense_options(name: str) -> dict[str, float]:
    """Options under which nothing is dropped, rows are weights, and ranks are the setting's."""
    if issubclass(STRATEGIES[name], Allocated) and name != "atlas_uniform_rank":
        return {"ranks": "fixed"}  # type: ignore[dict-item]
    match name:
        case "flasc":
            return {"down-density": 1.0, "up-density": 1.0}
        case "hetlora":
            return {"weights": "examples"}  # type: ignore[dict-item]
        case _:
            return {}


# ------------------------------------------------------------------ who is served what


def can_be(name: str, policy: str, ranks: Sequence[int]) -> bool:
    """Whether the method is defined for a head policy and ranks."""
    method = STRATEGIES[name]
    only = method.head or ("per_task" if (name, policy) == ("ditto", "local") else policy)
    return policy == only and (method.mixed_ranks or len(set(ranks)) == 1)


CASES = [
    pytest.param(name, policy, ranks, id=f"{name}-{policy}-{len(set(ranks))}")
    for name in sorted(STRATEGIES)
    for policy in ("shared", "per_task", "local")
    for ranks in (EQUAL, MIXED)
    if can_be(name, policy, ranks)
]


@pytest.mark.parametrize(("name_", "policy", "ranks"), CASES)
def test_every_model_is_whole_at_the_client_and_what_is_private_is_not_sent(
    name_: str, policy: str, ranks: tuple[int, ...]
) -> None:
    method = build(name_, {}, setting(policy, ranks))
    players = crew(method)
    state = play(method, [ALL, ALL], players)
    for partition in ALL:
        served, job = method.model_for(state, partition), method.job(state, partition, "evaluate")
        for part in served.private:
            assert not flatten(job.parts.only(part)), part
            assert not flatten(served.parts.only(part)), part
        parts = players[partition].model(job).parts
        assert parts.head
        assert {m: f.rank for m, f in parts.adapter.items()} == dict.fromkeys(
            parts.adapter, ranks[partition]
        )
        assert all(factors.whole for factors in parts.adapter.values())
        assert served.since == (2 if served.private else 0)


def test_clients_of_one_key_hold_one_model(name: str) -> None:
    for method in (widest(name), equal(name)):
        players = crew(method)
        state = play(method, [ALL, [0, 3], [1, 4, 5]], players)
        models: dict[str, tuple[Dense, dict[str, Array]]] = {}
        for partition in ALL:
            served = method.model_for(state, partition)
            model = players[partition].model(method.job(state, partition, "evaluate"))
            products, head = models.setdefault(served.key, (model.products(), model.parts.head))
            assert distance(model.products(), products) <= 1e-6
            assert_close(dict(model.parts.head), head, 0.0)


def test_round_zero_is_the_seeded_start_at_every_rank(name: str) -> None:
    method = widest(name)
    for player in crew(method):
        own = method.setting.initial_for(player.partition)
        model = player.model(method.job(method.start(), player.partition, "evaluate"))
        assert set(model.products()) == set(own.adapter)
        assert not any(matrix.any() for matrix in model.products().values())
        assert_close(dict(model.parts.head), dict(own.head), 0.0)
        for module, factors in model.parts.adapter.items():
            seeded = own.adapter[module].a
            # FLASC's clients are sent the largest entries alone.
            there = factors.a != 0 if name == "flasc" else np.ones_like(seeded, bool)
            np.testing.assert_array_equal(factors.a[there], seeded[there])


# ------------------------------------------------------------------ what a merge may do


def test_clients_that_return_what_they_were_sent_are_a_fixed_point(name: str) -> None:
    # A graph step of less than the whole way goes on until the cluster agrees.
    whole = {"eta": 1.0} if issubclass(STRATEGIES[name], Stepping) else {}
    whole = {"eta": 5 / 6} if name == "mira" else whole
    method = equal(name, **whole)
    players = crew(method)
    state = replace(play(method, [ALL], players), round=2, phase=0, memory={})
    before = shown(method, state)
    for player in players:
        player.noise = 0.0
    updates = [players[job.partition].answer(job) for job in method.plan(state, ALL) or []]
    assert_close(shown(method, method.merge(state, iter(updates))), before)


def test_merging_changes_no_input(name: str) -> None:
    method = widest(name)
    players = crew(method)
    state = replace(play(method, [ALL], players), round=2, phase=0)
    updates = [players[job.partition].answer(job) for job in method.plan(state, ALL) or []]
    tensors = {
        f"{update.partition}/{kind}/{key}": tensor
        for update in updates
        for kind, named in flatten(update.parts).items()
        for key, tensor in named.items()
    }
    bits = {key: tensor.copy() for key, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.flags.writeable = False
    before = shown(method, state)
    method.merge(state, iter(updates))
    assert_close(tensors, bits, 0.0)
    assert_close(shown(method, state), before, 0.0)


def test_scaling_all_example_counts_changes_nothing(name: str) -> None:
    method = widest(name)
    plain, scaled = crew(method), crew(method)
    for player in scaled:
        player.rows *= 7
    states = [play(method, [ALL, [1, 2, 5]], players) for players in (plain, scaled)]
    assert_close(*(shown(method, state) for state in states))


def test_a_merge_of_nobody_keeps_the_models(name: str) -> None:
    method = widest(name)
    players = crew(method)
    state = replace(play(method, [ALL], players), round=2, phase=0)
    after = method.merge(state, iter(()))
    assert_close(shown(method, after), shown(method, state), 0.0)
    assert after.measured.aggregation_error is None
    for player in players:
        jobs = [method.job(s, player.partition, "evaluate") for s in (state, after)]
        assert_close(*(player.effective(job) for job in jobs), 0.0)


def test_the_order_of_clients_does_not_matter(name: str) -> None:
    method = widest(name)
    state, updates = first_round(method)
    rng = np.random.default_rng(0)
    shuffled = [updates[i] for i in rng.permutation(len(updates))]
    after = [method.merge(state, iter(order)) for order in (updates, shuffled)]
    assert_close(*(shown(method, each) for each in after))


# ------------------------------------------------------------------ what a mean must give


@pytest.mark.parametrize("name_", sorted(STRATEGIES.keys() - NOT_A_MEAN))
@pytest.mark.parametrize("alone", [3, 1])
def test_a_client_alone_gets_back_its_own_model(name_: str, alone: int) -> None:
    method = widest(name_, **dense_options(name_))
    players = crew(method)
    state = play(method, [[alone]], players)
    start = next_start(method, state, players, alone)
    if start is not None:  # centralised asks one client a task
        assert distance(start, players[alone].said) <= 1e-6


@pytest.mark.parametrize("name_", sorted(STRATEGIES.keys() - NOT_A_MEAN))
def test_identical_clients_give_their_common_model(name_: str) -> None:
    method = equal(name_, **dense_options(name_))
    players = crew(method, voice=0)
    state = play(method, [ALL], players)
    for partition in ALL:
        start = next_start(method, state, players, partition)
        if start is not None:
            assert distance(start, players[0].said) <= 1e-6


@pytest.mark.parametrize("name_", sorted(STRATEGIES.keys() - NOT_A_MEAN - EQUAL_VOICES))
def test_a_client_with_nearly_all_rows_decides(name_: str) -> None:
    # Under raFLoRA others own the bands above its rank, whatever its rows.
    ranks = MIXED if STRATEGIES[name_].mixed_ranks and name_ != "raflora" else EQUAL
    method = of_rank(name_, ranks, **dense_options(name_))
    players = crew(method)
    players[2].rows = 10**11
    state = play(method, [ALL], players)
    start = next_start(method, state, players, 2)
    if start is not None:
        assert distance(start, players[2].said) <= 1e-6


@pytest.mark.parametrize("name_", ["fedavg", "fedprox", "fedper", "fedrep", "ditto", "centralised"])
def test_full_fine_tuning_is_numpys_weighted_average(name_: str) -> None:
    method = of_rank(name_, ())
    players = crew(method)
    state, updates = first_round(method, players)
    state = method.merge(state, iter(updates))
    job = (method.plan(replace(state, round=2, phase=0), ALL) or [])[0]
    group = [u for u in updates if method.body_key(u.partition) == method.body_key(0)]
    rows = [update.report.num_examples for update in group]
    for key, tensor in players[0].model(job).parts.weights.items():
        oracle = np.average([u.parts.weights[key] for u in group], axis=0, weights=rows)
        np.testing.assert_allclose(tensor, oracle, rtol=1e-5, atol=1e-7)
    assert state.measured.aggregation_error is None  # the mean of weights is no product
    assert state.measured.truncation_error is None
