"""Every strategy goes on from a state that was written and read back as if nothing had been."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from atlas_flwr.engine.checkpoint import settled
from atlas_flwr.engine.codec import encode
from federations import ALL, widest
from players import Player, crew
from strategies.base import Method, State
from strategies.registry import STRATEGIES

COHORTS = (ALL, (0, 2, 3, 5), ALL)


def one_round(method: Method, state: State, players: list[Player], cohort: Any) -> State:
    """Drive a method through one round as the federation does."""
    state = replace(state, round=state.round + 1, phase=0)
    while jobs := method.plan(state, sorted(cohort)):
        state = method.merge(state, (players[job.partition].answer(job) for job in jobs))
        state = method.acknowledged(state, jobs)
    jobs = [method.job(state, p, "evaluate") for p in range(method.setting.clients)]
    for job in jobs:
        players[job.partition].answer(job)
    return settled(method.acknowledged(state, jobs), (State,))


def written(state: State) -> tuple[Any, dict[str, bytes]]:
    tree, tensors = encode(state)
    return tree, {name: tensor.tobytes() for name, tensor in tensors.items()}


# Options that keep something more between the rounds.
KEEPING: tuple[dict[str, Any], ...] = (
    {"eta": "auto"},
    {"error-feedback": True},
    {"graph": "rbf", "cross": 0.5},
    {"variant": "ffa"},
    {"every": 1},
)


@pytest.mark.parametrize(
    ("name", "options"), [*((n, {}) for n in STRATEGIES), *(("atlas", o) for o in KEEPING)]
)
def test_a_new_server_goes_on_to_the_same_bits(name: str, options: dict[str, Any]) -> None:
    method = widest(name, **options)
    players, state = crew(method), method.start()
    for cohort in COHORTS:
        state = one_round(method, state, players, cohort)

    again = crew(method)
    resumed = settled(widest(name, **options).start(), (State,))
    for cohort in COHORTS:  # a server of its own for each round: nothing lives but the state
        server = widest(name, **options)
        resumed = one_round(server, settled(resumed, (State,)), again, cohort)
    assert written(resumed) == written(state)
