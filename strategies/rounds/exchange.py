"""One exchange with many clients: messages out, replies back in order, memory flat.

Replies arrive in any order; float sums must not depend on it. A reply is yielded when its turn
comes, and one that arrives early waits on disk, so that memory never grows with the clients.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Error, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from flwr.serverapp import Grid

from atlas_flwr.errors import AtlasError, WireError
from atlas_flwr.greeting import HELLO, read_declared, read_hello
from atlas_flwr.holding import Holding, read_holding
from atlas_flwr.payload import printable

_LOG = logging.getLogger(__name__)
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
    with spooled() as spool:
        inbox = _Inbox(grid, turns, addressed, spool, timeout)
        for turn, envelope in enumerate(addressed):
            reply = inbox.take(turn)
            if isinstance(reply, str):
                reply = Message(Error(_NO_REPLY, reply), reply_to=envelope)
            yield reply
        if inbox.strays:
            _LOG.warning("%d replies that nobody waited for were dropped", inbox.strays)


@dataclass(frozen=True)
class Greeted:
    """Who said hello.

    Attributes:
        node: The node of the partition.
        declared: Its rows as it says, ``rows`` and ``own-rows``, where it says so.
        held: What it holds at home.
    """

    node: int
    declared: Mapping[str, int]
    held: Holding


def greet(grid: Grid, clients: int, timeout: float) -> dict[int, Greeted]:
    """Wait for the clients and return who answers for each partition.

    Args:
        grid: Flower's way to the clients.
        clients: Partitions that must be there: ``0 … clients - 1``.
        timeout: Seconds without a new arrival, and seconds to answer, after which nobody is
            waited for any longer.

    Raises:
        AtlasError: Fewer clients than expected answered in time, or two say they are the same:
            nobody can tell which of them is, so no round begins.
    """
    ids = _arrivals(grid, clients, timeout)
    found: dict[int, Greeted] = {}
    failed: list[str] = []
    greetings = [Message(RecordDict(), node, HELLO) for node in ids]
    for node, reply in zip(ids, exchange(grid, greetings, timeout), strict=True):
        if reply.has_error():
            failed.append(telling_line(reply.error.reason))
            continue
        try:
            partition, declared = read_hello(reply.content), read_declared(reply.content)
            held = read_holding(reply.content)
        except WireError as error:
            failed.append(str(error))
            continue
        if partition in found:
            raise AtlasError(f"two clients say they are partition {partition}")
        found[partition] = Greeted(node, declared, held)
    if missing := [p for p in range(clients) if p not in found]:
        why = failed[0] if failed else f"{len(ids)} clients are connected, run.clients is {clients}"
        raise AtlasError(f"partitions {missing} did not say hello: {why}")
    return {partition: found[partition] for partition in range(clients)}


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
    line = " ".join(" ".join(told).split())
    return printable(line, _LONGEST) or "the client failed without a word"


class _Inbox:
    """Replies by turn: taken in order, early ones kept on disk.

    The first reply to a message counts. A second one, one to a message of an earlier exchange or to
    none, and one that came from another node than was asked are dropped, counted in ``strays``.
    """

    def __init__(
        self, grid: Grid, turns: dict[str, int], asked: list[Message], spool: Spool, timeout: float
    ) -> None:
        self._grid, self._turns, self._asked, self._timeout = grid, turns, asked, timeout
        self._end = time.monotonic() + timeout
        self._early: set[int] = set()
        self._spool = spool
        self.strays = 0

    def take(self, turn: int) -> Message | str:
        """Return the turn's reply, or the reason why there is none."""
        while turn not in self._early:
            if turn not in self._turns.values():
                return "the client is not connected"
            late = time.monotonic() > self._end
            replies = list(self._grid.pull_messages(list(self._turns)))
            if late and not replies:
                return f"no reply within run.client-timeout ({self._timeout:.0f} s)"
            # A pulled reply is never handed out again: all of a pull are taken, whoever's turn.
            taken = {arrived: reply for reply in replies if (arrived := self._turn(reply)) >= 0}
            if taken:  # the others were busy, not silent
                self._end = time.monotonic() + self._timeout
            found = taken.pop(turn, None)
            for arrived, reply in taken.items():
                self._spool.put(arrived, reply)
                self._early.add(arrived)
            if found is not None:
                return found
            if not replies:
                time.sleep(_POLL_SECONDS)
        self._early.remove(turn)
        return self._spool.take(turn)

    def _turn(self, reply: Message) -> int:
        """Return whose turn a reply is, which is then answered for; -1: nobody's."""
        asked, sender = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
        turn = self._turns.get(asked, -1)
        # An error may be the SuperLink's word about a client.
        own = turn >= 0 and (reply.has_error() or sender == self._asked[turn].metadata.dst_node_id)
        if not own:
            self.strays += 1
            return -1
        del self._turns[asked]
        return turn


class Spool:
    """Messages that wait on disk: their contents are files, their metadata stays in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._waiting = folder, dict[int, Message]()

    def put(self, turn: int, message: Message) -> None:
        """Move a message's content to disk."""
        if message.has_content():
            data = recorddict_to_proto(message.content).SerializeToString()
            (self._folder / str(turn)).write_bytes(data)
            message.content = RecordDict()
        self._waiting[turn] = message

    def take(self, turn: int) -> Message:
        """Return a message whole; its file is gone."""
        message = self._waiting.pop(turn)
        if message.has_content():
            path = self._folder / str(turn)
            proto = RecordDictProto.FromString(path.read_bytes())
            path.unlink()
            message.content = recorddict_from_proto(proto)
        return message


@contextmanager
def spooled() -> Iterator[Spool]:
    """Give a spool in a folder of its own, gone at the end, left early or not."""
    folder = tempfile.mkdtemp(prefix="atlas-spool-")
    try:
        yield Spool(Path(folder))
    finally:
        shutil.rmtree(folder)


def _envelope(message: Message) -> Message:
    """Return the message without its content: enough to answer for a silent client."""
    empty = Message(RecordDict(), message.metadata.dst_node_id, message.metadata.message_type)
    empty.metadata.__dict__.update(message.metadata.__dict__)
    return empty
