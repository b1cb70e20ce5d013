"""FLoRA and FedEx: what they merge into the frozen weights, what of it travels, what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from atlas_flwr.types import ModelParts, Part, Report, Update
from federations import ALL, LABELS, believed, distance, equal, setting
from players import Player, crew, first_round, rounds
from strategies.base import Method, State
from strategies.registry import build

WIDE = {"m.q": (768, 384)}  # rounding grows with the layer: small ones hide it
RANK = 8


def wide_fedex() -> Method:
    return build("fedex", {}, setting(ranks=(RANK,) * 6, labels=LABELS, modules=WIDE))


# ------------------------------------------------------------------ FedEx's residual


@pytest.mark.parametrize("noise", [1e-1, 1e-4, 1e-7])
@pytest.mark.parametrize("clients", [1, 2, 6])
def test_fedexs_residual_has_the_rank_that_its_bytes_are_told_by(
    clients: int, noise: float
) -> None:
    """``(m − 1) r``, however small the clients' movements are: none is sent for one client."""
    method = wide_fedex()
    players = [Player(method.setting, partition, noise=noise) for partition in ALL]
    state, updates = first_round(method, players)
    merged = method.merge(state, iter(updates[:clients]))
    job = method.job(merged, 0, "evaluate")
    assert sum(f.rank for f in job.parts.delta.values()) == (clients - 1) * RANK
    assert merged.measured.aggregation_error == pytest.approx(0.0, abs=1e-12)
    assert players[0].model(job).products().keys() == WIDE.keys()


def test_clients_that_share_a_factor_have_no_residual() -> None:
    method = wide_fedex()
    only_b: frozenset[Part] = frozenset({"lora_B", "head"})
    players = [Player(method.setting, partition, moves=only_b) for partition in ALL]
    state, updates = first_round(method, players)
    state = method.merge(state, iter(updates))
    assert not method.job(state, 0, "evaluate").parts.delta
    assert state.measured.aggregation_error == pytest.approx(0.0, abs=1e-12)


def test_what_cancels_leaves_no_rounding_behind() -> None:
    """Two clients with opposite B and one A: the mean is nothing, and so is the residual."""
    method = wide_fedex()
    state, updates = first_round(method, [Player(method.setting, p) for p in ALL])
    one = updates[0].parts.adapter["m.q"]
    pair = [
        Update(partition, Report(10), ModelParts({"m.q": factors}))
        for partition, factors in enumerate((one, replace(one, b=-one.b)))
    ]
    state = method.merge(state, iter(pair))
    assert not method.job(state, 0, "evaluate").parts.delta
    assert state.measured.aggregation_error is None  # 0/0


# ------------------------------------------------------------------ clients that go away


def kept(state: State) -> int:
    """Directions of m.q that the server keeps for those who lack some, beside the whole."""
    each = (change["global"].get("m.q") for change in state.changes.values())
    return sum(factors.rank for factors in each if factors is not None)


@pytest.mark.parametrize("name_", ["flora", "fedex"])
def test_a_client_that_goes_away_costs_the_server_no_more_each_round(name_: str) -> None:
    """And when it comes back it is told all that it lacks, as is who left after it."""
    method = equal(name_)
    players = crew(method)
    gone = {(round_, "evaluate", 5) for round_ in range(2, 30)}
    gone |= {(round_, "evaluate", 4) for round_ in range(9, 30)}
    cohorts = [ALL, *[[0, 1, 2, 3]] * 28, ALL, ALL]
    for state in rounds(method, cohorts, players, gone):
        if state.round == 29:
            assert state.delivered == {**dict.fromkeys(range(4), 29), 4: 8, 5: 1}
            assert len(state.changes) <= 4  # up to 8, since then, the last two
            assert kept(state) <= 4 * 24  # all that 40 x 24 has
        for player in players:
            model = player.model(method.job(state, player.partition, "evaluate"))
            assert distance(model.products(), believed(method, state, player.partition)) <= 1e-6
    assert set(state.delivered.values()) == {31}
