"""How far an answer moves what was sent, and when that is too far. Pure.

The norm of an answer is told apart by what moved. Of adapters it is the Frobenius norm of the
change of all effective updates together, ``‖s B A − s₀ B₀ A₀‖`` over all modules, by r × r Gram
matrices; of a factor whose partner never leaves the client, of cores, weights and heads that of
their own change; of a fingerprint that of its sketch. What was not sent with the job counts from
zero, and is compared with its like alone. Where both factors come back their sizes count too, each
by itself: of ``(B t, A / t)`` the product is the same for every t, and the mean of A times the mean
of B, which many methods merge, is not.

One answer is too far when its norm is more than ``ratio`` times the median norm of its like: of all
answers of its exchange, or of those of an earlier one, whichever is larger. Rounds differ by more
than clients do (a model that has converged hardly moves, and one that wakes up moves all clients at
once), so the largest median of earlier exchanges never makes the bound of today's tighter. A median
is not moved past the honest by a minority, whatever they send (breakdown point 1/2); there is no
other claim: what stays within the ratio passes, a flipped sign among it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from atlas_flwr.aggregation.products import difference, gram_norm
from atlas_flwr.errors import WireError
from atlas_flwr.types import Adapter, Job, LoraFactors, ModelParts, Tensors, Update
from strategies.state import Setting

Norms = dict[str, float]
Known = Mapping[str, tuple[float, ...]]

LEAST = 3  # norms that make a median
KEPT = 64  # medians remembered of each kind
CEILING = 1e12  # whatever the others sent: squares and sums stay finite in single precision
_FEW = "/few"  # norms that are too few for a median so far
_ADAPTER, _PARTS = "adapter", ("core", "weights", "head")
_FAR = 10.0  # how many times further a client may go for steps that it declares itself


def _start(job: Job, chosen: int) -> ModelParts:
    """Return the model that a client started from, as far as it was sent with the job."""
    if job.action == "train.gradient":
        return ModelParts()
    return job.choices[chosen] if job.choices else job.parts


def norms_of(job: Job, update: Update) -> Norms:
    """Return the norms of an answer by action and kind; none of an answer without tensors.

    Args:
        job: What was asked.
        update: The answer, its shapes as they were asked for and its values finite.
    """
    losses = update.fingerprint.get("losses", np.zeros(1))
    sent, came = _start(job, int(np.argmin(losses))), update.parts
    found = dict[str, float]()
    if job.action == "train.sparse":  # what comes is the movement itself
        whole = {  # in double precision, where no sum of two singles is infinite
            name: tensor.astype(np.float64) + came.body()[name]
            for name, tensor in sent.body().items()
        }
        came = came.with_body({**came.body(), **whole})
    if came.adapter:
        found[_key(job, _ADAPTER, bool(sent.adapter))] = _moved(came.adapter, sent.adapter)
        found |= _factors(job, came.adapter, sent.adapter)
    for kind in _PARTS:
        tensors, before = getattr(came, kind), getattr(sent, kind)
        if tensors:
            found[_key(job, kind, bool(before))] = _changed(tensors, before)
    if "sketch" in update.fingerprint and not job.options.get("noise"):
        sketch = update.fingerprint["sketch"].astype(np.float64)
        found[_key(job, "fingerprint", False)] = float(np.linalg.norm(sketch))
    return found


def kind_of(name: str, heads: Collection[str]) -> str:
    """Return the part of a model that a tensor belongs to: adapter, core, head or weights."""
    match name.rpartition(".")[2]:
        case "lora_A" | "lora_B":
            return _ADAPTER
        case "core":
            return "core"
        case _:
            return "head" if name in heads else "weights"


def _key(job: Job, kind: str, sent: bool) -> str:
    return f"{job.action}/{kind}" + ("" if sent else "/from-zero")


def _moved(came: Adapter, sent: Adapter) -> float:
    """Return the norm of the change of all products; of lone factors that of their own."""
    return math.hypot(*(_module(f, sent.get(module)) for module, f in came.items()))


def _factors(job: Job, came: Adapter, sent: Adapter) -> Norms:
    """Return the sizes of A and of B, a rank of each module on average, where both came back.

    Before anything is learnt B is zero and A as it was drawn: a start of its own, as if not sent.
    """
    whole = [factors for factors in came.values() if factors.whole]
    begun = any(factors.b.any() for factors in sent.values())
    return {
        _key(job, f"lora_{name.upper()}", begun): math.hypot(
            *(_changed({name: getattr(f, name)}, {}) / math.sqrt(f.rank) for f in whole)
        )
        for name in ("a", "b")
        if whole
    }


def _module(came: LoraFactors, sent: LoraFactors | None) -> float:
    if sent is not None and sent.rank == came.rank:
        came = came.filled(sent)
    if came.whole:
        return gram_norm(came if sent is None or not sent.whole else difference(came, sent))
    name = "a" if came.a.size else "b"
    own, before = getattr(came, name), None if sent is None else getattr(sent, name)
    return _changed({name: own}, {} if before is None else {name: before})


def _changed(tensors: Tensors, before: Tensors) -> float:
    """Return the norm of tensors minus those of the same name and shape."""
    sizes = []
    for name, tensor in tensors.items():
        old, new = before.get(name), tensor.astype(np.float64)
        if old is not None and old.shape == new.shape:
            new -= old
        sizes.append(float(np.linalg.norm(new)))
    return math.hypot(*sizes)


# ------------------------------------------------------------------ too far


def strides(setting: Setting) -> tuple[float, ...]:
    """Return how many times the median number of local steps each client takes, at least 1.

    A client that takes more steps may move so much further: at one learning rate a step of Adam is
    bounded. Where nobody dealt the rows, steps are what clients say, and count ten times at most.
    """
    typical, most = float(np.median(setting.steps)) or 1.0, math.inf if setting.rows else _FAR
    return tuple(min(max(1.0, steps / typical), most) for steps in setting.steps)


def stride_of(job: Job, strides_: Sequence[float]) -> float:
    """Return the stride of a job: that of the partition, or the sum over a pool of them.

    What is measured and not trained doesn't grow with steps: 1.
    """
    if job.action in ("train.fingerprint", "train.gradient", "train.score"):
        return 1.0
    return math.fsum(strides_[p] for p in job.pool or (job.partition,))


def bounds(known: Known, own: Known, ratio: float) -> dict[str, float]:
    """Return the most that norms of one stride may be, by key; a key without a bound is absent.

    Args:
        known: What is remembered of earlier exchanges.
        own: Norms of this exchange, for one stride.
        ratio: How many times a median; 0: no bound.
    """
    found = {}
    for key in known.keys() | own.keys() if ratio else ():
        now = (_middle(own[key]),) if len(own.get(key, ())) >= LEAST else ()
        most = ratio * max((*known.get(key, ()), *now), default=0.0)
        if most > 0 and not key.endswith(_FEW):
            found[key] = most
    return found


def _middle(norms: Sequence[float]) -> float:
    """Return the median; of two middles the lower, or half the answers could set it."""
    return sorted(norms)[(len(norms) - 1) // 2]


def check_norms(own: Norms, most: Mapping[str, float], ratio: float, stride: float = 1.0) -> None:
    """Refuse an answer that moved too far.

    Args:
        own: Norms of the answer.
        most: ``bounds`` of its like.
        ratio: How many times the median they are, for the message.
        stride: How far the client may go for its steps.

    Raises:
        WireError: Names the kind, the norm and the most it may be.
    """
    for key, norm in own.items():
        limit, why = most.get(key, CEILING) * stride, f"{ratio:g} times the median"
        if limit >= CEILING:
            limit, why = CEILING, "whatever the others sent"
        if not norm <= limit:
            raise WireError(f"norm of {key} {norm:.3g}, at most {limit:.3g} ({why})")


def together(sizes: Iterable[tuple[Norms, float]]) -> dict[str, tuple[float, ...]]:
    """Return norms of one stride by key, given norms and stride of each answer."""
    found: dict[str, tuple[float, ...]] = {}
    for norms, stride in sizes:
        for key, norm in norms.items():
            found[key] = (*found.get(key, ()), norm / stride)
    return found


def remembered(known: Known, accepted: Known) -> Known:
    """Return what is remembered, with an exchange: the last medians by key.

    Norms of exchanges too small for a median wait under a key of their own until they make one.

    Args:
        known: As before.
        accepted: Norms of the answers that were accepted, for one stride.
    """
    found = dict(known)
    for key, new in accepted.items():
        pool = (*found.pop(key + _FEW, ()), *new)
        if len(pool) >= LEAST:
            found[key] = (*found.get(key, ()), _middle(pool))[-KEPT:]
        else:
            found[key + _FEW] = pool
    return found
