"""Typed jobs and reports <-> Flower records; the only home of record and key names.

One message carries an ``ArrayRecord`` for each kind of part that travels (``adapter``, ``head``,
``weights``), a ``ConfigRecord`` for what is asked, and a ``MetricRecord`` for what is measured.
LoRA factors are named ``<module>.lora_A`` and ``<module>.lora_B``; their scales travel beside them,
so that no side reads a scale from its own configuration.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_to_proto

from atlas_flwr.errors import WireError
from atlas_flwr.types import PARTS, Job, LoraFactors, ModelParts, Report, Tensors, Update

NDArray = npt.NDArray[Any]

HELLO = "query.hello"
PARTITION_ID = "partition-id"  # Flower's own node-config key
NUM_EXAMPLES = "num-examples"

_JOB, _SCALES, _METRICS, _SAID = "job", "scales", "metrics", "said"
_A, _B = ".lora_A", ".lora_B"
_OWN_METRICS = (NUM_EXAMPLES, "seconds", "peak-memory-bytes")


# ------------------------------------------------------------------ model parts


def flatten(parts: ModelParts) -> dict[str, Tensors]:
    """Return each non-empty kind's tensors by name."""
    factors = parts.only("adapter").body()
    kinds: dict[str, Tensors] = {
        "adapter": factors,
        "head": parts.head,
        "weights": parts.weights,
    }
    return {kind: tensors for kind, tensors in kinds.items() if tensors}


def unflatten(kinds: Mapping[str, Tensors], scales: Mapping[str, float]) -> ModelParts:
    """Return the model parts behind named tensors.

    Raises:
        WireError: A factor lacks its partner or its scale, or the ranks of A and B differ.
    """
    adapter: dict[str, LoraFactors] = {}
    flat = kinds.get("adapter", {})
    for name, a in flat.items():
        if not name.endswith(_A):
            continue
        module = name.removesuffix(_A)
        b = flat.get(module + _B)
        if b is None or module not in scales:
            raise WireError(f"{module}: a LoRA factor came without its partner or its scale")
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise WireError(f"{module}: A {a.shape} and B {b.shape} don't share a rank")
        adapter[module] = LoraFactors(a, b, float(scales[module]))
    if 2 * len(adapter) != len(flat):
        raise WireError("adapter: a LoRA factor B came without its A")
    return ModelParts(adapter, kinds.get("head", {}), kinds.get("weights", {}))


def _pack_parts(content: RecordDict, parts: ModelParts) -> None:
    for kind, tensors in flatten(parts).items():
        content[kind] = ArrayRecord(
            {name: Array(np.ascontiguousarray(tensor)) for name, tensor in tensors.items()}
        )
    if parts.adapter:
        scales = {module: float(factors.scale) for module, factors in parts.adapter.items()}
        content[_SCALES] = ConfigRecord({"scales": json.dumps(scales)})


def _read_parts(content: RecordDict) -> ModelParts:
    kinds: dict[str, Tensors] = {
        kind: {name: array.numpy() for name, array in content.array_records[kind].items()}
        for kind in PARTS
        if kind in content.array_records
    }
    told = content.config_records.get(_SCALES, ConfigRecord())
    return unflatten(kinds, json.loads(str(told.get("scales", "{}"))))


# ------------------------------------------------------------------ jobs


def pack_job(job: Job, config: str) -> RecordDict:
    """Return the content of the message that carries a job.

    Args:
        job: What is asked.
        config: The resolved experiment as JSON; the client keeps no configuration of its own.
    """
    content = RecordDict()
    _pack_parts(content, job.parts)
    facts: dict[str, object] = {
        "partition": job.partition,
        "action": job.action,
        "round": job.round,
        "private": sorted(job.private),
        "since": job.since,
        "options": dict(job.options),
        "rows": job.rows,
        "pool": list(job.pool),
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
        job = Job(
            partition=int(facts["partition"]),
            action=facts["action"],
            round=int(facts["round"]),
            parts=_read_parts(content),
            private=frozenset(facts["private"]),
            since=int(facts["since"]),
            options=facts["options"],
            rows=facts["rows"],
            pool=tuple(facts["pool"]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise WireError(f"a job this version doesn't understand: {error!r}") from error
    return job, str(record["config"])


# ------------------------------------------------------------------ updates


def pack_update(update: Update) -> RecordDict:
    """Return the content of the message that answers a job."""
    content = RecordDict()
    _pack_parts(content, update.parts)
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
        parts = _read_parts(content)
    except (ValueError, TypeError, KeyError, EOFError) as error:
        raise WireError(f"the reply's arrays can't be read: {error}") from error
    return Update(partition, report, parts)


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
    counts: dict[str, int] = {kind: 0 for kind in PARTS}
    rest = RecordDict()
    for name, record in content.items():
        if name in PARTS:
            counts[name] = record.count_bytes()
        else:
            rest[name] = record
    return {**counts, "other": recorddict_to_proto(rest).ByteSize()}


# ------------------------------------------------------------------ NumPyClient's lists


@dataclass(frozen=True)
class Layout:
    """What the places of a NumPyClient's list of arrays mean: ``(kind, name)`` each, and scales."""

    places: tuple[tuple[str, str], ...]
    scales: Mapping[str, float]


def to_arrays(parts: ModelParts) -> tuple[list[NDArray], Layout]:
    """Return model parts as the list of arrays a NumPyClient takes, and what its places mean."""
    kinds = flatten(parts)
    places = tuple((kind, name) for kind, tensors in kinds.items() for name in tensors)
    scales = {module: factors.scale for module, factors in parts.adapter.items()}
    return [kinds[kind][name] for kind, name in places], Layout(places, scales)


def from_arrays(arrays: Sequence[NDArray], layout: Layout) -> ModelParts:
    """Return the model parts behind a NumPyClient's list.

    Raises:
        WireError: The list is not as long as its layout.
    """
    if len(arrays) != len(layout.places):
        raise WireError(f"{len(arrays)} arrays came for {len(layout.places)} places")
    kinds: dict[str, dict[str, NDArray]] = {}
    for (kind, name), array in zip(layout.places, arrays, strict=True):
        kinds.setdefault(kind, {})[name] = array
    return unflatten(kinds, layout.scales)
