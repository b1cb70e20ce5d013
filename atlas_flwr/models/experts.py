"""LoRA layers as mixtures of experts, for as long as one job lasts (FedLEASE).

Each token chooses for itself: ``h = W x + Σ_i ω_i s B_i A_i x``. A router G of 2M − 1 outputs
scores M experts; outputs 0 to M − 1 stand for the experts, the other M − 1 for the client's own
once more. The M highest of ``softmax(G x)`` are kept and scaled to sum 1: M − 1 outputs alone are
of others, so the client's own expert is always among them, and all M may be its own, which is how
a client comes to use fewer than M experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file
from torch import nn

from atlas_flwr.aggregation.experts import ModuleExperts, unpack
from atlas_flwr.errors import WriteBackError
from atlas_flwr.models.lora import ADAPTER, factor_parameters
from atlas_flwr.types import Tensors

_CHILD = "atlas_experts"
EXPERTS_FILE = "experts.safetensors"
_NOTE = """# One expert of a mixture

The scores of this model in the run's tables are those of a *mixture* of LoRA experts: on every
adapted module a router mixes this adapter with the other clusters' experts, token by token
(FedLEASE). PEFT has no such layer. `adapter_model.safetensors` is the cluster's own expert and
head, and opened by PEFT **it scores differently from the table**.

`experts.safetensors` holds the rest: `<module>.router` and `<module>.expert-<i>.lora_A`/`.lora_B`
of the other experts, at the scale of the own one. `atlas_flwr.models.experts.mixed` puts both
together.
"""


class _Experts(nn.Module):
    """One module's router, trained, and the other clusters' experts, frozen."""

    own: torch.Tensor
    a: torch.Tensor
    b: torch.Tensor

    def __init__(self, experts: ModuleExperts, device: torch.device) -> None:
        super().__init__()
        others = [experts.others[number] for number in sorted(experts.others)]
        a = np.concatenate([pair[0] for pair in others])
        b = np.concatenate([pair[1] for pair in others], axis=1)
        self.count, self.number = experts.count, experts.own
        self.router = nn.Parameter(torch.tensor(experts.router, device=device))
        # Plain numbers in the order of the experts, a hole for the own one.
        self.register_buffer("a", torch.tensor(a, device=device), persistent=False)
        self.register_buffer("b", torch.tensor(b, device=device), persistent=False)
        mine = F.one_hot(torch.tensor(experts.own), self.count).float()
        self.register_buffer("own", mine.to(device), persistent=False)

    def gates(self, x: torch.Tensor) -> torch.Tensor:
        """Return ω, float32, shape ``(..., M)``, which sums to 1."""
        shares = torch.softmax(F.linear(x, self.router).float(), dim=-1)
        top, chosen = shares.topk(self.count, dim=-1)
        top = top / top.sum(dim=-1, keepdim=True)
        kept = torch.zeros_like(shares).scatter(-1, chosen, top)
        again = kept[..., self.count :].sum(dim=-1, keepdim=True)
        return kept[..., : self.count] + again * self.own

    def forward(self, x: torch.Tensor, dropped: torch.Tensor, layer: Any) -> torch.Tensor:
        """Return ``Σ_i ω_i s B_i A_i x``: all experts as one pair of factors, M times as wide."""
        own_a, own_b = factor_parameters(layer)
        rank = len(own_a)
        before = self.number * rank
        a = torch.cat([self.a[:before], own_a, self.a[before:]])
        b = torch.cat([self.b[:, :before], own_b, self.b[:, before:]], dim=1)
        down = F.linear(dropped, a)
        gates = self.gates(x).repeat_interleave(rank, dim=-1).to(down.dtype)
        scale = float(layer.scaling[ADAPTER])
        return F.linear(down * gates, b) * scale


@contextmanager
def mixed(
    layers: Mapping[str, Any], mixture: Mapping[str, ModuleExperts]
) -> Iterator[dict[str, nn.Parameter]]:
    """Make PEFT layers mixtures of their own factors and other experts, then plain layers again.

    The layers' own factors are the client's own expert, and stay trainable as they are; the other
    experts never move. Nothing of the model but the layers' ``forward`` is touched, and that is
    put back whatever happens. LoRA's dropout is on the experts' input and not on the router's.

    Args:
        layers: PEFT's LoRA layers by module.
        mixture: The other experts and the router of each.

    Yields:
        The routers by module, to be trained beside the factors.

    Raises:
        WriteBackError: Modules, ranks or widths are not those of the layers.
    """
    _check(layers, mixture)
    routers: dict[str, nn.Parameter] = {}
    try:
        for module, layer in layers.items():
            device = factor_parameters(layer)[0].device
            child = _Experts(mixture[module], device)
            layer.add_module(_CHILD, child)  # a child, so that it moves with the model
            layer.forward = _forward(layer, child)
            routers[module] = child.router
        yield routers
    finally:
        for module in routers:
            del layers[module].forward
            delattr(layers[module], _CHILD)


def _forward(layer: Any, experts: _Experts) -> Any:
    """Return the layer's forward as a mixture."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        base: torch.Tensor = layer.base_layer(x)
        change: torch.Tensor = experts(x, layer.lora_dropout[ADAPTER](x), layer)
        return base + change.to(base.dtype)

    return forward


def _check(layers: Mapping[str, Any], mixture: Mapping[str, ModuleExperts]) -> None:
    if odd := sorted(layers.keys() ^ mixture.keys()):
        raise WriteBackError(f"'{odd[0]}': experts were sent for other modules than are adapted")
    for module, layer in layers.items():
        a, b = (tuple(tensor.shape) for tensor in factor_parameters(layer))
        for number, (other_a, other_b) in mixture[module].others.items():
            if (other_a.shape, other_b.shape) != (a, b):
                raise WriteBackError(
                    f"'{module}': expert {number} is {other_a.shape} and {other_b.shape}, "
                    f"the client's own {a} and {b}"
                )
        if mixture[module].router.shape[1] != a[1]:
            raise WriteBackError(f"'{module}': router {mixture[module].router.shape} for {a[1]}")


# ------------------------------------------------------------------ as files


def save_experts(folder: Path, flat: Tensors) -> None:
    """Write beside an exported adapter what it lacks to be the mixture, and a note that says so.

    Args:
        folder: Where ``save_adapter`` wrote the own expert.
        flat: Routers and other experts by name.
    """
    tensors = {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in flat.items()}
    save_file(tensors, folder / EXPERTS_FILE)
    (folder / "README.md").write_text(_NOTE, encoding="utf-8")


def load_experts(folder: Path) -> dict[str, ModuleExperts]:
    """Return what ``save_experts`` wrote, as ``mixed`` takes it."""
    return unpack(load_file(folder / EXPERTS_FILE))
