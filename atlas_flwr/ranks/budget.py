"""What a device can afford of an adapter: by memory, by trainable state, by uplink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from atlas_flwr.errors import ConfigError
from atlas_flwr.ranks.memory import STATE_BYTES, Memory

Limit = Literal["memory", "state", "uplink"]


@dataclass(frozen=True)
class Budget:
    """What a device grants, in bytes; None grants without a limit.

    Attributes:
        memory: The whole training process.
        state: What is trained: adapter and head with gradients and moments.
        uplink: What one round sends up: the adapter's tensors, and the head's.
    """

    memory: int | None = None
    state: int | None = None
    uplink: int | None = None


@dataclass(frozen=True)
class Allowance:
    """What is left for the adapter.

    Attributes:
        params: Adapter parameters ``Σ r (d_out + d_in)`` the device affords.
        by: The limit that binds, the smallest; None if there is none.
        each: Parameters by limit: with memory far above the others, memory does not bind.
    """

    params: int | None
    by: Limit | None
    each: Mapping[Limit, int]


@dataclass(frozen=True)
class Grant:
    """What one client may spend on its adapter, and who says so.

    Attributes:
        params: Adapter parameters ``Σ r (d_out + d_in)``.
        by: The limit that binds; ``"lora.rank"`` where the client's own rank says it: without a
            device, on a device without limits, and for methods that give a client one rank.
        device: Name of the device.
        each: Parameters by limit: with memory far above the others, memory does not bind.
        resting: Memory predicted without an adapter; each parameter adds ``STATE_BYTES``. None
            without a device, if the model's shape is not known.
    """

    params: int
    by: Limit | Literal["lora.rank"] = "lora.rank"
    device: str | None = None
    each: Mapping[Limit, int] = field(default_factory=dict)
    resting: Memory | None = None


def allowance(
    budget: Budget, resting: Memory, *, head: int = 0, value_bytes: int = 4, sends_head: bool = True
) -> Allowance:
    """Return how many adapter parameters a budget leaves.

    Args:
        budget: The device's limits.
        resting: Memory predicted (or measured) without an adapter.
        head: Parameters of the trained head.
        value_bytes: Bytes a parameter has on the wire.
        sends_head: Whether the head travels too.

    Raises:
        ConfigError: A limit is used up before the adapter has a parameter.
    """
    each: dict[Limit, int] = {}
    if budget.memory is not None:
        each["memory"] = (budget.memory - (resting.total - resting.adapter)) // STATE_BYTES
    if budget.state is not None:
        each["state"] = budget.state // STATE_BYTES - head
    if budget.uplink is not None:
        each["uplink"] = budget.uplink // value_bytes - (head if sends_head else 0)
    for limit, params in each.items():
        if params <= 0:
            given = getattr(budget, limit)
            raise ConfigError(f"{given} bytes of {limit} leave nothing for an adapter")
    by = min(each, key=lambda limit: each[limit], default=None)
    return Allowance(None if by is None else each[by], by, each)


def rank_costs(shapes: Mapping[str, tuple[int, int]], bytes_per_param: int = 1) -> dict[str, int]:
    """Return what one rank of each module costs, ``d_out + d_in`` parameters, or that in bytes.

    Args:
        shapes: ``(d_out, d_in)`` by module.
        bytes_per_param: 1 counts parameters, 4 float32 on the wire, ``STATE_BYTES`` memory.
    """
    return {module: bytes_per_param * sum(shape) for module, shape in shapes.items()}


def cost(ranks: Mapping[str, int], cost_per_rank: Mapping[str, int]) -> int:
    """Return what ranks cost together, in the unit of ``cost_per_rank``."""
    return sum(rank * cost_per_rank[module] for module, rank in ranks.items())
