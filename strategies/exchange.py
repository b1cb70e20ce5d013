"""One exchange with many clients: messages out, replies back in order, memory flat.

Replies arrive in any order; float sums must not depend on it. A reply is yielded when its turn
comes, and one that arrives early waits on disk, so that memory never grows with the clients.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid

from atlas_flwr.errors import AtlasError
from atlas_flwr.types import Job, Update
from atlas_flwr.wire import HELLO, read_hello, read_update
from strategies.rules import check_schema

_POLL_SECONDS = 0.01
# What Flower's Ray actor puts before the error's own text.
_WRAPPED = "Exception ClientAppException occurred. Message: "
_LONGEST = 500
_NO_REPLY = 0  # Flower's code for an unknown error


def exchange(grid: Grid, messages: Iterable[Message], timeout: float) -> Iterator[Message]:
    """Send messages and yield exactly one reply for each, in the order they were given.

    A client that is not connected, fails, or stays silent past the timeout is answered for by an
    error message with the reason.

    Args:
        grid: Flower's way to the clients.
        messages: What is sent; a generator is drained one message at a time.
        timeout: Seconds without any reply after which the silent clients are lost. Clients wait
            for a free worker, so each arrival starts the clock again.
    """
    turns: dict[str, int] = {}
    addressed: list[Message] = []
    for message in messages:
        for message_id in grid.push_messages([message]):
            turns[message_id] = len(addressed)
        addressed.append(_envelope(message))
    with tempfile.TemporaryDirectory(prefix="atlas-spool-") as folder:
        inbox = _Inbox(grid, turns, Path(folder), timeout)
        for turn, envelope in enumerate(addressed):
            reply = inbox.take(turn)
            if isinstance(reply, str):
                reply = Message(Error(_NO_REPLY, reply), reply_to=envelope)
            yield reply


def say_hello(grid: Grid, clients: int, timeout: float) -> dict[int, int]:
    """Wait for the clients and return the node id of each partition.

    Args:
        grid: Flower's way to the clients.
        clients: Partitions that must be there: ``0 … clients - 1``.
        timeout: Seconds without a new arrival, and seconds to answer, after which nobody is
            waited for any longer.

    Raises:
        AtlasError: Fewer clients than expected answered in time, or two say they are the same.
    """
    ids = _arrivals(grid, clients, timeout)
    nodes: dict[int, int] = {}
    failed: list[str] = []
    greetings = [Message(RecordDict(), node, HELLO) for node in ids]
    for node, reply in zip(ids, exchange(grid, greetings, timeout), strict=True):
        if reply.has_error():
            failed.append(telling_line(reply.error.reason))
            continue
        partition = read_hello(reply.content)
        if partition in nodes:
            raise AtlasError(f"two clients say they are partition {partition}")
        nodes[partition] = node
    if missing := [p for p in range(clients) if p not in nodes]:
        why = failed[0] if failed else f"{len(ids)} clients are connected, run.clients is {clients}"
        raise AtlasError(f"partitions {missing} did not say hello: {why}")
    return {partition: nodes[partition] for partition in range(clients)}


def _arrivals(grid: Grid, clients: int, timeout: float) -> list[int]:
    """Return the connected nodes once they are enough, or when no more arrive."""
    ids = list(grid.get_node_ids())
    end = time.monotonic() + timeout
    while len(ids) < clients and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)
        if len(now := list(grid.get_node_ids())) > len(ids):
            end = time.monotonic() + timeout
            ids = now
    return ids


def telling_line(reason: str | None) -> str:
    """Return why a client failed as one line: what its traceback says after the last frame."""
    lines = (reason or "").rpartition(_WRAPPED)[2].removesuffix("'>").splitlines()
    frames = [i for i, line in enumerate(lines) if line.startswith('  File "')]
    told = lines[frames[-1] + 1 :] if frames else lines
    while frames and told and told[0].startswith("    "):
        told = told[1:]
    return " ".join(" ".join(told).split())[:_LONGEST] or "the client failed without a word"


class _Inbox:
    """Replies by turn: taken in order, early ones kept on disk."""

    def __init__(self, grid: Grid, turns: dict[str, int], folder: Path, timeout: float) -> None:
        self._grid, self._turns, self._folder, self._timeout = grid, turns, folder, timeout
        self._end = time.monotonic() + timeout
        self._early: dict[int, Message] = {}

    def take(self, turn: int) -> Message | str:
        """Return the turn's reply, or the reason why there is none."""
        while turn not in self._early:
            if turn not in self._turns.values():
                return "the client is not connected"
            late = time.monotonic() > self._end
            replies = list(self._grid.pull_messages(list(self._turns)))
            if late and not replies:
                return f"no reply within run.client-timeout ({self._timeout:.0f} s)"
            if replies:  # the others were busy, not silent
                self._end = time.monotonic() + self._timeout
            found = None
            # A pulled reply is never handed out again: all of a pull are taken, whoever's turn.
            for reply in replies:
                arrived = self._turns.pop(reply.metadata.reply_to_message_id)
                if arrived == turn:
                    found = reply
                else:
                    self._spool(arrived, reply)
            if found is not None:
                return found
            if not replies:
                time.sleep(_POLL_SECONDS)
        return self._unspool(turn)

    def _spool(self, turn: int, reply: Message) -> None:
        """Move a reply's content to disk; its metadata stays."""
        if reply.has_content():
            data = recorddict_to_proto(reply.content).SerializeToString()
            (self._folder / str(turn)).write_bytes(data)
            reply.content = RecordDict()
        self._early[turn] = reply

    def _unspool(self, turn: int) -> Message:
        reply = self._early.pop(turn)
        if reply.has_content():
            path = self._folder / str(turn)
            proto = RecordDictProto.FromString(path.read_bytes())
            path.unlink()
            reply.content = recorddict_from_proto(proto)
        return reply


def _envelope(message: Message) -> Message:
    """Return the message without its content: enough to answer for a silent client."""
    empty = Message(RecordDict(), message.metadata.dst_node_id, message.metadata.message_type)
    empty.metadata.__dict__.update(message.metadata.__dict__)
    return empty


def read_reply(job: Job, reply: Message) -> tuple[Update | None, Any, str | None]:
    """Return a reply's update, or its status and the reason why there is none."""
    if reply.has_error():
        return None, "lost", telling_line(reply.error.reason)
    try:
        update = read_update(reply.content, job.partition)
        check_schema(job, update)
    except AtlasError as error:
        return None, "rejected", str(error)
    return update, "ok", None
