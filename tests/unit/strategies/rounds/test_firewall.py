"""Every method's honest answers pass the firewall, and no corrupted one does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Array, RecordDict

from atlas_flwr.errors import WireError
from atlas_flwr.types import Job, Update
from atlas_flwr.wire import pack_update
from federations import ALL, ROWS, widest
from hostile import REJECTED, copied
from players import PRINTED, Player, crew
from strategies.base import Method, State
from strategies.registry import STRATEGIES
from strategies.rounds.firewall import MOST_ROWS, admitted, most_rows
from strategies.rounds.promises import promises
from strategies.state import Rows, Setting

MOST = max(*ROWS, PRINTED)
# Lies about what only some answers have: scales, an adapter of rank 4, an earlier answer.
SPECIAL = {"rank 1 for rank 4", "transposed", "replay of an earlier round", "one row too many"}
NORMS = {"x1000", "x1e30", "one product in a far basis"}  # the norms' business
FACTS = {"scale of NaN", "scale of infinity", "huge scale", "no JSON", "scale of 10 000 digits"}
TENSORS = {"nan", "inf", "minus inf", "nan everywhere", "flattened", "empty arrays", "float64"}


def exchanges(method: Method, players: list[Player]) -> Iterator[tuple[Job, Update]]:
    """Every job of two rounds with its honest answer, scores included."""
    state: State = method.start()
    for round_, cohort in enumerate((ALL, (0, 2, 5)), start=1):
        state = replace(state, round=round_, phase=0)
        while jobs := method.plan(state, cohort):
            answers = [(job, players[job.partition].answer(job)) for job in jobs]
            yield from answers
            state = method.merge(state, (update for _, update in answers))
            state = method.acknowledged(state, jobs)
        for partition in ALL:
            job = method.job(state, partition, "evaluate")
            yield job, players[partition].answer(job)
            state = method.acknowledged(state, [job])


def heard(method: Method, job: Job, content: RecordDict) -> Update:
    return admitted(job, copied(content), method.setting, MOST)


def refusal(method: Method, job: Job, content: RecordDict) -> str:
    """Why an answer is refused; a line end where it is not."""
    try:
        heard(method, job, content)
    except WireError as error:
        return str(error)
    return "\n"


def same(left: Update, right: Update) -> bool:
    return all(
        a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)
        for a, b in (
            (left.parts.body(), right.parts.body()),
            (left.parts.head, right.parts.head),
            (left.fingerprint, right.fingerprint),
        )
    )


def one_of_each_action(method: Method) -> Iterator[tuple[Job, RecordDict]]:
    """One job of each action a method asks for, and an honest answer to it."""
    seen = set()
    for job, update in exchanges(method, crew(method)):
        if job.action not in seen:
            seen.add(job.action)
            yield job, pack_update(update, job)


def test_every_honest_answer_passes_whole(name: str) -> None:
    method = widest(name)
    actions = set()
    for job, update in exchanges(method, crew(method)):
        assert same(heard(method, job, pack_update(update, job)), update)
        actions.add(job.action)
    assert len(actions) > 1


def test_no_corrupted_answer_passes(name: str) -> None:
    """One job of each action; of what an answer doesn't have nothing can be corrupted."""
    method = widest(name)
    for job, honest in one_of_each_action(method):
        for kind, lie in REJECTED.items():
            if kind in SPECIAL | NORMS or not applies(kind, honest, job):
                continue
            bad = lie(copied(honest), [])
            assert refusal(method, job, bad).isprintable(), (kind, job.action)


