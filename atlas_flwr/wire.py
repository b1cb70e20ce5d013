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
from atlas_flwr.greeting import PARTITION_ID
from atlas_flwr.payload import check_payload, printable, shown
from atlas_flwr.types import PARTS, Job, ModelParts, Part, Report, Stage, Tensors, Update

FINGERPRINT = "fingerprint"
NUM_EXAMPLES = "num-examples"

FACTS, METRICS, SAID, ANSWERS = "facts", "metrics", "said", "answers"
SECONDS, PEAK = "seconds", "peak-memory-bytes"
_JOB, _CHOICE = "job", "choice"
_OWN_METRICS = (NUM_EXAMPLES, SECONDS, PEAK)


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
        content[prefix + FACTS] = ConfigRecord({"facts": json.dumps(facts)})


def _pack_arrays(tensors: Tensors) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(t, order="C")) for name, t in tensors.items()})


def _read_arrays(content: RecordDict, kind: str) -> Tensors:
    """Return the tensors of a kind; none if the message has no such record."""
    record = content.array_records.get(kind)
    tensors = {}
    for name, array in () if record is None else record.items():
        check_payload(printable(name), array)
        tensors[name] = array.numpy()
    return tensors


def _read_parts(content: RecordDict, prefix: str = "") -> ModelParts:
    names = {kind: prefix + kind for kind in KINDS}
    kinds = {kind: _read_arrays(content, n) for kind, n in names.items() if n in content}
    facts = read_facts(content, prefix)
    columns = {name: int(width) for name, width in facts.get("columns", {}).items()}
    if columns and "adapter" in kinds:
        kinds["adapter"] = stretch(kinds["adapter"], columns)
    return unflatten(kinds, facts.get("scales", {}))


def read_facts(content: RecordDict, prefix: str = "") -> dict[str, dict[str, float]]:
    """Return what is told beside the tensors: ``scales`` by module, ``columns`` by tensor.

    Raises:
        WireError: It is no JSON of numbers by name.
    """
    told = content.config_records.get(prefix + FACTS, ConfigRecord())
    try:
        facts = json.loads(str(told.get(FACTS, "{}")))
    except (ValueError, RecursionError) as error:
        raise WireError(f"the message's scales or columns can't be read: {error}") from error
    if not (isinstance(facts, dict) and all(isinstance(each, dict) for each in facts.values())):
        raise WireError("the message's scales or columns are not told by name")
    for name, number in ((n, v) for each in facts.values() for n, v in each.items()):
        if type(number) not in (int, float):
            raise WireError(f"{printable(name)}: a scale or width of {printable(number)}")
    return facts


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
        "pooled": list(job.pooled),
    }
    content[_JOB] = ConfigRecord({"job": json.dumps(facts), "config": config})
    return content


def job_config(content: RecordDict) -> str:
    """Return the experiment that a message's job carries, as JSON; empty where there is none.

    The job itself, and so every tensor, is left alone.
    """
    return str(content.config_records.get(_JOB, ConfigRecord()).get("config", ""))


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
            pooled=tuple(int(rows) for rows in facts["pooled"]),
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


def pack_update(update: Update, job: Job | None = None) -> RecordDict:
    """Return the content of the message that answers a job.

    Args:
        update: The answer.
        job: Which job it answers; the firewall refuses an answer that doesn't say.
    """
    content = RecordDict()
    if job is not None:
        content[ANSWERS] = ConfigRecord(dict(job_id(job)))
    _pack_parts(content, update.parts, update.sparse)
    if update.fingerprint:
        content[FINGERPRINT] = _pack_arrays(update.fingerprint)
    report = update.report
    numbers: dict[str, int | float | list[int] | list[float]] = {
        NUM_EXAMPLES: int(report.num_examples),
        SECONDS: float(report.seconds),
        PEAK: int(report.peak_memory_bytes),
    }
    content[METRICS] = MetricRecord(
        numbers | {name: float(value) for name, value in report.metrics.items()}
    )
    said = {"device": report.device, "precision": report.precision}
    content[SAID] = ConfigRecord({**said, "notes": "\n".join(report.notes)})
    return content


def job_id(job: Job) -> dict[str, int | str]:
    """Return what tells a job from every other of its run: who, when, what, on which rows."""
    who: dict[str, int | str] = {PARTITION_ID: job.partition, "round": job.round}
    return {**who, "action": job.action, "rows": job.rows}


def check_answers(content: RecordDict, job: Job) -> None:
    """Refuse an answer to another job: another client's, an earlier round's, another action's.

    Raises:
        WireError: Names the first fact that differs, with both values.
    """
    said = content.config_records.get(ANSWERS, ConfigRecord())
    asked = job_id(job)
    if odd := sorted(said.keys() - asked.keys()):
        raise WireError(f"answers: an unknown key '{printable(odd[0], 100)}'")
    for key, value in asked.items():
        told = said.get(key)
        if type(told) is not type(value) or told != value:
            raise WireError(f"answers: {key} {shown(told)}, asked was {value!r}")


def read_update(content: RecordDict, partition: int) -> Update:
    """Return the answer a message carries.

    Args:
        content: The reply's records.
        partition: Who was asked; a reply names nobody, so that nobody can answer for another.

    Raises:
        WireError: The reply lacks a record, or its example count is negative or not an integer.
    """
    numbers, said = content.metric_records.get(METRICS), content.config_records.get(SAID)
    if numbers is None or said is None:
        raise WireError("the reply carries no report")
    count = numbers.get(NUM_EXAMPLES)
    if type(count) is not int or count < 0:
        raise WireError(f"{NUM_EXAMPLES}: must be an integer >= 0, got {shown(count)}")
    plain = {name: value for name, value in numbers.items() if isinstance(value, int | float)}
    report = Report(
        num_examples=count,
        metrics={k: float(v) for k, v in plain.items() if k not in _OWN_METRICS},
        seconds=float(plain.get(SECONDS, 0.0)),
        peak_memory_bytes=int(plain.get(PEAK, 0)),
        device=printable(said.get("device", "cpu")),
        precision=printable(said.get("precision", "")),
        notes=tuple(printable(note) for note in str(said.get("notes", "")).splitlines()),
    )
    try:
        parts, fingerprint = _read_parts(content), _read_arrays(content, FINGERPRINT)
    except (ValueError, TypeError, KeyError, EOFError, OverflowError) as error:
        raise WireError(f"the reply's arrays can't be read: {error}") from error
    return Update(partition, report, parts, fingerprint=fingerprint)


# ------------------------------------------------------------------ bytes


def count_bytes(content: RecordDict) -> dict[str, int]:
    """Return the serialised bytes of a message by kind; what is not a model part is ``other``.

    Arrays count with their NumPy headers and names. Flower's own count fails on empty strings and
    lists, so the small records are counted as they are serialised.
    """
    counts: dict[str, int] = {kind: 0 for kind in (*KINDS, FINGERPRINT)}
    rest = RecordDict()
    for name, record in content.items():
        kind = name.rpartition("/")[2]  # of a choice's own records, or the name itself
        if kind in counts and isinstance(record, ArrayRecord):
            counts[kind] += record.count_bytes()
        else:
            rest[name] = record
    return {**counts, "other": recorddict_to_proto(rest).ByteSize()}
