"""How many clients share a GPU, from what one of them needs: numbers in, a plan out. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from atlas_flwr.errors import ConfigError

# Of the memory that is free: peaks differ from client to client, and allocators split their pools.
MARGIN = 0.1
_STEPS = 10_000  # Ray counts shares of a GPU in ten-thousandths, and rounds


@dataclass(frozen=True)
class Need:
    """What one client needs on its device; the largest of a federation stands for all.

    Attributes:
        peak_mb: The most its process held there, in 10^6 bytes.
        base_mb: As much of that as no batch changes: context, weights, adapter, optimizer.
        batch: Rows passed at once when that peak was reached.
        host_mb: The most its process held in main memory; 0: not known.
        wanted: Rows of the whole batch, where ``batch`` is less: more didn't fit; 0: ``batch``.
    """

    peak_mb: float
    base_mb: float
    batch: int
    host_mb: float = 0.0
    wanted: int = 0

    @property
    def row_mb(self) -> float:
        """What one row adds."""
        return max(0.0, self.peak_mb - self.base_mb) / self.batch

    def at(self, micro_batch: int) -> float:
        """Return the peak with so many rows passed at once."""
        return self.base_mb + self.row_mb * micro_batch


@dataclass(frozen=True)
class Room:
    """What the machine has.

    Attributes:
        free_mb: Free memory of each GPU, in 10^6 bytes: of the one that has least.
        total_mb: Its whole memory.
        gpus: How many there are.
        cpus: Processor cores, or clients' worth of them.
        host_mb: Main memory that is available; 0: not known.
    """

    free_mb: float
    total_mb: float
    gpus: int = 1
    cpus: int = 1
    host_mb: float = 0.0


@dataclass(frozen=True)
class Plan:
    """How clients share the GPUs.

    Attributes:
        workers: Clients at a time, on all GPUs together.
        per_gpu: Clients at a time on one.
        fraction: Each client's share of a GPU, as Ray is told: never more than ``1 / per_gpu``.
        micro_batch: Rows passed at once; less than the batch where one client alone needs it.
        reasons: What it was chosen by, a line each.
    """

    workers: int
    per_gpu: int
    fraction: float
    micro_batch: int
    reasons: tuple[str, ...]


def plan(need: Need, room: Room, clients: int, margin: float = MARGIN) -> Plan:
    """Choose how many clients share a GPU, and how many rows one passes at once.

    As many clients as the free memory holds, less a margin; no more than there are cores, main
    memory or clients for. Where not even one fits, its batch is halved until it does, as training
    does by itself when memory runs out: gradients accumulate, the effective batch stays.

    Args:
        need: What one client needs.
        room: What there is.
        clients: How many take part.
        margin: Share of the free memory to leave alone, in [0, 1).

    Raises:
        ConfigError: One client doesn't fit with a single row; the message names the least memory.
    """
    budget = room.free_mb * (1 - margin)
    micro = need.batch
    while need.at(micro) > budget and micro > 1:
        micro //= 2
    peak = need.at(micro)
    if peak > budget:
        least = peak / (1 - margin)
        raise ConfigError(
            f"engine.gpus-per-client: one client needs {least:,.0f} MB of GPU memory with a single "
            f"row, {room.free_mb:,.0f} of {room.total_mb:,.0f} MB are free; lower "
            "model.max-length, choose a smaller model, end what else runs there, or set "
            "engine.device = 'cpu'"
        )
    limits = {"clients": clients, "memory of the GPU": _whole(budget, peak) * room.gpus}
    limits["CPU cores"] = room.cpus
    if need.host_mb and room.host_mb:
        limits["main memory"] = _whole(room.host_mb * (1 - margin), need.host_mb)
    workers = max(1, min(limits.values()))
    per_gpu = math.ceil(workers / room.gpus)
    by = next(name for name, most in limits.items() if most <= workers)
    fraction = _STEPS // per_gpu / _STEPS
    told = _told(need, room, Plan(workers, per_gpu, fraction, micro, ()), by)
    return Plan(workers, per_gpu, fraction, micro, told)


def _whole(room: float, each: float) -> int:
    """Return how many times something fits, at most as often as a GPU has shares."""
    return math.floor(min(room / each, _STEPS)) if each > 0 else _STEPS


def _told(need: Need, room: Room, chosen: Plan, by: str) -> tuple[str, ...]:
    """Say what was chosen, and why."""
    share = (
        "one client has a GPU for itself"
        if chosen.per_gpu == 1
        else f"{chosen.per_gpu} clients share a GPU"
    )
    cards = f" ({chosen.workers} at a time on {room.gpus} GPUs)" if room.gpus > 1 else ""
    least = f"{room.free_mb:,.0f} of {room.total_mb:,.0f} MB free"
    first = (
        f"{share}{cards}: one needs {need.at(chosen.micro_batch):,.0f} MB, {least}; limited by {by}"
    )
    wanted = need.wanted or need.batch
    if chosen.micro_batch >= wanted:
        return (first,)
    return (
        first,
        f"a batch of {wanted} rows does not fit: {chosen.micro_batch} are passed at once and "
        "gradients accumulate; the effective batch is unchanged",
    )