def applies(kind: str, honest: RecordDict, job: Job) -> bool:
    arrays = set(honest.array_records)
    tensors = arrays - {"fingerprint"}
    if kind in {"zero count", "loss of NaN"}:  # nobody has rows to be scored on, or it diverged
        return job.action.startswith("train")
    if kind == "another partition's answer":
        return job.partition != 0
    if kind in {"another action's answer", "an answer about other rows"}:
        return job.action != "evaluate"
    if kind in FACTS:
        return "facts" in honest and '"m' in str(honest["facts"]["facts"])
    if kind in TENSORS or kind in {"float16", "integers"}:
        return bool(tensors) and not job.sparse  # whose first array is a bitmap
    about_arrays = (
        *("object", "pickle", "torch", "header", "zip", "truncated", "trailing", "oversize"),
        *("big-endian", "missing", "extra tensor", "path", "absolute", "NUL in", "long name"),
        *("terminal", "renamed", "digits"),
    )
    return bool(arrays) or not kind.startswith(about_arrays)


@pytest.mark.parametrize("name_", sorted(STRATEGIES))
def test_every_tensor_is_promised_to_the_byte(name_: str) -> None:
    """One byte more, one less, another shape told or another type: of each array of each answer."""
    method = widest(name_)
    for job, honest in one_of_each_action(method):
        promised = promises(job, method.setting, honest)
        assert {k: set(v) - {"rows"} for k, v in promised.items()} == {
            kind: set(record) for kind, record in honest.array_records.items() if record
        }
        for kind, record in honest.array_records.items():
            for tensor in record:
                for data, shape in altered(record[tensor]):
                    bad = copied(honest)
                    was = record[tensor]
                    bad.array_records[kind][tensor] = Array(was.dtype, shape, was.stype, data)
                    with pytest.raises(WireError):
                        heard(method, job, bad)


def altered(array: Array) -> Iterator[tuple[bytes, tuple[int, ...]]]:
    yield array.data + b"\0", array.shape
    yield array.data[:-1], array.shape
    yield array.data, (*array.shape, 1)
    yield b"", array.shape
    yield array.data[:60], array.shape


# ------------------------------------------------------------------ how many rows


def setting(rows: tuple[Rows, ...] = ()) -> Setting:
    return Setting(("a", "a"), {"a": 2}, (), (1, 1), "shared", {}, rows=rows)


def test_rows_are_bounded_by_what_was_dealt_or_declared() -> None:
    dealt = setting((Rows(10, 3, 7), Rows(20, 4, 7)))
    train, own = Job(1, "train", 1), Job(1, "evaluate", 1)
    lies = {1: {"rows": 10**30, "own-rows": 10**30}}
    assert most_rows(train, dealt, lies) == 20
    assert most_rows(replace(train, pool=(0, 1)), dealt, {}) == 30
    assert most_rows(own, dealt, lies) == 4
    assert most_rows(replace(own, rows="full"), dealt, {}) == 7
    assert most_rows(Job(1, "train.score", 1, rows="held"), dealt, {}) == 20
    unknown = setting()
    assert most_rows(train, unknown, {}) == MOST_ROWS
    assert most_rows(train, unknown, lies) == MOST_ROWS
    assert most_rows(train, unknown, {1: {"rows": 12}}) == 12
    assert most_rows(own, unknown, {1: {"rows": 12, "own-rows": 5}}) == 5


def test_the_count_may_be_all_rows_and_no_more() -> None:
    method = widest("fedavg")
    player = crew(method)[0]
    job = (method.plan(replace(method.start(), round=1), ALL) or [])[0]
    update = player.answer(job)
    content = pack_update(update, job)
    assert admitted(job, content, method.setting, 10).report.num_examples == 10
    with pytest.raises(WireError, match="num-examples: must be an integer of at most 9"):
        admitted(job, content, method.setting, 9)


def test_denormals_are_numbers() -> None:
    method = widest("fedavg")
    job = (method.plan(replace(method.start(), round=1), ALL) or [])[0]
    update = crew(method)[0].answer(job)
    head = {n: np.full_like(t, 1e-42) for n, t in update.parts.head.items()}
    tiny = replace(update, parts=replace(update.parts, head=head))
    assert same(heard(method, job, pack_update(tiny, job)), tiny)
