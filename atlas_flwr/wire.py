"""Typed jobs and reports <-> Flower records; the only home of record and key names.

One message carries an ``ArrayRecord`` for each kind of part that travels (``adapter``, ``head``,
``weights``), a ``ConfigRecord`` for what is asked, and a ``MetricRecord`` for what is measured.
Tensors are named as in ``flat``; the scales of LoRA factors travel beside them, so that no side
reads a scale from its own configuration. Models to choose from travel in the same message, each in
records of its own, ``choice-0/adapter`` and so on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from atlas_flwr.errors import WireError
from atlas_flwr.flat import KINDS, flatten, squeeze, stretch, unflatten
from atlas_flwr.types import PARTS, Job, ModelParts, Part, Report, Stage, Tensors, Update

HELLO = "query.hello"
FINGERPRINT = "fingerprint"
PARTITION_ID = "partition-id"  # Flower's own node-config key
NUM_EXAMPLES = "num-examples"

_JOB, _FACTS, _METRICS, _SAID, _CHOICE = "job", "facts", "metrics", "said", "choice"
_OWN_METRICS = (NUM_EXAMPLES, "seconds", "peak-memory-bytes")


# ------------------------------------------------------------------ model parts


def _pack_parts(content: RecordDict, parts: ModelParts, sparse: bool, prefix: str = "") -> None:
    facts: dict[str, object] = {}
    for kind, tensors in flatten(parts).items():
        named = tensors
        if sparse and kind == "adapter":
            facts["columns"] = {name: tensor.shape[1] for name, tensor in tensors.items()}
            named = squeeze(tensors)
        content[prefix + kind] = _pack_arrays(named)
    if parts.adapter:
        facts["scales"] = {module: float(f.scale) for module, f in parts.adapter.items()}
    if facts:
        content[prefix + _FACTS] = ConfigRecord({"facts": json.dumps(facts)})


def _pack_arrays(tensors: Tensors) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(t, order="C")) for name, t in tensors.items()})


def _read_arrays(content: RecordDict, kind: str) -> Tensors:
    """Return the tensors of a kind; none if the message has no such record."""
    record = content.array_records.get(kind)
    return {} if record is None else {name: array.numpy() for name, array in record.items()}


def _read_parts(content: RecordDict, prefix: str = "") -> ModelParts:
    names = {kind: prefix + kind for kind in KINDS}
    kinds = {kind: _read_arrays(content, n) for kind, n in names.items() if n in content}
    told = content.config_records.get(prefix + _FACTS, ConfigRecord())
    facts = json.loads(str(told.get("facts", "{}")))
    if not (isinstance(facts, dict) and all(isinstance(each, dict) for each in facts.values())):
        raise WireError("the message's scales or columns are not told by name")
    if "columns" in facts and "adapter" in kinds:
        kinds["adapter"] = stretch(kinds["adapter"], facts["columns"])
    return unflatten(kinds, facts.get("scales", {}))


# ------------------------------------------------------------------ jobs


def pack_job(job: Job, config: str) -> RecordDict:
    """Return the content of the message that carries a job.

    Args:
        job: What is asked.
        config: The resolved experiment as JSON; the client keeps no configuration of its own.
    """
    content = RecordDict()
    _pack_parts(content, job.parts, job.sparse)
    for number, parts in enumerate(job.choices):
        _pack_parts(content, parts, job.sparse, _choice(number))
    facts: dict[str, object] = {
        "partition": job.partition,
        "action": job.action,
        "round": job.round,
        "private": sorted(job.private),
        "since": job.since,
        "seeded": sorted(job.seeded),
        "draw": job.draw,
        "carried": list(job.carried),
        "stages": [{"trains": sorted(s.trains), "epochs": s.epochs} for s in job.stages],
        "returns": sorted(job.returns),
        "sparse": job.sparse,
        "options": dict(job.options),
        "rows": job.rows,
        "pool": list(job.pool),
        "choices": len(job.choices),
    }
    content[_JOB] = ConfigRecord({"job": json.dumps(facts), "config": config})
    return content


def read_job(content: RecordDict) -> tuple[Job, str]:
    """Return the job a message carries, and the experiment as JSON.

    Raises:
        WireError: The message carries no job, or one this version doesn't understand.
    """
    record = content.config_records.get(_JOB)
    if record is None:
        raise WireError("the message carries no job")
    try:
        facts = json.loads(str(record["job"]))
        held, new = facts["carried"]
        job = Job(
            partition=int(facts["partition"]),
            action=facts["action"],
            round=int(facts["round"]),
            parts=_read_parts(content),
            private=_named(facts["private"]),
            since=int(facts["since"]),
            seeded=_named(facts["seeded"]),
            draw=int(facts["draw"]),
            carried=(int(held), int(new)),
            stages=tuple(Stage(_named(s["trains"]), s["epochs"]) for s in facts["stages"]),
            returns=_named(facts["returns"]),
            sparse=bool(facts["sparse"]),
            options=facts["options"],
            rows=facts["rows"],
            pool=tuple(facts["pool"]),
            choices=tuple(_read_parts(content, _choice(n)) for n in range(facts["choices"])),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise WireError(f"a job this version doesn't understand: {error!r}") from error
    return job, str(record["config"])


def _choice(number: int) -> str:
    """Return what the names of a choice's records begin with."""
    return f"{_CHOICE}-{number}/"


