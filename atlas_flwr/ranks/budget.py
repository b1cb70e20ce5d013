"""What a device can afford of an adapter: by memory, by trainable state, by uplink."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from atlas_flwr.errors import ConfigError
from atlas_flwr.ranks.memory import STATE_BYTES, Memory

Limit = Literal["memory", "state", "uplink"]
VALUE_BYTES = 4  # of a float32 that is held and not trained


@dataclass(frozen=True)
class Budget:
    """What a device grants, in bytes; None grants without a limit.

    Attributes:
        memory: The whole training process.
        state: What is trained: adapter and head with gradients and moments.
        uplink: The message that a round's training is answered with: the adapter's tensors, the
            head's, and what stands beside them. What is told apart from a trained model, a
            fingerprint or losses, does not count, nor does a note of trouble (out of memory).
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

    A method that gives a client one rank uses that rank whatever its device's uplink and trainable
    state: there the grant says what the rank costs, and only memory was checked.

    Attributes:
        params: Adapter parameters ``Σ r (d_out + d_in)``.
        by: The limit that binds; ``"lora.rank"`` where the client's own rank says it: without a
            device, on a device without limits, and for methods that give a client one rank.
        device: Name of the device.
        each: Parameters by limit: with memory far above the others, memory does not bind.
        resting: Memory predicted without an adapter; ``memory`` adds the adapter's. None without a
            device, if the model's shape is not known.
        rank_bytes: What a rank of a module holds of ``A x`` beside its parameters.
        ranks: The most that the modules' ranks can sum to.
    """

    params: int
    by: Limit | Literal["lora.rank"] = "lora.rank"
    device: str | None = None
    each: Mapping[Limit, int] = field(default_factory=dict)
    resting: Memory | None = None
    rank_bytes: int = 0
    ranks: int = 0

    @property
    def needs(self) -> int | None:
        """The bytes that training holds at most, the whole grant spent; None if not known."""
        return self.memory(self.params, self.ranks)

    def memory(self, params: int, ranks: int, frozen: int = 0) -> int | None:
        """Return the bytes predicted for an adapter; None if the model's shape is not known.

        Args:
            params: Its trained parameters.
            ranks: The sum of its modules' ranks.
            frozen: Its parameters that are held and not trained.
        """
        if self.resting is None:
            return None
        bare = self.resting.total - self.resting.adapter
        return bare + STATE_BYTES * params + VALUE_BYTES * frozen + self.rank_bytes * ranks

    def of_b_alone(self, shapes: Mapping[str, tuple[int, int]]) -> Grant:
        """Return the grant where A is frozen: parameters count ``Σ r d_out``.

        A parameter of B brings more of A and of ``A x`` with it than one of both: the memory is
        divided by the dearest module's bytes, so that no way to deal ranks exceeds it.

        Args:
            shapes: ``(d_out, d_in)`` by module.
        """
        if "memory" not in self.each:
            return self
        narrowest = min(rank_costs(shapes).values())
        room = self.each["memory"] * (STATE_BYTES * narrowest + self.rank_bytes) / narrowest
        dearest = max(
            STATE_BYTES + (VALUE_BYTES * d_in + self.rank_bytes) / d_out
            for d_out, d_in in shapes.values()
        )
        each: dict[Limit, int] = {**self.each, "memory": int(room / dearest)}
        params = min(self.params, each["memory"])
        by: Limit | Literal["lora.rank"] = "memory" if params < self.params else self.by
        return replace(self, params=params, by=by, each=each)


def allowance(
    budget: Budget,
    resting: Memory,
    *,
    head: int = 0,
    value_bytes: int = 4,
    sends_head: bool = True,
    rank_bytes: int = 0,
    narrowest: int = 1,
    overhead: int = 0,
) -> Allowance:
    """Return how many adapter parameters a budget leaves.

    However the parameters are dealt to modules, no limit is exceeded: for memory each is taken for
    one of the narrowest module, which has the most ranks, and the most ``A x``, to a parameter.

    Args:
        budget: The device's limits.
        resting: Memory predicted (or measured) without an adapter.
        head: Parameters of the trained head.
        value_bytes: Bytes a parameter has on the wire.
        sends_head: Whether the head travels too.
        rank_bytes: What a rank of a module holds beside its parameters (``memory.rank_bytes``).
        narrowest: The smallest ``d_out + d_in`` of the adapted modules.
        overhead: Bytes of a message beside its values: names, headers, what is reported.

    Raises:
        ConfigError: A limit is used up before the adapter has a parameter.
    """
    each: dict[Limit, int] = {}
    if budget.memory is not None:
        room = budget.memory - (resting.total - resting.adapter)
        each["memory"] = room * narrowest // (STATE_BYTES * narrowest + rank_bytes)
    if budget.state is not None:
        each["state"] = budget.state // STATE_BYTES - head
    if budget.uplink is not None:
        each["uplink"] = (budget.uplink - overhead) // value_bytes - (head if sends_head else 0)
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
