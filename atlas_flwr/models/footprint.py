"""What the memory model needs of a loaded model: its shape, its frozen weights, its head."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from atlas_flwr.errors import ModelError
from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.ranks.memory import (
    HEAP_SLACK,
    PROCESS_BYTES,
    Load,
    Memory,
    Shape,
    cublas_bytes,
    predict,
)

# Names that architectures have for one thing; transformers maps some of them by itself.
_NAMES: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layers", "n_layer"),
    "width": ("hidden_size", "dim", "n_embd"),
    "heads": ("num_attention_heads", "n_heads", "n_head"),
    "inner": ("intermediate_size", "hidden_dim", "n_inner", "ffn_dim"),
}
_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")

# Values a block keeps for the backward pass, counted with saved-tensor hooks in float32 with LoRA
# on every linear layer: for each token and unit of width, the feed-forward's apart, and for each
# token and unit of the feed-forward. Any other architecture is taken for BERT's.
_KEPT: dict[str, float] = {"distilbert": 9.0, "llama": 8.0}
_BERT_KEPT = 10.0
_INNER_KEPT = 2.0  # before and after the activation
_COMPOSED = {"gelu_new": 5.0, "gelu_fast": 5.0}  # written as a chain of operations in Python
_GATED_KEPT = 4.0  # gate, its activation, up, and their product
_MAPS = 3.0  # of each head: scores after softmax, dropout's mask, what is left of both
_FUSED_MAPS = 1.0  # of all heads together: the padding mask, as numbers


@dataclass(frozen=True)
class Footprint:
    """A model's share of a memory prediction.

    Attributes:
        shape: What its activations follow from.
        frozen: Number of frozen parameters by dtype, as torch names it.
        head: Parameters of the trained head.
    """

    shape: Shape
    frozen: Mapping[str, int]
    head: int


def footprint(loaded: LoadedModel, device: str = "cpu") -> Footprint:
    """Return what a model brings to the memory of training an adapter on it.

    Args:
        loaded: The model, with LoRA layers of any rank; their factors are not counted.
        device: ``"cpu"`` or ``"cuda"``: PyTorch's attention with dropout is fused on CUDA alone.

    Raises:
        ModelError: The model's configuration lacks a number that activations follow from; the
            message names it.
    """
    trained = {id(parameter) for parameter in loaded.trainable()}
    frozen: Counter[str] = Counter()
    for parameter in loaded.model.parameters():
        if id(parameter) not in trained:
            frozen[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    head = sum(parameter.numel() for parameter in loaded.head.values())
    return Footprint(shape_of(loaded, device), dict(frozen), head)


def step(batch: int, length: int, device: str = "cpu") -> Load:
    """Return a training step; arguments are ``predicted``'s."""
    return Load(batch, length, slack=HEAP_SLACK if device == "cpu" else 0.0)


def predicted(
    loaded: LoadedModel,
    batch: int,
    length: int,
    *,
    adapter: int = 0,
    ranks: int = 0,
    device: str = "cpu",
) -> Memory:
    """Return the bytes that a process holds at its peak while it trains an adapter on a model.

    On a CPU that is the resident set, with PyTorch and the allocator's slack; on CUDA what tensors
    and cuBLAS's workspaces hold, as ``training.memory`` counts them. Autocast is taken to save
    nothing (``Load``). Compared with measured peaks on CPUs (``benchmarks.memory``) and, on MiniLM
    in float32, on an H100.

    Args:
        loaded: The model.
        batch: Rows of a step.
        length: Tokens of its longest row.
        adapter: Parameters of the adapter.
        ranks: The sum of its modules' ranks.
        device: ``"cpu"`` or ``"cuda"``.

    Raises:
        ModelError: As in ``footprint``.
    """
    found = footprint(loaded, device)
    return predict(
        found.frozen,
        found.shape,
        step(batch, length, device),
        head=found.head,
        adapter=adapter,
        ranks=ranks,
        workspace=_workspace(device),
    )


def _workspace(device: str) -> int:
    """Return what a process holds beside what follows from the model and the step."""
    if device == "cpu":
        return PROCESS_BYTES
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else None
    return cublas_bytes(major, os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))


def shape_of(loaded: LoadedModel, device: str = "cpu") -> Shape:
    """Return the transformer's numbers; arguments and errors are ``footprint``'s."""
    config, name = loaded.model.config, loaded.spec.name
    heads = _number(config, "heads", name)
    gated = any(module.endswith("gate_proj") for module, _ in loaded.model.named_modules())
    return Shape(
        layers=_number(config, "layers", name),
        width=_number(config, "width", name),
        inner=_number(config, "inner", name, absent=0),  # GPT-2's None is four times the width
        heads=heads,
        kept=_KEPT.get(config.model_type, _BERT_KEPT),
        maps=_FUSED_MAPS / heads if _fused(config, device) else _MAPS,
        inner_kept=_GATED_KEPT if gated else _COMPOSED.get(_activation(config), _INNER_KEPT),
    )


def _number(config: Any, what: str, model: str, absent: int | None = None) -> int:
    """Return a number of the configuration under the first name it has."""
    for name in _NAMES[what]:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
        if absent is not None and hasattr(config, name):
            return absent
    raise ModelError(
        f"model.name: '{model}': its configuration has no {' or '.join(_NAMES[what])}, so its "
        "memory can't be predicted; leave devices.profiles out, or use another model"
    )


def _activation(config: Any) -> str:
    names = ("hidden_act", "activation", "activation_function")
    return next((str(getattr(config, name)) for name in names if hasattr(config, name)), "")


def _fused(config: Any, device: str) -> bool:
    """Tell whether attention runs in one kernel that keeps no scores; on a CPU none has dropout."""
    if getattr(config, "_attn_implementation", None) != "sdpa":
        return False
    dropout = any(getattr(config, name, 0.0) for name in _DROPOUT)
    return device == "cuda" or not dropout
