"""The rules of a run that no method changes: who is drawn, how long to wait, what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from atlas_flwr.errors import WireError
from atlas_flwr.ranks.importance import IMPORTANCE
from atlas_flwr.results.record import Bytes, ClientRow, RoundRecord
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Array, Job, Update
from strategies.state import State


class Observer(Protocol):
    """Who is told what happens: the run directory and the screen."""

    def phase(self, round_: int, phase: str, partitions: Sequence[int]) -> None:
        """A phase begins."""

    def arrived(self, done: int, total: int) -> None:
        """So many replies of a phase are there, and wait for the others to be judged."""

    def client(self, row: ClientRow, notes: Sequence[str], done: int, total: int) -> None:
        """A client has answered, or is lost."""

    def round(self, record: RoundRecord) -> None:
        """A round has ended."""

    def commit(self, state: State, moved: Bytes) -> State:
        """A round's numbers are told: keep where the run stands; return what it goes on from.

        Raises:
            RunStopped: The run's time is up; it can be resumed.
        """

    def clusters(self, facts: Mapping[str, Any]) -> None:
        """Clients have been clustered; how and why."""


@dataclass(frozen=True)
class Limits:
    """How a run samples, waits and forgives.

    Attributes:
        seed: The run's seed.
        rounds: Rounds to go.
        fraction: Share of the clients drawn for training each round.
        timeout: Seconds without any reply after which silent clients are lost.
        on_failure: ``"raise"`` stops at a lost client, ``"skip"`` goes on.
        min_results: Replies a phase needs under ``"skip"``.
        norm_ratio: How many times the median norm an answer may have; 0: any.
    """

    seed: int
    rounds: int
    fraction: float = 1.0
    timeout: float = 3600.0
    on_failure: Literal["raise", "skip"] = "raise"
    min_results: int = 1
    norm_ratio: float = 10.0


def draw_cohort(seed: int, round_: int, clients: int, fraction: float) -> list[int]:
    """Return the partitions that train in a round, in order; at least one.

    Drawn by partition id from the seed: node ids and arrival never matter.
    """
    size = max(1, round(fraction * clients))
    drawn = rng_for(seed, "cohort", round_).choice(clients, size=size, replace=False)
    return sorted(int(partition) for partition in drawn)


def phase_of(job: Job) -> str:
    """Return the phase of a round that a training job belongs to."""
    return {"train.fingerprint": "fingerprint", "train.score": "score"}.get(job.action, "train")


def check_schema(job: Job, update: Update) -> None:
    """Refuse a training update whose tensors are not those that were asked for.

    Raises:
        WireError: Names the first tensor that is missing, extra, of another shape or not finite,
            an update that used no rows, or losses that are not one for each choice.
    """
    if not job.action.startswith("train"):
        return
    if update.report.num_examples == 0:
        raise WireError("num-examples: 0 rows can't weigh in a mean")
    for name, tensor in update.fingerprint.items():
        _check_finite(f"fingerprint {name}", tensor)
        if name == IMPORTANCE and (tensor < 0).any():
            raise WireError("fingerprint importance: singular values are not negative")
    _check_scales(job, update)
    _check_losses(job, update)
    got = update.parts.body() | dict(update.parts.head)
    if odd := sorted(job.expects.keys() ^ got.keys()) or sorted(update.parts.delta):
        raise WireError(f"{odd[0]}: asked for and returned tensors differ")
    for name, shape in job.expects.items():
        if got[name].shape != shape and not (job.shrinks and _cut(name, got[name].shape, shape)):
            raise WireError(f"{name}: shape {got[name].shape}, expected {shape}")
        _check_finite(name, got[name])


def _check_finite(name: str, tensor: Array) -> None:
    if not np.isfinite(tensor).all():
        raise WireError(f"{name}: holds values that are not finite")


def _check_scales(job: Job, update: Update) -> None:
    """Refuse factors that came back at another scale than they were sent with."""
    if job.action == "train.gradient":  # no adapter, but directions of scale 1
        return
    for sent in (job.parts, *job.choices):
        for module, factors in sent.adapter.items():
            back = update.parts.adapter.get(module, factors).scale
            if back != factors.scale:
                raise WireError(f"{module}: scale {back}, sent with {factors.scale}")


def _check_losses(job: Job, update: Update) -> None:
    """Refuse an answer that doesn't tell one loss for each model it had to choose from."""
    losses = update.fingerprint.get("losses")
    if job.choices and (losses is None or losses.shape != (len(job.choices),)):
        shape = None if losses is None else losses.shape
        raise WireError(f"losses: shape {shape} for {len(job.choices)} models to choose from")


def _cut(name: str, got: tuple[int, ...], asked: tuple[int, ...]) -> bool:
    """Tell whether a tensor is the factor asked for but for ranks that were given up."""
    match name.rpartition(".")[2], got, asked:
        case "lora_A", (rank, d_in), (limit, wanted):
            return d_in == wanted and 0 < rank <= limit
        case "lora_B", (d_out, rank), (wanted, limit):
            return d_out == wanted and 0 < rank <= limit
    return False
