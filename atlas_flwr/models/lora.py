"""LoRA on a shared backbone: which modules, injected once, factors swapped in place.

PEFT's orientation throughout: A is ``(r, d_in)``, B is ``(d_out, r)``, also for Conv1D, whose own
weight is stored ``(d_in, d_out)``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import Any, Literal

import numpy as np
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from atlas_flwr.errors import ModelError, did_you_mean
from atlas_flwr.models import folded
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Adapter, Array, LoraFactors

ADAPTER = "default"
_ORIGIN = "atlas_origin"  # a plain attribute: no buffer, no part of the state dict
Targets = Literal["auto"] | tuple[str, ...]


def linear_shapes(
    backbone: nn.Module, excluded: Collection[str] = ()
) -> dict[str, tuple[int, int]]:
    """Return ``{module name: (d_out, d_in)}`` of every linear layer of a plain backbone.

    Args:
        backbone: The module, before any injection.
        excluded: Names of modules (and all below them) that belong to the head.
    """
    shapes: dict[str, tuple[int, int]] = {}
    for name, module in backbone.named_modules():
        if any(name == head or name.startswith(head + ".") for head in excluded):
            continue
        if isinstance(module, nn.Linear):
            shapes[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):
            d_in, d_out = module.weight.shape
            shapes[name] = (int(d_out), int(d_in))
    return shapes


def resolve_targets(shapes: Mapping[str, tuple[int, int]], targets: Targets) -> list[str]:
    """Return the names of the modules to adapt, in the backbone's order.

    Args:
        shapes: All linear layers, from ``linear_shapes``.
        targets: ``"auto"`` for all of them, else endings of module names at a dot
            (``query``, ``attention.self.query``).

    Raises:
        ModelError: An ending matches no linear layer, or there is none at all.
    """
    if not shapes:
        raise ModelError("lora.targets: the model's backbone has no linear layer to adapt")
    if targets == "auto":
        return list(shapes)
    chosen: set[str] = set()
    for ending in targets:
        found = {name for name in shapes if name == ending or name.endswith("." + ending)}
        if not found:
            known = sorted({name.rpartition(".")[2] for name in shapes})
            hint = did_you_mean(ending, known) or f"; the model has {', '.join(known)}"
            raise ModelError(f"lora.targets: '{ending}' matches no linear layer{hint}")
        chosen |= found
    return [name for name in shapes if name in chosen]


def inject(backbone: nn.Module, names: list[str], dropout: float) -> dict[str, Any]:
    """Put PEFT LoRA layers of rank 1 into a backbone, in place, and return them by name.

    The rank is a placeholder: ``set_factors`` replaces it. All of the backbone is frozen; the
    factors alone are trainable.
    """
    backbone.requires_grad_(False)
    config = LoraConfig(
        r=1,
        target_modules=names,
        lora_dropout=dropout,
        fan_in_fan_out=any(isinstance(backbone.get_submodule(name), Conv1D) for name in names),
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # A backbone may mix Linear and Conv1D; PEFT then sets the flag right for each layer.
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        inject_adapter_in_model(config, backbone, adapter_name=ADAPTER)
    layers: dict[str, Any] = {name: backbone.get_submodule(name) for name in names}
    for layer in layers.values():
        # Autocast casts by itself; PEFT's own cast to float32 would only undo it first.
        layer.cast_input_dtype_enabled = False
        folded.fold(layer, ADAPTER)
    return layers


def nested_init(
    shapes: Mapping[str, tuple[int, int]],
    rank: int | Mapping[str, int],
    scale: float | Mapping[str, float],
    seed: int,
    draw: int = 0,
) -> Adapter:
    """Draw the initial factors of every module, nested over ranks.

    A is U(-1/sqrt(d_in), 1/sqrt(d_in)), which is PEFT's own distribution and independent of the
    rank, drawn row by row from a stream keyed by ``(seed, module)``: the factors of rank r are the
    first r rows of those of any larger rank. B is 0, so the update starts at 0.

    Args:
        shapes: ``{module path: (d_out, d_in)}``.
        rank: Rank of every module, or of each.
        scale: Scale ``s`` of every module, or of each.
        seed: The run's seed.
        draw: Which draw, for methods that start factors afresh.

    Returns:
        float32 factors, in the order of ``shapes``.
    """
    adapter: dict[str, LoraFactors] = {}
    for module, (d_out, d_in) in shapes.items():
        r = rank if isinstance(rank, int) else rank[module]
        s = scale[module] if isinstance(scale, Mapping) else scale
        bound = 1.0 / math.sqrt(d_in)
        rows = rng_for(seed, f"lora-init/{module}", draw).uniform(-bound, bound, size=(r, d_in))
        a, b = rows.astype(np.float32), np.zeros((d_out, r), dtype=np.float32)
        adapter[module] = LoraFactors(a=a, b=b, scale=float(s))
    return adapter


def set_factors(layer: Any, a: Array, b: Array, scale: float) -> None:
    """Copy one module's factors, of any rank, into its PEFT layer; the caller checked shapes.

    Args:
        layer: The PEFT layer.
        a: A, float32, ``(r, d_in)``.
        b: B, float32, ``(d_out, r)``.
        scale: The scale ``s``.
    """
    rank = a.shape[0]
    down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
    for linear, values in ((down, a), (up, b)):
        new = torch.tensor(values, dtype=torch.float32)
        if linear.weight.shape == new.shape:
            linear.weight.data.copy_(new)
        else:
            linear.weight = nn.Parameter(new.to(linear.weight.device))
    down.out_features = up.in_features = rank
    layer.r[ADAPTER] = rank
    layer.scaling[ADAPTER] = scale
    layer.lora_alpha[ADAPTER] = scale * rank


def set_delta(layer: Any, delta: LoraFactors | None) -> None:
    """Merge a low-rank change into a module's frozen weight, or put the checkpoint's own back.

    The change never adds up: it is always taken from the checkpoint's weight, which is kept aside
    as it is. Conv1D stores its weight transposed, so there the product is merged transposed.

    Args:
        layer: The PEFT layer.
        delta: The change, of scale 1; None for no change.
    """
    base, origin = layer.base_layer.weight, getattr(layer, _ORIGIN, None)
    if delta is None:
        if origin is not None:
            base.data = origin.to(base.device)
            delattr(layer, _ORIGIN)
        return
    if origin is None:
        origin = base.data
        setattr(layer, _ORIGIN, origin)
    b, a = torch.tensor(delta.b), torch.tensor(delta.a)
    product = b.to(base.device) @ a.to(base.device)
    change = product.T if isinstance(layer.base_layer, Conv1D) else product
    base.data = origin.to(base.device) + change


def get_factors(layer: Any) -> LoraFactors:
    """Return float32 copies of one PEFT layer's factors and its scale."""
    return LoraFactors(
        a=to_numpy(layer.lora_A[ADAPTER].weight),
        b=to_numpy(layer.lora_B[ADAPTER].weight),
        scale=float(layer.scaling[ADAPTER]),
    )


def has_conv1d(layers: Mapping[str, Any]) -> bool:
    """Tell whether any of the PEFT layers adapts a Conv1D, which PEFT wants to be told."""
    return any(isinstance(layer.base_layer, Conv1D) for layer in layers.values())


def factor_parameters(layer: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Return the two trainable tensors of a PEFT layer, A first."""
    return layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return a float32 NumPy copy of a tensor on any device."""
    return tensor.detach().to("cpu", torch.float32, copy=True).numpy()
