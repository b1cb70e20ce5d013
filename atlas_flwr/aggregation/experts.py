"""Several LoRA experts and a router on each module, as named tensors of one message (FedLEASE).

A client's own expert travels as its adapter. Beside it, of each module: ``<module>.router`` of
shape ``(2M − 1, d_in)``, and the factors of every *other* expert, ``<module>.expert-<i>.lora_A``
and ``.lora_B``. Their scale is the own expert's. Which expert is the client's own is the number
that is missing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atlas_flwr.errors import WireError
from atlas_flwr.types import Adapter, Array, Tensors

ROUTER = ".router"
_EXPERT = re.compile(r"(?P<module>.+)\.expert-(?P<number>\d+)\.lora_(?P<factor>[AB])")


@dataclass(frozen=True)
class ModuleExperts:
    """The experts of one module as a client sees them.

    Attributes:
        own: The number of the client's own expert, which it holds as its adapter.
        router: G, shape ``(2M − 1, d_in)`` for M experts.
        others: ``(A, B)`` of each other expert by number.
    """

    own: int
    router: Array
    others: Mapping[int, tuple[Array, Array]]

    @property
    def count(self) -> int:
        """M, the number of experts, the client's own among them."""
        return len(self.others) + 1


def pack(routers: Tensors, experts: Sequence[Adapter], own: int) -> dict[str, Array]:
    """Return a client's routers and the experts that are not its own, float32, by name.

    Args:
        routers: Routers by name, as ``routers_of`` returns them.
        experts: Every expert's adapter.
        own: Number of the client's own.
    """
    flat = dict(routers)
    for number, adapter in enumerate(experts):
        for module, factors in adapter.items() if number != own else ():
            flat[f"{module}.expert-{number}.lora_A"] = factors.a
            flat[f"{module}.expert-{number}.lora_B"] = factors.b
    return {name: tensor.astype(np.float32, copy=False) for name, tensor in flat.items()}


def routers_of(flat: Tensors) -> dict[str, Array]:
    """Return the routers among the named tensors."""
    return {name: tensor for name, tensor in flat.items() if name.endswith(ROUTER)}


def unpack(flat: Tensors) -> dict[str, ModuleExperts]:
    """Return the experts of each module behind named tensors.

    Raises:
        WireError: A name is of no expert, or routers and experts don't belong together.
    """
    routers = {n.removesuffix(ROUTER): router for n, router in routers_of(flat).items()}
    factors: dict[str, dict[int, dict[str, Array]]] = {module: {} for module in routers}
    for name in flat.keys() - routers_of(flat).keys():
        found = _EXPERT.fullmatch(name)
        if found is None or found["module"] not in factors:
            raise WireError(f"'{name}' is of no expert that has a router")
        of_one = factors[found["module"]].setdefault(int(found["number"]), {})
        of_one[found["factor"]] = flat[name]
    return {module: _of_one(module, routers[module], factors[module]) for module in routers}


def _of_one(
    module: str, router: Array, factors: Mapping[int, Mapping[str, Array]]
) -> ModuleExperts:
    """Return one module's experts, of which exactly one number is missing: the client's own."""
    missing = sorted({*range(len(factors) + 1)} - factors.keys())
    whole = all(pair.keys() == {"A", "B"} for pair in factors.values())
    if len(missing) != 1 or not whole or router.ndim != 2 or len(router) != 2 * len(factors) + 1:
        raise WireError(
            f"{module}: a router of shape {router.shape} and the experts {sorted(factors)} "
            "are not those of one mixture"
        )
    others = {number: (factors[number]["A"], factors[number]["B"]) for number in sorted(factors)}
    return ModuleExperts(missing[0], router, others)
