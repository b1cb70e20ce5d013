"""What the tables say of a method is what it does: bytes of messages, distance, distinct models."""

from __future__ import annotations

import functools

import pytest

from atlas_flwr.types import Job, Update
from atlas_flwr.wire import count_bytes, pack_job, pack_update
from federations import ALL, LABELS, QUIET, setting
from players import BEFORE, Player, rounds
from strategies.base import Method, State
from strategies.facts import FACTS
from strategies.registry import STRATEGIES, build

MODULES = {"m.0.q": (256, 256), "m.0.up": (512, 256)}
D_OUT, D_IN, FLOAT = 768, 512, 4
RANK, MIXED = 8, (8, 4, 16, 8, 4, 16)
HEADER = 300  # a NumPy header, a name and Flower's record, at most, for a tensor
LAST = 4  # full rounds; the last two make up both halves of RoLoRA
DENSITY = 0.25
IFCA_MODELS = 4


def c(rank: int) -> int:
    return FLOAT * rank * (D_OUT + D_IN)


# What a word of the tables is in bytes, at least and at most, for a client of a rank among several.
WORDS = {
    "0": lambda rank, ranks: (0, 0),
    "C": lambda rank, ranks: (c(rank), c(rank)),
    "C/2": lambda rank, ranks: (FLOAT * rank * D_IN, FLOAT * rank * D_OUT),  # A or B
    "ΣC": lambda rank, ranks: (sum(map(c, ranks)),) * 2,
    "C + (m−1)C at most": lambda rank, ranks: (c(rank), len(ranks) * c(rank)),
    "MC": lambda rank, ranks: (IFCA_MODELS * c(rank),) * 2,
    "r² a module": lambda rank, ranks: (FLOAT * rank**2 * len(MODULES),) * 2,
    "dC + a bitmap": lambda rank, ranks: ((DENSITY + 1 / 32) * c(rank),) * 2,
}
# Routers are told apart from adapters: tests/unit/strategies/test_fedlease.py weighs them. A pool
# is trained where the rows are.
ELSEWHERE = {"fedlease", "centralised"}
# They give ranks by themselves, up to what was given: tests of ranks weigh those.
ALLOCATING = {
    name
    for name, m in STRATEGIES.items()
    if "ranks" in m.options_type.model_fields and name != "atlas_uniform_rank"
}


class Weighed(Player):
    """A player who notes the adapter bytes of every message, down and up, by round and phase."""

    def answer(self, job: Job) -> Update:
        update = super().answer(job)
        kind, _, action = job.action.partition(".")
        if action not in {name.partition(".")[2] for name in BEFORE}:
            self.notes = getattr(self, "notes", {})
            sizes = [count_bytes(r)["adapter"] for r in (pack_job(job, ""), pack_update(update))]
            tensors = len(job.parts.body()) + len(job.parts.delta) * 2 + len(update.parts.body())
            tensors += sum(len(parts.body()) for parts in job.choices)
            self.notes[job.round, kind] = (*sizes, 2 * tensors)
        return update


@functools.cache
def played(name: str) -> tuple[Method, State, list[Weighed]]:
    ranks = MIXED if STRATEGIES[name].mixed_ranks else (RANK,) * 6
    options = dict(QUIET.get(name, {}))
    if name in ALLOCATING:
        options["ranks"] = "fixed"
    policy = STRATEGIES[name].head or "per_task"
    method = build(name, options, setting(policy, ranks, LABELS, MODULES))
    players = [Weighed(method.setting, partition) for partition in ALL]
    *_, state = rounds(method, [ALL] * LAST, players)
    return method, state, players


def test_every_method_has_its_facts() -> None:
    assert FACTS.keys() == STRATEGIES.keys()


def test_a_paper_has_an_address_and_the_other_way_round(name: str) -> None:
    facts = FACTS[name]
    assert bool(facts.url) == (facts.paper not in ("", "ours"))


def test_bytes_are_those_of_the_messages(name: str) -> None:
    if name in ELSEWHERE:
        return
    method, _, players = played(name)
    for player, rank in zip(players, method.setting.ranks, strict=True):
        notes = [player.notes[LAST, kind] for kind in ("train", "evaluate")]
        down, up, tensors = (max(sizes) for sizes in zip(*notes, strict=True))
        for word, got in ((FACTS[name].down, down), (FACTS[name].up, up)):
            least, most = WORDS[word](rank, method.setting.ranks)
            assert 0.99 * least <= got <= most + HEADER * tensors, (name, word, got, least, most)


@pytest.mark.parametrize("name", [n for n in STRATEGIES if FACTS[n].exact in ("yes", "no")])
def test_exact_means_that_the_measured_error_is_nought(name: str) -> None:
    _, state, _ = played(name)
    error = state.measured.aggregation_error
    assert error is not None
    assert (error <= 1e-6) == (FACTS[name].exact == "yes")


def test_the_mean_is_personal_where_there_is_none(name: str) -> None:
    _, state, _ = played(name)
    none = state.measured.aggregation_error is None
    assert none == (FACTS[name].exact == "personal" or name == "local_only")


def test_clients_end_with_as_many_models_as_is_said(name: str) -> None:
    method, state, _ = played(name)
    names = {method.model_for(state, partition).key.partition("-rank-")[0] for partition in ALL}
    match FACTS[name].models:
        case "personal" | "personal head":
            assert len(names) == len(ALL)
        case "one a cluster":
            assert len(names) <= len(ALL)
        case _:  # one body; heads by task
            assert names <= {"global", "task-a", "task-b"}
