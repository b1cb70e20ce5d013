"""Every array that an honest answer to a job holds: its record, name, shape and number type."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord, RecordDict

from atlas_flwr.errors import AggregationError, WireError
from atlas_flwr.fingerprint import promised
from atlas_flwr.payload import Promise
from atlas_flwr.ranks.importance import IMPORTANCE
from atlas_flwr.types import Job
from atlas_flwr.wire import FINGERPRINT
from strategies.rounds.norms import kind_of
from strategies.state import Setting

Promises = dict[str, dict[str, Promise]]


def promises(job: Job, setting: Setting, content: RecordDict) -> Promises:
    """Return every array that an honest answer holds, by kind and name.

    Args:
        job: What was asked.
        setting: Facts of the run.
        content: The answer; read for the width of a fingerprint that the server can't know.
    """
    found: Promises = {}
    heads = setting.initial_for(job.partition).head
    for name, shape in job.expects.items():
        kind = kind_of(name, heads).replace("core", "adapter")  # the kind they travel as
        found.setdefault(kind, {})[name] = _promise(job, name, shape)
    if job.sparse and "adapter" in found:
        found["adapter"] = _sparse(found["adapter"])
    if told := _prints(job, setting, content):
        found[FINGERPRINT] = told
    return found


def _promise(job: Job, name: str, shape: tuple[int, ...]) -> Promise:
    ending = name.rpartition(".")[2]
    free = {"lora_A": 0, "lora_B": 1}.get(ending) if job.shrinks else None
    return Promise(shape, free=free, least=1)


def _sparse(dense: Mapping[str, Promise]) -> dict[str, Promise]:
    """Return the bitmaps and values that matrices travel as without their zeros."""
    found = {}
    for name, promise in dense.items():
        rows, columns = promise.shape
        found[f"{name}.bits"] = Promise((rows, -(-columns // 8)), "uint8")
        found[f"{name}.values"] = Promise((rows * columns,), free=0)
    return found


def _prints(job: Job, setting: Setting, content: RecordDict) -> dict[str, Promise]:
    """Return the arrays of what was asked of a client's rows, or of models' losses on them."""
    if job.choices:
        losses = {"losses": Promise((len(job.choices),), "float64")}
        return losses if job.action != "train.score" else losses | {"rows": Promise((1,), "int64")}
    if job.action != "train.fingerprint":
        return {}
    came = content.array_records.get(FINGERPRINT, ArrayRecord())
    try:
        shapes = promised.shapes(print_asked(job, setting), {n: a.shape for n, a in came.items()})
    except AggregationError as error:
        raise WireError(str(error)) from error
    found = {name: Promise(shape, dtype) for name, (shape, dtype) in shapes.items()}
    if wanted := int(job.options.get("importance-rank", 0)):
        modules = len(setting.initial_for(job.partition).adapter)
        found[IMPORTANCE] = Promise((modules, wanted), "float16")
    return found


def print_asked(job: Job, setting: Setting) -> promised.Asked:
    """Return what the client's fingerprint is to be."""
    labels = setting.num_labels[setting.tasks[job.partition]]
    return promised.Asked(job.options, labels, setting.features)
