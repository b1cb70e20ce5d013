"""FFA, RoLoRA and FedSA: which factor travels, trains and stays, message by message."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from atlas_flwr.flat import flatten
from atlas_flwr.types import Job, ModelParts, Update
from federations import ALL, EQUAL, MIXED, of_rank, widest
from players import Player, rounds
from strategies.base import Method, State

SOME = [ALL, [0, 3], ALL, [1, 2, 4], ALL]


class Recorder(Player):
    """A player that remembers what it was asked and said."""

    log: list[tuple[Job, Update]]

    def answer(self, job: Job) -> Update:
        update = super().answer(job)
        self.log = [*getattr(self, "log", []), (job, update)]
        return update


def watched(
    method: Method, cohorts: Sequence[Sequence[int]] = SOME
) -> Iterator[tuple[State, list[Recorder], list[tuple[Job, Update]]]]:
    """Yield each round's state, the players, and the messages of the round."""
    players = [Recorder(method.setting, partition) for partition in ALL]
    for state in rounds(method, cohorts, players):
        messages = [pair for p in players for pair in p.log if pair[0].round == state.round]
        yield state, players, messages


def names(parts: ModelParts) -> set[str]:
    """The endings of all adapter tensors of a message."""
    return {name.rpartition(".")[2] for name in flatten(parts).get("adapter", {})}


def factor(players: Sequence[Player], method: Method, state: State, side: str) -> list[np.ndarray]:
    """A factor of everybody's own model."""
    models = [p.model(method.job(state, p.partition, "evaluate")).parts for p in players]
    return [getattr(model.adapter["m.up"], side) for model in models]


@pytest.mark.parametrize("average", ["all", "owners"])
@pytest.mark.parametrize("ranks", [EQUAL, MIXED], ids=["equal", "mixed"])
def test_ffas_a_is_the_seeded_one_for_ever_and_never_travels(
    average: str, ranks: tuple[int, ...]
) -> None:
    method = of_rank("ffa", ranks, average=average)
    for state, players, messages in watched(method):
        for job, update in messages:
            assert names(job.parts) == {"lora_B"}
            assert names(update.parts) <= {"lora_B"}
            assert not job.action.startswith("train") or names(update.parts)
        for player in players:
            seeded = method.setting.initial_for(player.partition).adapter
            model = player.model(method.job(state, player.partition, "evaluate")).parts
            for module, factors in model.adapter.items():
                np.testing.assert_array_equal(factors.a, seeded[module].a)
                assert factors.b.any()


def test_rolora_trains_b_in_odd_rounds_and_a_in_even_ones() -> None:
    method = widest("rolora")
    before: dict[str, np.ndarray] = {}
    for state, players, messages in watched(method):
        active, frozen = ("lora_B", "lora_A") if state.round % 2 else ("lora_A", "lora_B")
        asked = [(job, update) for job, update in messages if job.action == "train"]
        assert [job.partition for job, _ in asked] == list(SOME[state.round - 1])
        for job, update in asked:
            assert names(update.parts) == {active}
            assert [stage.trains for stage in job.stages] == [{active, "head"}]
        sides = {"lora_A": "a", "lora_B": "b"}
        now = {part: factor(players, method, state, side) for part, side in sides.items()}
        for tensors in now.values():  # one frozen factor, and one active one, for everybody
            for tensor in tensors[1:]:
                np.testing.assert_array_equal(tensor, tensors[0])
        if before:
            np.testing.assert_array_equal(now[frozen][0], before[frozen])
            assert not np.allclose(now[active][0], before[active], atol=1e-3)
        before = {part: tensors[0] for part, tensors in now.items()}


def test_rolora_sends_what_changed_and_resends_it_to_who_was_lost() -> None:
    method = widest("rolora")
    players = [Recorder(method.setting, partition) for partition in ALL]
    lose = {(2, "evaluate", 5), (3, "evaluate", 5)}
    sent: dict[int, dict[int, set[str]]] = {}
    for state in rounds(method, [[0, 1]] * 5, players, lose):
        scored = {p.partition: p.log[-1][0] for p in players}
        sent[state.round] = {partition: names(job.parts) for partition, job in scored.items()}
    for partition in range(5):
        changed = [sent[round_][partition] for round_ in range(1, 6)]
        assert changed == [{"lora_B"}, {"lora_A"}, {"lora_B"}, {"lora_A"}, {"lora_B"}]
    both = {"lora_A", "lora_B"}
    assert [sent[round_][5] for round_ in range(1, 6)] == [
        {"lora_B"},
        {"lora_A"},  # lost
        both,  # lost again
        both,
        {"lora_B"},
    ]


@pytest.mark.parametrize("ranks", [EQUAL, MIXED], ids=["equal", "mixed"])
def test_fedsas_b_and_head_never_leave_and_its_a_is_shared(ranks: tuple[int, ...]) -> None:
    method = of_rank("fedsa", ranks)
    own: dict[int, ModelParts] = {}
    for state, players, messages in watched(method):
        for job, update in messages:
            for parts in (job.parts, update.parts):
                assert not parts.head
                assert names(parts) <= {"lora_A"}
            assert not job.action.startswith("train") or names(update.parts) == {"lora_A"}
        shared = factor(players, method, state, "a")
        for one, rank in zip(shared, ranks, strict=True):
            twin = shared[ranks.index(rank)]
            np.testing.assert_array_equal(one, twin)
            if rank == max(ranks):  # rows are averaged over their owners, and nested
                for other in shared:
                    np.testing.assert_allclose(other, one[: len(other)], rtol=1e-6)
        for player in players:
            partition = player.partition
            model = player.model(method.job(state, partition, "evaluate")).parts
            if partition not in SOME[state.round - 1] and partition in own:
                before = own[partition]
                np.testing.assert_array_equal(model.head["head.weight"], before.head["head.weight"])
                for module, factors in model.adapter.items():
                    np.testing.assert_array_equal(factors.b, before.adapter[module].b)
            own[partition] = model
    bs = [model.adapter["m.q"].b for model in own.values()]
    assert all(not np.array_equal(bs[0][:, :2], b[:, :2]) for b in bs[1:])


def test_fedsas_mean_of_a_is_numpys_row_by_row_over_owners() -> None:
    method = widest("fedsa")
    for state, _, messages in watched(method, [ALL]):
        told = {job.partition: u for job, u in messages if job.action == "train"}
        rows = [told[p].report.num_examples for p in ALL]
        served = method.model_for(state, 3).parts.adapter["m.q"].a
        for j in range(16):
            owners = [p for p in ALL if MIXED[p] > j]
            stack = [told[p].parts.adapter["m.q"].a[j] for p in owners]
            oracle = np.average(stack, axis=0, weights=[rows[p] for p in owners])
            np.testing.assert_allclose(served[j], oracle, rtol=1e-5, atol=1e-7)
