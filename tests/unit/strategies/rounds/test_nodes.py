"""A node that comes back under another id serves its partition again; an impostor doesn't."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from flwr.app import Error, Message, RecordDict

from atlas_flwr.engine.inline import InlineGrid
from atlas_flwr.greeting import pack_hello
from strategies.rounds.nodes import refreshed


class Nodes(InlineGrid):
    """A grid whose nodes come and go; each claims a partition, or is silent (None)."""

    def __init__(self, listed: dict[int, int | None]) -> None:
        super().__init__(None, 0)  # type: ignore[arg-type]
        self.listed = listed
        self.asked: list[int] = []

    def get_node_ids(self) -> Iterable[int]:
        return list(self.listed)

    def _run(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        self.asked.append(node)
        claim: Any = self.listed.get(node)
        if claim is None:
            return Message(Error(5, "Node Unavailable"), reply_to=message)
        return Message(RecordDict() if claim < 0 else pack_hello(claim), reply_to=message)


@pytest.mark.parametrize(
    ("listed", "new", "asked"),
    [
        ({10: 0, 11: 1}, {0: 10, 1: 11}, []),
        ({10: 0}, {0: 10, 1: 11}, []),  # gone, and nobody new
        ({10: 0, 12: 1}, {0: 10, 1: 12}, [12]),  # back under another id
        ({10: 0, 11: None, 12: 1}, {0: 10, 1: 12}, [12, 11]),  # its ghost is still listed
        ({10: 0, 11: 1, 12: 1}, {0: 10, 1: 11}, [12, 11]),  # an impostor
        ({10: 0, 12: 1, 13: 1}, {0: 10, 1: 11}, [12, 13]),  # two for one place
        ({10: 0, 11: 1, 12: 7}, {0: 10, 1: 11}, [12]),  # of no partition of the run
        ({10: 0, 11: 1, 12: -1, 13: None}, {0: 10, 1: 11}, [12, 13]),  # says nothing
    ],
)
def test_who_is_who(listed: dict[int, int | None], new: dict[int, int], asked: list[int]) -> None:
    grid = Nodes(listed)
    assert refreshed(grid, {0: 10, 1: 11}, 1.0) == new
    assert grid.asked == asked
