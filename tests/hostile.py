"""Clients that lie: each kind of bad reply as a change of an honest one's records.

A kind takes the reply's records and the records that the same client gave before, and returns what
is sent instead. ``REJECTED`` are those that the firewall refuses; ``PASSES`` look like what an
honest client could send.
"""

from __future__ import annotations

import json
import pickle
import struct
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from atlas_flwr.engine.inline import InlineGrid

Lie = Callable[[RecordDict, list[RecordDict]], RecordDict]

ROWS = 16  # that each client has in the runs these lies are told in


# ------------------------------------------------------------------ tensors


def _kind(content: RecordDict) -> str:
    """The record that holds tensors, the adapter first."""
    named = content.array_records
    return next(k for k in ("adapter", "weights", "head", "fingerprint") if k in named)


def _first(content: RecordDict) -> tuple[ArrayRecord, str]:
    record = content.array_records[_kind(content)]
    return record, next(iter(record))


def each(change: Callable[[np.ndarray], np.ndarray], only: str = "") -> Lie:
    """Change every tensor of model parts whose name ends so."""

    def lie(content: RecordDict, before: list[RecordDict]) -> RecordDict:
        for kind, record in content.array_records.items():
            for name in record if kind != "fingerprint" else ():
                if name.endswith(only):
                    record[name] = Array(np.asarray(change(record[name].numpy()), order="C"))
        return content

    return lie


def one(change: Callable[[np.ndarray], np.ndarray]) -> Lie:
    """Change the first tensor."""

    def lie(content: RecordDict, before: list[RecordDict]) -> RecordDict:
        record, name = _first(content)
        record[name] = Array(np.asarray(change(record[name].numpy()), order="C"))
        return content

    return lie


def raw(data: Callable[[Array], bytes], **told: Any) -> Lie:
    """Replace the first tensor's bytes."""

    def lie(content: RecordDict, before: list[RecordDict]) -> RecordDict:
        record, name = _first(content)
        was = record[name]
        facts = {"dtype": was.dtype, "shape": was.shape, "stype": was.stype, **told}
        record[name] = Array(**facts, data=data(was))
        return content

    return lie


