"""What an answer must be before any method sees it: sizes, schema, words and values. Pure.

Everything is decided from the job, from facts of the run and from the answer itself. Sizes, names,
dtypes and shapes are read from the records and from NumPy's headers; what fails there is never
decoded. A refusal is a ``WireError`` whose one line says what was wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from atlas_flwr.errors import AggregationError, WireError
from atlas_flwr.fingerprint import promised
from atlas_flwr.flat import KINDS
from atlas_flwr.greeting import OWN_ROWS, ROWS
from atlas_flwr.payload import check_promise, printable, shown
from atlas_flwr.ranks.importance import IMPORTANCE
from atlas_flwr.results.record import METRICS as SCORES
from atlas_flwr.types import Job, Update
from atlas_flwr.wire import (
    ANSWERS,
    FACTS,
    FINGERPRINT,
    METRICS,
    NUM_EXAMPLES,
    PEAK,
    SAID,
    SECONDS,
    check_answers,
    read_facts,
    read_update,
)
from strategies.rounds.promises import Promises, print_asked, promises
from strategies.rounds.rules import check_schema
from strategies.state import Setting

MOST_ROWS = 10**9  # of a client whose rows nobody can count but itself
MOST_SECONDS = 1e9
MOST_MEMORY = 2**50
MOST_LOSS = 3.5e38  # nothing finite in single precision is larger
_WORDS, _LINES = 8192, 100  # characters and lines of what a client says of a job
_DEVICE = 200
_ROUNDING = 1e-3  # how far below 0 rounding may take a loss
_SLACK = 4096  # bytes beside the names and arrays

_RECORDS: dict[str, type[Any]] = {
    **dict.fromkeys((*KINDS, FINGERPRINT), ArrayRecord),
    **dict.fromkeys((FACTS, SAID, ANSWERS), ConfigRecord),
    METRICS: MetricRecord,
}
_TOLD = (NUM_EXAMPLES, SECONDS, PEAK, *SCORES, "compression_error")


def admitted(job: Job, content: RecordDict, setting: Setting, most_rows: int) -> Update:
    """Return the update an answer carries, if it is one to the job.

    Args:
        job: What was asked.
        content: The answer's records.
        setting: Facts of the run: label spaces, heads, the model's width.
        most_rows: The most rows the client can have used.

    Raises:
        WireError: It is not, for the reason told.
    """
    _check_records(content)
    check_answers(content, job)
    asked = promises(job, setting, content)
    _check_size(content, asked)
    _check_arrays(content, asked)
    _check_words(job, content, asked, setting)
    _check_numbers(job, content.metric_records.get(METRICS), most_rows)
    update = read_update(content, job.partition)
    check_schema(job, update)
    _check_print(job, update, setting)
    return update


def most_rows(job: Job, setting: Setting, declared: Mapping[int, Mapping[str, int]]) -> int:
    """Return the most rows that a job can have used.

    What the server dealt binds where it knows; else what the client declared when it said hello;
    else ``MOST_ROWS``, which also bounds a declaration.

    Args:
        job: What was asked.
        setting: Holds the rows that were dealt.
        declared: What clients said of their rows, by partition.
    """
    trains = job.action.startswith("train") or job.rows == "held"
    if setting.rows:
        if trains:
            return sum(setting.rows[p].train for p in job.pool or (job.partition,))
        own = setting.rows[job.partition]
        return own.full if job.rows == "full" else own.own
    if not trains and job.rows == "full":
        return MOST_ROWS
    key = ROWS if trains else OWN_ROWS
    told = [declared.get(p, {}).get(key, MOST_ROWS) for p in job.pool or (job.partition,)]
    return min(sum(told), MOST_ROWS)


# ------------------------------------------------------------------ before decoding


def _check_records(content: RecordDict) -> None:
    """Refuse records that no answer has, and missing ones that every answer has."""
    for name, record in content.items():
        if not isinstance(record, _RECORDS.get(name, ())):
            raise WireError(f"record '{printable(name, 100)}': nobody asked for it")
    if METRICS not in content or SAID not in content:
        raise WireError("the reply carries no report")


def _check_size(content: RecordDict, asked: Promises) -> None:
    """Refuse what is larger than all that was asked for, names and headers included."""
    most = _SLACK + sum(
        promise.most_bytes() + len(name.encode())
        for named in asked.values()
        for name, promise in named.items()
    )
    size = sum(
        len(array.data) + len(name)
        for record in content.array_records.values()
        for name, array in record.items()
    )
    if size > most:
        raise WireError(f"{size} bytes of arrays, at most {most} were asked for")


def _check_arrays(content: RecordDict, asked: Promises) -> None:
    """Refuse arrays that were not asked for, missing ones, and those of another dtype or shape."""
    for kind in (*KINDS, FINGERPRINT):
        came = content.array_records.get(kind, ArrayRecord())
        promise = asked.get(kind, {})
        optional = {"rows"} if kind == FINGERPRINT else set()
        if odd := sorted((came.keys() ^ promise.keys()) - (optional - came.keys())):
            raise WireError(f"{printable(odd[0], 200)}: asked for and returned tensors differ")
        for name, array in came.items():
            check_promise(name, array, promise[name])


def _check_words(job: Job, content: RecordDict, asked: Promises, setting: Setting) -> None:
    """Refuse words that are too long, and scales or widths that nobody asked for."""
    said = content.config_records[SAID]
    for name, longest in (("device", _DEVICE), ("precision", _DEVICE), ("notes", _WORDS)):
        if not isinstance(said.get(name, ""), str) or len(str(said.get(name, ""))) > longest:
            raise WireError(f"said: {name} is no text of at most {longest} characters")
    if len(str(said.get("notes", "")).splitlines()) > _LINES:
        raise WireError(f"said: notes are no text of at most {_LINES} lines")
    if odd := sorted(said.keys() - {"device", "precision", "notes"}):
        raise WireError(f"said: nobody asked for '{printable(odd[0], 100)}'")
    told = content.config_records.get(FACTS, ConfigRecord())
    names = sorted(job.expects)
    longest = _SLACK + sum(8 * (len(name) + 32) for name in names)  # \uXXXX, digits, twice
    text = told.get(FACTS, "{}")
    if told.keys() - {FACTS} or not isinstance(text, str) or len(text) > longest:
        raise WireError(f"facts: no text of at most {longest} characters")
    facts = read_facts(content)
    modules = {name.rpartition(".")[0] for name in names if name.endswith((".lora_A", ".lora_B"))}
    columns = set(asked.get("adapter", ())) and {
        n for n in names if f"{n}.bits" in asked["adapter"]
    }
    _check_scales(facts.get("scales", {}), job, setting)
    wanted = {"scales": modules, "columns": columns}
    for key in facts.keys() | {k for k, v in wanted.items() if v}:
        if odd := sorted(facts.get(key, {}).keys() ^ wanted.get(key, set())):
            raise WireError(f"{printable(odd[0], 200)}: no {printable(key, 20)} as asked for")
    for name, width in facts.get("columns", {}).items():
        if width != job.expects[name][1]:
            raise WireError(f"{name}: {printable(width, 40)} columns, expected {job.expects[name]}")


def _check_scales(told: Mapping[str, float], job: Job, setting: Setting) -> None:
    """Refuse another scale than the one sent, or than that of the seeded factors of that rank."""
    initial = setting.initial_for(job.partition).adapter
    for module, scale in told.items():
        sent = [p.adapter[module] for p in (job.parts, *job.choices) if module in p.adapter]
        a, b = (job.expects.get(f"{module}.lora_{factor}") for factor in "AB")
        rank = a[0] if a else b[1] if b else 0
        if job.action == "train.gradient":
            asked: float | None = 1.0
        elif sent:
            asked = sent[0].scale
        elif module in initial and initial[module].rank == rank:
            asked = initial[module].scale
        else:
            asked = setting.scales.get(rank)
        if scale != asked:
            name = printable(module, 200)
            raise WireError(f"{name}: scale {shown(scale, 40)}, expected {asked}")


# ------------------------------------------------------------------ numbers


def _check_numbers(job: Job, numbers: MetricRecord | None, most_rows: int) -> None:
    """Refuse counts, times, memory and scores that no honest client tells."""
    told = dict(numbers or {})
    if odd := sorted(told.keys() - set(_TOLD)):
        raise WireError(f"metrics: nobody asked for '{printable(odd[0], 100)}'")
    for name, value in told.items():
        if type(value) not in (int, float):
            raise WireError(f"{name}: {shown(value)} is no number")
    trains, count = job.action.startswith("train"), told.get(NUM_EXAMPLES)
    if type(count) is not int or not 0 <= count <= most_rows:
        raise WireError(
            f"{NUM_EXAMPLES}: must be an integer of at most {most_rows}, the rows there are, "
            f"got {shown(count)}"
        )
    _check_range(SECONDS, told.get(SECONDS, 0.0), 0.0, MOST_SECONDS)
    _check_range(PEAK, told.get(PEAK, 0), 0, MOST_MEMORY)
    if type(told.get(PEAK, 0)) is not int:
        raise WireError(f"{PEAK}: {shown(told[PEAK])} is no integer")
    for name in SCORES:
        value = float(told.get(name, 0.0))  # type: ignore[arg-type]
        if name == "loss":  # a diverged model is told, and its means say so
            if trains and not math.isfinite(value):
                raise WireError(f"loss: {value} is not finite")
            _check_loss(value)
        else:
            _check_range(name, value, -1.0 if name == "mcc" else 0.0, 1.0 + 1e-9)
    _check_range("compression_error", told.get("compression_error", 0.0), 0.0, 1.0 + 1e-6)


def _check_range(name: str, value: Any, least: float, most: float) -> None:
    if not least <= value <= most:
        raise WireError(f"{name}: must be in [{least:g}, {most:g}], got {printable(value, 40)}")


def _check_loss(value: float) -> None:
    """Refuse a loss that no cross-entropy is; infinite and NaN are a diverged model's."""
    if value < -_ROUNDING or MOST_LOSS < value < math.inf:
        raise WireError(f"loss: {value:g} is the loss of no model")


def _check_print(job: Job, update: Update, setting: Setting) -> None:
    """Refuse a fingerprint that no rows have."""
    told = dict(update.fingerprint)
    for loss in told.get("losses", ()):
        _check_loss(float(loss))
    count, rows = update.report.num_examples, told.get("rows")
    if job.action == "train.score" and rows is not None and int(rows[0]) != count:
        raise WireError(f"rows: {int(rows[0])}, but {NUM_EXAMPLES} is {count}")
    if job.action != "train.fingerprint":
        return
    importance = told.pop(IMPORTANCE, None)
    if importance is not None and (importance > 1).any():
        raise WireError("fingerprint importance: shares of the largest are at most 1")
    try:
        promised.check(told, print_asked(job, setting), count)
    except AggregationError as error:
        raise WireError(f"fingerprint {error}") from error
