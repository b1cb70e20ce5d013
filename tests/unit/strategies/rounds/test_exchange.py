"""The exchange against grids that answer late, early, all at once, in error, or never."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from atlas_flwr.engine.inline import InlineGrid
from atlas_flwr.errors import AtlasError
from atlas_flwr.greeting import pack_hello
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Job, LoraFactors, ModelParts, Report, Update
from strategies.rounds.exchange import exchange, greet, telling_line
from strategies.rounds.rules import check_schema, draw_cohort

app = ClientApp()


@app.train()
def echo(message: Message, context: Context) -> Message:
    partition = int(context.node_config["partition-id"])
    if partition in message.content.array_records["fail"]["who"].numpy():
        raise RuntimeError(f"client {partition} broke")
    content = RecordDict(
        {
            "arrays": ArrayRecord([np.full(3, partition, np.float32)]),
            "metrics": MetricRecord({"partition": partition}),
        }
    )
    return Message(content, reply_to=message)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    return Message(pack_hello(int(context.node_config["partition-id"])), reply_to=message)


class Bursts(InlineGrid):
    """Replies come in bursts, shuffled; each reply is handed out once, as Flower does."""

    def __init__(self, clients: int, seed: int, silent: Iterable[int] = ()) -> None:
        super().__init__(app, clients)
        self._rng, self._silent = np.random.default_rng(seed), set(silent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        asked = list(message_ids)
        unknown = set(asked) - set(self._pending)
        assert not unknown, "asked again for a reply that was handed out"
        able = [i for i in asked if self._pending[i].metadata.dst_node_id not in self._silent]
        burst = self._rng.permutation(able)[: self._rng.integers(0, len(able) + 1)]
        return [self._run(self._pending.pop(str(i))) for i in burst]


def messages(grid: InlineGrid, fail: tuple[int, ...] = ()) -> Iterator[Message]:
    who = np.array(fail, np.int64)
    for node in grid.get_node_ids():
        content = RecordDict({"fail": ArrayRecord({"who": Array(who)})})
        yield Message(content, node, "train")


def partitions(replies: Iterable[Message]) -> list[int | str]:
    return [
        telling_line(reply.error.reason)
        if reply.has_error()
        else int(reply.content.array_records["arrays"].to_numpy_ndarrays()[0][0])
        for reply in replies
    ]


FRAME = '  File "client.py", line 3, in fit\n    raise OSError("…")\n          ^^^^^^^\n'
RAY = "<class 'ray.exceptions.RayTaskError(ClientAppException)'>:<'ray::ClientAppActor.run()\n"


@pytest.mark.parametrize(
    ("reason", "line"),
    [
        (None, "the client failed without a word"),
        (" \n", "the client failed without a word"),
        ("the client is not connected", "the client is not connected"),
        (f"Traceback:\n{FRAME}OSError: no space left\n", "OSError: no space left"),
        (f"Traceback:\n{FRAME}OSError: two\n  lines\n", "OSError: two lines"),
        (f"{FRAME}KeyError: 'a'\n\nDuring …\n{FRAME}OSError: b\n", "OSError: b"),
        (
            f"{RAY}{FRAME}flwr.ClientAppException: \n"
            "Exception ClientAppException occurred. Message: two\nlines'>",
            "two lines",
        ),
    ],
)
def test_a_failure_is_told_in_one_line(reason: str | None, line: str) -> None:
    assert telling_line(reason) == line


@pytest.mark.parametrize("seed", range(5))
def test_replies_come_back_in_order_whatever_their_arrival(seed: int) -> None:
    grid = Bursts(7, seed)
    assert partitions(exchange(grid, messages(grid), 10)) == list(range(7))


def test_a_failed_client_is_answered_for_in_its_turn() -> None:
    grid = Bursts(4, 0)
    found = partitions(exchange(grid, messages(grid, fail=(2,)), 10))
    assert found == [0, 1, "RuntimeError: client 2 broke", 3]


def test_a_silent_client_is_named_by_the_timeout() -> None:
    grid = Bursts(3, 0, silent=[3])  # the node of partition 1
    found = partitions(exchange(grid, messages(grid), 0.2))
    assert found[0] == 0
    assert "run.client-timeout" in str(found[1])


def test_a_client_that_is_not_connected_is_lost() -> None:
    class Refusing(InlineGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            wanted = [m for m in messages if m.metadata.dst_node_id != 3]
            return super().push_messages(wanted)

    grid = Refusing(app, 3)
    found = partitions(exchange(grid, messages(grid), 1))
    assert found == [0, "the client is not connected", 2]


def test_hello_maps_partitions_to_nodes_and_refuses_twins() -> None:
    assert {p: one.node for p, one in greet(Bursts(3, 1), 3, 5).items()} == {0: 2, 1: 3, 2: 4}
    with pytest.raises(AtlasError, match=r"partitions \[3\] did not say hello"):
        greet(InlineGrid(app, 3), 4, 0.1)
    twins = InlineGrid(app, 2)
    twins._contexts[3].node_config["partition-id"] = 0
    with pytest.raises(AtlasError, match="two clients say they are partition 0"):
        greet(twins, 2, 5)


def test_the_inline_engine_turns_exceptions_into_replies() -> None:
    grid = InlineGrid(app, 2)
    replies = list(grid.send_and_receive(messages(grid, fail=(0,))))
    assert [reply.has_error() for reply in replies] == [True, False]
    assert isinstance(replies[0].error, Error)


# ------------------------------------------------------------------ rules


def test_cohorts_follow_the_seed_and_the_round_alone() -> None:
    drawn = [draw_cohort(7, r, 10, 0.3) for r in range(1, 6)]
    assert drawn == [draw_cohort(7, r, 10, 0.3) for r in range(1, 6)]
    assert drawn != [draw_cohort(8, r, 10, 0.3) for r in range(1, 6)]
    assert len({tuple(c) for c in drawn}) > 1
    assert all(len(set(c)) == 3 and c == sorted(c) for c in drawn)
    assert draw_cohort(0, 1, 10, 0.01) == sorted(draw_cohort(0, 1, 10, 0.01))
    assert len(draw_cohort(0, 1, 10, 0.01)) == 1
    assert draw_cohort(0, 1, 10, 1.0) == list(range(10))


def test_each_part_of_a_stream_name_matters() -> None:
    base = (1, "batches", 2, 3)
    first = rng_for(*base).integers(0, 2**60)
    assert first == rng_for(*base).integers(0, 2**60)
    for other in ((2, "batches", 2, 3), (1, "x", 2, 3), (1, "batches", 3, 3), (1, "batches", 2, 4)):
        assert first != rng_for(*other).integers(0, 2**60)


def _update(a: np.ndarray, b: np.ndarray, rows: int = 1) -> Update:
    return Update(0, Report(rows), ModelParts(adapter={"m": LoraFactors(a, b, 1.0)}))


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (_update(np.ones((1, 3)), np.ones((4, 1))), r"m\.lora_A: shape \(1, 3\)"),
        (_update(np.ones((3, 2)), np.ones((2, 3))), "shape"),
        (_update(np.full((2, 3), np.inf), np.ones((4, 2))), "not finite"),
        (_update(np.ones((2, 3)), np.ones((4, 2)), rows=0), "0 rows"),
        (Update(0, Report(1)), "asked for and returned tensors differ"),
    ],
)
def test_updates_that_are_not_what_was_sent_are_refused(update: Update, message: str) -> None:
    sent = ModelParts(adapter={"m": LoraFactors(np.zeros((2, 3)), np.zeros((4, 2)), 1.0)})
    with pytest.raises(AtlasError, match=message):
        check_schema(Job(0, "train", 1, expects=sent.shapes()), update)


def test_each_arrival_starts_the_clock_again() -> None:
    """Clients that wait for a free worker are busy, not silent."""

    class Slow(InlineGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            time.sleep(0.15)
            return super().pull_messages(message_ids)

    grid = Slow(app, 6)
    assert partitions(exchange(grid, messages(grid), 0.5)) == list(range(6))