def _one_number(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(tensor: np.ndarray) -> np.ndarray:
        bad = tensor.copy()
        bad.flat[-1] = value
        return bad

    return change


def header(shape: str, dtype: str = "<f4", body: bytes = b"") -> bytes:
    """A ``.npy`` file whose header promises what it likes."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}"
    padded = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(padded)) + padded.encode() + body


def rank_one(content: RecordDict, before: list[RecordDict]) -> RecordDict:
    record = content.array_records[_kind(content)]
    for name in record:
        tensor = record[name].numpy()
        cut = tensor[:1] if name.endswith("lora_A") else tensor[..., :1]
        record[name] = Array(np.ascontiguousarray(cut))
    return content


def _named(name: str) -> Lie:
    """A tensor too many, of a name that some reader could take for a place."""

    def lie(content: RecordDict, before: list[RecordDict]) -> RecordDict:
        record, first = _first(content)
        record[name] = record[first]
        return content

    return lie


def renamed(content: RecordDict, before: list[RecordDict]) -> RecordDict:
    record, first = _first(content)
    record["../../../etc/passwd"] = record.pop(first)
    return content


def missing(content: RecordDict, before: list[RecordDict]) -> RecordDict:
    record, first = _first(content)
    del record[first]
    return content


def reordered(content: RecordDict, before: list[RecordDict]) -> RecordDict:
    for kind in list(content.array_records):
        record = content.array_records[kind]
        content[kind] = ArrayRecord({name: record[name] for name in reversed(list(record))})
    return content


# ------------------------------------------------------------------ numbers and words


def metric(**numbers: Any) -> Lie:
    """Tell other numbers."""

    def lie(content: RecordDict, before: list[RecordDict]) -> RecordDict:
        told = dict(content.metric_records["metrics"])
        told |= {name.replace("_", "-"): value for name, value in numbers.items()}
        content["metrics"] = MetricRecord(told)
        return content

    return lie


def config_count(value: Any) -> Lie:
    """Tell the count in a record that holds what a metric can't: a bool, a word."""

    def lie(content: RecordDict, before: list[RecordDict]) -> RecordDict:
        told = dict(content.metric_records["metrics"])
        del content["metrics"]
        content["metrics"] = ConfigRecord({**told, "num-examples": value})
        return content

    return lie


def record(name: str, words: Mapping[str, Any]) -> Lie:
    """Put another configuration record in place of one."""

    def lie(content: RecordDict, before: list[RecordDict]) -> RecordDict:
        content[name] = ConfigRecord(dict(words))
        return content

    return lie


def facts(change: Callable[[str], str]) -> Lie:
    """Tell other scales: as text, so that JSON's edges are there."""

    def lie(content: RecordDict, before: list[RecordDict]) -> RecordDict:
        told = content.config_records.get("facts", ConfigRecord({"facts": '{"scales": {}}'}))
        content["facts"] = ConfigRecord({"facts": change(str(told["facts"]))})
        return content

    return lie


def _scale(value: str) -> Callable[[str], str]:
    def change(text: str) -> str:
        told = json.loads(text)
        scales = ", ".join(f"{json.dumps(name)}: {value}" for name in told["scales"] or {"m": 1})
        return f'{{"scales": {{{scales}}}}}'

    return change


def answers(**wrong: Any) -> Lie:
    """Say that it answers another job."""

    def lie(content: RecordDict, before: list[RecordDict]) -> RecordDict:
        told = dict(content.config_records["answers"])
        content["answers"] = ConfigRecord(
            told | {name.replace("_", "-"): value for name, value in wrong.items()}
        )
        return content

    return lie


def replay(content: RecordDict, before: list[RecordDict]) -> RecordDict:
    """Say again what was said in an earlier round; before that, say what nobody asked for."""
    return before[0] if before else answers(round=0)(content, before)


def empty(content: RecordDict, before: list[RecordDict]) -> RecordDict:
    return RecordDict()


def tensor_in_an_evaluation(content: RecordDict, before: list[RecordDict]) -> RecordDict:
    content["adapter"] = ArrayRecord({"a.lora_A": Array(np.ones((2, 2), np.float32))})
    return content


def unbalanced(content: RecordDict, before: list[RecordDict]) -> RecordDict:
    """The honest product, its factors far from everybody's."""
    record = content.array_records[_kind(content)]
    for name in record:
        times = np.float32(1e-4 if name.endswith("lora_A") else 1e4)
        record[name] = Array(record[name].numpy() * times)
    return content


DEEP = "[" * 100_000 + "]" * 100_000
PICKLE = pickle.dumps({"a": 1})

# What the firewall refuses, in training replies of methods that send an adapter and a head.
REJECTED: dict[str, Lie] = {
    "nan": one(_one_number(np.nan)),
    "inf": one(_one_number(np.inf)),
    "minus inf": one(_one_number(-np.inf)),
    "nan everywhere": each(lambda t: np.full_like(t, np.nan)),
    "rank 1 for rank 4": rank_one,
    "transposed": each(np.transpose),
    "float64": each(lambda t: t.astype(np.float64)),
    "float16": each(lambda t: t.astype(np.float16)),
    "integers": each(lambda t: t.astype(np.int64)),
    "flattened": each(np.ravel),
    "empty arrays": each(lambda t: t[:0]),
    "object pickle": raw(lambda a: header("(1,)", "|O", PICKLE), dtype="object", shape=(1,)),
    "pickle bytes": raw(lambda a: PICKLE),
    "torch tensor": raw(lambda a: a.data, stype="torch.Tensor"),
    "digits that read in many ways": raw(lambda a: header("1" * 90)),
    "header bomb": raw(
        lambda a: header("(1000000, 1000000)"), dtype="float32", shape=(10**6, 10**6)
    ),
    "header bomb under the right shape": raw(lambda a: header("(1000000, 1000000)")),
    "header too long": raw(lambda a: b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b" " * 64),
    "zip bomb": raw(lambda a: b"PK\x03\x04" + b"\0" * 64),
    "truncated": raw(lambda a: a.data[:-4]),
    "trailing bytes": raw(lambda a: a.data + b"\0" * 8),
    "oversize": raw(lambda a: a.data + b"\0" * (1 << 22)),
    "big-endian": one(lambda t: t.astype(">f4")),
    "missing tensor": missing,
    "extra tensor": _named("more.lora_A"),
    "path traversal": _named("../../../../etc/passwd"),
    "absolute path": _named("/etc/passwd"),
    "NUL in a name": _named("a\0b"),
    "long name": _named("x" * 100_000),
    "terminal escape in a name": _named("\x1b]0;owned\x07\x1b[2J"),
    "renamed tensor": renamed,
    "empty reply": empty,
    "extra record": record("more", {"a": 1}),
    "record of another type": record("head", {"a": ""}),
    "negative count": metric(num_examples=-5),
    "zero count": metric(num_examples=0),
    "huge count": metric(num_examples=10**18),
    "one row too many": metric(num_examples=ROWS + 1),
    "NaN count": metric(num_examples=float("nan")),
    "1e30 rows": metric(num_examples=1e30),
    "count of a float": metric(num_examples=float(ROWS)),
    "count of a list": metric(num_examples=[ROWS]),
    "count of a bool": config_count(True),
    "count of a word": config_count(str(ROWS)),
    "loss of NaN": metric(loss=float("nan")),
    "negative loss": metric(loss=-50.0),
    "loss beyond single precision": metric(loss=1e308),
    "unknown metric": metric(reward=1.0),
    "accuracy of 7": metric(accuracy=7.0),
    "negative memory": metric(peak_memory_bytes=-1),
    "memory of NaN": metric(peak_memory_bytes=float("nan")),
    "memory of a star": metric(peak_memory_bytes=2**62),
    "seconds of NaN": metric(seconds=float("nan")),
    "negative seconds": metric(seconds=-1.0),
    "a novel in the notes": record("said", {"device": "cpu", "notes": "x" * 10**6}),
    "a novel in the precision": record("said", {"precision": "x" * 10**6, "notes": ""}),
    "a line end in each of the notes": record("said", {"device": "cpu", "notes": "\n" * 200}),
    "unknown words": record("said", {"device": "cpu", "notes": "", "more": b"\0"}),
    "scale of NaN": facts(_scale("NaN")),
    "scale of infinity": facts(_scale("1e999")),
    "huge scale": facts(_scale("1e30")),
    "scale of 10 000 digits": facts(_scale("9" * 10_000)),
    "deep JSON": facts(lambda text: DEEP),
    "no JSON": facts(lambda text: text[:-1]),
    "extra scales": facts(lambda text: '{"scales": {"more": 1.0}}'),
    "replay of an earlier round": replay,
    "answer to a later round": answers(round=99),
    "another partition's answer": answers(partition_id=0),
    "another action's answer": answers(action="evaluate"),
    "an answer about other rows": answers(rows="full"),
    "a round that is a truth value": answers(round=True),
    "x1000": each(lambda t: (1000 * t).astype(np.float32)),
    "x1e30": each(lambda t: (1e30 * t).astype(np.float32)),
    "one product in a far basis": unbalanced,
}

# What nobody can tell from an honest answer by looking at it.
PASSES: dict[str, Lie] = {
    "reordered keys": reordered,
    "denormal": one(_one_number(1e-42)),
    "sign flip": each(np.negative, "lora_B"),
    "x-5": each(lambda t: (-5 * t).astype(np.float32), "lora_B"),
}


# ------------------------------------------------------------------ the grid


def lost(content: RecordDict, before: list[RecordDict]) -> RecordDict:
    """Say nothing."""
    raise ConnectionError("gone")


class HostileGrid(InlineGrid):
    """The inline grid with liars behind it; their replies go over the wire and back.

    Attributes:
        liars: What each liar says, round by round; after the last lie it begins again.
        actions: Message types they lie in.
    """

    def __init__(
        self,
        app: ClientApp,
        clients: int,
        liars: Mapping[int, Sequence[Lie]],
        actions: Collection[str] = ("train",),
    ) -> None:
        super().__init__(app, clients)
        self.liars, self.actions = dict(liars), tuple(actions)
        self._before: dict[int, list[RecordDict]] = defaultdict(list)

    def _run(self, message: Message) -> Message:
        partition = int(self._contexts[message.metadata.dst_node_id].node_config["partition-id"])
        reply = super()._run(message)
        if partition not in self.liars or message.metadata.message_type not in self.actions:
            return reply
        lies, before = self.liars[partition], self._before[partition]
        honest = copied(reply.content)
        try:
            reply.content = copied(lies[len(before) % len(lies)](copied(honest), before))
        except ConnectionError as error:
            reply = Message(Error(0, str(error)), reply_to=message)
        before.append(honest)
        return reply


class Twice(InlineGrid):
    """Every reply comes twice, the second time with another's words, and some that nobody asked."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        again = [Message(RecordDict(), reply_to=self._sent(reply)) for reply in replies]
        for reply, other in zip(replies, again, strict=True):
            other.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
        stray = [Message(RecordDict(), reply_to=self._sent(reply)) for reply in replies]
        for other in stray:
            other.metadata.__dict__["_reply_to_message_id"] = "nobody's"
        return [*stray, *replies, *again]

    @staticmethod
    def _sent(reply: Message) -> Message:
        return Message(RecordDict(), reply.metadata.src_node_id, reply.metadata.message_type)


def copied(content: RecordDict) -> RecordDict:
    """The records as they are after the network."""
    return recorddict_from_proto(recorddict_to_proto(content))
