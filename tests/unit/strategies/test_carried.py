"""What a client's model really is, put together from messages, is what the server believes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from atlas_flwr.types import Job, Update
from federations import ALL, Dense, added, believed, distance, equal, size, widest
from players import Player, crew, opened, play, rounds
from strategies.base import Method, State
from strategies.registry import STRATEGIES

CARRIERS = ["fedex", "fedsb", "flora", "rolora"]
SOME = [[0, 1], [2, 3], [0, 4, 5], [1], ALL]
LOST = {
    "none": set(),
    "a score": {(1, "evaluate", 2), (2, "evaluate", 3), (3, "evaluate", 3), (3, "evaluate", 0)},
    "an update": {(1, "train", 1), (2, "train", 2), (3, "train", 5), (4, "evaluate", 5)},
}


def assert_told(method: Method, state: State, players: Sequence[Player]) -> None:
    """Compare each client's model with the server's, tensor by tensor."""
    for player in players:
        model = player.model(method.job(state, player.partition, "evaluate"))
        served = method.model_for(state, player.partition)
        if not {"lora_A", "lora_B"} & served.private and method.setting.ranks:
            # Deltas are added up in float32 by clients, in float64 by the server.
            assert distance(model.products(), believed(method, state, player.partition)) <= 1e-6
        drawn = {} if served.draw else {m: f.a for m, f in model.parts.adapter.items()}
        for module, factors in served.parts.adapter.items():
            if module in drawn and factors.a.size:
                np.testing.assert_array_equal(drawn[module], factors.a)
        for key, tensor in {**served.parts.head, **served.parts.weights}.items():
            found = {**model.parts.head, **model.parts.weights}[key]
            np.testing.assert_array_equal(found, tensor)


@pytest.mark.parametrize("lose", LOST.values(), ids=LOST)
def test_a_clients_model_is_what_the_server_believes(
    name: str, lose: set[tuple[int, str, int]]
) -> None:
    for method in (widest(name), equal(name)):
        players = crew(method)
        for state in rounds(method, SOME, players, lose):
            assert_told(method, state, players)


def test_full_participation_is_the_same_story(name: str) -> None:
    method = widest(name)
    players = crew(method)
    for state in rounds(method, [ALL] * 3, players):
        assert_told(method, state, players)


@pytest.mark.parametrize("name_", CARRIERS)
@pytest.mark.parametrize("seed", range(4))
def test_no_change_is_added_twice_or_missed_however_answers_are_lost(name_: str, seed: int) -> None:
    """Long enough for deltas to outgrow their modules' dimensions, which are 24."""
    rng = np.random.default_rng(seed)
    cohorts = [np.flatnonzero(rng.random(6) < 0.5) if r % 4 else ALL for r in range(10)]
    lose = {
        (round_, phase, partition)
        for round_ in range(1, 11)
        for phase in ("train", "evaluate")
        for partition in ALL
        if rng.random() < 0.4
    }
    method = widest(name_)
    players = crew(method)
    for state in rounds(method, [sorted(map(int, c)) for c in cohorts], players, lose):
        assert_told(method, state, players)


@pytest.mark.parametrize("name_", ["flora", "fedex"])
def test_a_client_that_never_answers_is_told_all_in_the_end(name_: str) -> None:
    method = widest(name_)
    players = crew(method)
    silent = {(round_, "evaluate", 5) for round_ in range(1, 7)}
    for state in rounds(method, [[0, 1, 2]] * 6 + [ALL], players, silent):
        job = method.job(state, 5, "evaluate")
        assert job.carried[0] == (0 if state.round < 7 else 7)
        assert state.delivered.get(5, 0) == job.carried[0]
        # The others carry all: what only this one lacks is in the whole, and not kept beside it.
        assert len(state.changes) <= 2
        assert_told(method, state, players)


@pytest.mark.parametrize("name_", ["flora", "fedex"])
def test_deltas_are_the_sum_of_what_was_applied(name_: str) -> None:
    method = widest(name_)
    players = crew(method)
    total: Dense = {}
    for state in rounds(method, SOME, players):
        change = {m: f.product() for m, f in state.changes[state.round]["global"].items()}
        total = added(total, change)
        held = {m: f.product() for m, f in method.model_for(state, 0).parts.delta.items()}
        assert distance(held, total) <= 1e-12
        for module, factors in method.model_for(state, 0).parts.delta.items():
            assert factors.rank <= min(len(factors.b), factors.a.shape[1]), module


def test_flora_starts_each_round_from_new_directions() -> None:
    method = widest("flora")
    players = crew(method)
    seen: dict[tuple[int, ...], list[np.ndarray]] = {}
    for state in rounds(method, [ALL] * 3, players):
        for player in players:
            model = player.model(method.job(state, player.partition, "evaluate"))
            factors = model.parts.adapter["m.q"]
            assert not factors.b.any()
            seen.setdefault((player.partition,), []).append(factors.a)
    for draws in seen.values():
        assert all(size({"a": draws[i] - draws[i + 1]}) > 0.1 for i in range(2))


def test_fedsbs_frozen_factors_are_sent_once_and_never_again() -> None:
    for options in ({}, {"init": "seeded"}):
        method = widest("fedsb", **options)
        players = crew(method)
        state = opened(method, players)
        first = method.plan(state, ALL) or []
        assert all(job.parts.adapter for job in first)
        for state in rounds(method, [ALL, [0, 3]], players):
            job = method.job(state, 3, "evaluate")
            assert not job.parts.adapter
            assert job.parts.core


@pytest.mark.parametrize("name_", sorted(STRATEGIES))
def test_the_same_message_twice_gives_the_same_answer(name_: str) -> None:
    """A client that is asked again, its first answer being lost, does the same work again."""
    method = widest(name_)
    jobs: list[tuple[Job, Update]] = []

    class Twice(Player):
        def answer(self, job: Job) -> Update:
            first, second = super().answer(job), super().answer(job)
            for key, tensor in first.parts.body().items():
                np.testing.assert_array_equal(second.parts.body()[key], tensor)
            jobs.append((job, second))
            return second

    twice = [Twice(method.setting, partition) for partition in ALL]
    play(method, [ALL, [1, 3], ALL], twice)
    assert jobs