def _named(names: Iterable[str]) -> frozenset[Part]:
    """Return parts by name; an unknown one is a ``ValueError``."""
    if odd := sorted({*names} - {*PARTS}):
        raise ValueError(f"no part of a model is called '{odd[0]}'")
    return frozenset(part for part in PARTS if part in names)


# ------------------------------------------------------------------ updates


def pack_update(update: Update) -> RecordDict:
    """Return the content of the message that answers a job."""
    content = RecordDict()
    _pack_parts(content, update.parts, update.sparse)
    if update.fingerprint:
        content[FINGERPRINT] = _pack_arrays(update.fingerprint)
    report = update.report
    numbers: dict[str, int | float | list[int] | list[float]] = {
        NUM_EXAMPLES: int(report.num_examples),
        "seconds": float(report.seconds),
        "peak-memory-bytes": int(report.peak_memory_bytes),
    }
    content[_METRICS] = MetricRecord(
        numbers | {name: float(value) for name, value in report.metrics.items()}
    )
    content[_SAID] = ConfigRecord({"device": report.device, "notes": "\n".join(report.notes)})
    return content


def read_update(content: RecordDict, partition: int) -> Update:
    """Return the answer a message carries.

    Args:
        content: The reply's records.
        partition: Who was asked; a reply names nobody, so that nobody can answer for another.

    Raises:
        WireError: The reply lacks a record, or its example count is negative or not an integer.
    """
    numbers, said = content.metric_records.get(_METRICS), content.config_records.get(_SAID)
    if numbers is None or said is None:
        raise WireError("the reply carries no report")
    count = numbers.get(NUM_EXAMPLES)
    if not isinstance(count, int) or count < 0:
        raise WireError(f"{NUM_EXAMPLES}: must be an integer >= 0, got {count!r}")
    plain = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
    report = Report(
        num_examples=count,
        metrics={k: float(v) for k, v in plain.items() if k not in _OWN_METRICS},
        seconds=float(plain.get("seconds", 0.0)),
        peak_memory_bytes=int(plain.get("peak-memory-bytes", 0)),
        device=str(said.get("device", "cpu")),
        notes=tuple(str(said.get("notes", "")).splitlines()),
    )
    try:
        parts, fingerprint = _read_parts(content), _read_arrays(content, FINGERPRINT)
    except (ValueError, TypeError, KeyError, EOFError) as error:
        raise WireError(f"the reply's arrays can't be read: {error}") from error
    return Update(partition, report, parts, fingerprint=fingerprint)


# ------------------------------------------------------------------ hello and bytes


def pack_hello(partition: int) -> RecordDict:
    """Return a client's answer to ``query.hello``: which partition it is."""
    return RecordDict({"hello": ConfigRecord({PARTITION_ID: partition})})


def read_hello(content: RecordDict) -> int:
    """Return the partition a client says it is.

    Raises:
        WireError: The answer names no partition.
    """
    record = content.config_records.get("hello", ConfigRecord())
    partition = record.get(PARTITION_ID)
    if not isinstance(partition, int) or partition < 0:
        raise WireError(f"hello: {PARTITION_ID} must be an integer >= 0, got {partition!r}")
    return partition


def count_bytes(content: RecordDict) -> dict[str, int]:
    """Return the serialised bytes of a message by kind; what is not a model part is ``other``.

    Arrays count with their NumPy headers and names. Flower's own count fails on empty strings and
    lists, so the small records are counted as they are serialised.
    """
    counts: dict[str, int] = {kind: 0 for kind in (*KINDS, FINGERPRINT)}
    rest = RecordDict()
    for name, record in content.items():
        kind = name.rpartition("/")[2]  # of a choice's own records, or the name itself
        if kind in counts:
            counts[kind] += record.count_bytes()
        else:
            rest[name] = record
    return {**counts, "other": recorddict_to_proto(rest).ByteSize()}
