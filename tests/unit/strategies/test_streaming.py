"""How much of a round's updates a merge keeps in memory while it goes on."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from atlas_flwr.types import Array, Update
from federations import ALL, ON_A_GRAPH, ROBUST, widest
from players import crew, opened

# Who holds a round's updates by its docstring: to decide on all of them at once, or as the
# personal models that clients are served.
HOLDING = ROBUST | ON_A_GRAPH | {"fl_tac", "fedlease"}
TOGETHER = ROBUST | {"fl_tac"}  # such a rule asks for all before it decides on the first


def test_updates_are_folded_one_at_a_time_in_order_and_let_go(name: str) -> None:
    """What was yielded is dead, tensors too, by the time that others are asked for."""
    method = widest(name)
    players = crew(method)
    state = opened(method, players)
    jobs = method.plan(state, ALL) or []
    asked: list[int] = []
    updates: list[weakref.ref[Update]] = []
    tensors: list[list[weakref.ref[Array]]] = []

    def copied(update: Update) -> Update:
        parts = update.parts.with_body({n: t.copy() for n, t in update.parts.body().items()})
        head = {n: t.copy() for n, t in parts.head.items()}
        return replace(update, parts=replace(parts, head=head))

    def stream() -> Iterator[Update]:
        for job in jobs:
            asked.append(job.partition)
            update = [copied(players[job.partition].answer(job))]
            updates.append(weakref.ref(update[0]))
            flat = {**update[0].parts.body(), **update[0].parts.head}
            tensors.append([weakref.ref(tensor) for tensor in flat.values()])
            del flat
            yield update.pop()
            # A loop's own name for the last one lives on until it has the next.
            assert name in TOGETHER or alive(updates) <= 2
            # The first of a group is what the others are compared with; there are two tasks.
            assert name in HOLDING or sum(map(alive, tensors)) <= 3 * len(tensors[0])

    method.merge(state, stream())
    assert asked == [job.partition for job in jobs]
    assert len(asked) > 4 or name == "centralised"


def alive(references: Iterable[weakref.ref[Any]]) -> int:
    return sum(reference() is not None for reference in references)
