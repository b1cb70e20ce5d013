"""The mean gradient of the frozen weights themselves: where a full fine-tuning would go first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from atlas_flwr.models import lora
from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.training import precision as prec
from atlas_flwr.training.batches import TokenTable
from atlas_flwr.training.local import to_device
from atlas_flwr.types import Adapter, LoraFactors


def leading_gradient(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    rank: int,
    *,
    batch_size: int,
    device: prec.DeviceChoice,
    threads: int,
) -> Adapter:
    """Return the leading singular directions of each adapted module's mean gradient.

    The gradient of the mean cross-entropy over the rows with respect to the checkpoint's weight W,
    without adapters and dropout, in float32. A function of its arguments alone.

    Args:
        loaded: The model, its head written.
        table: Tokenised rows.
        rows: Which of them, shape ``(n,)``, n >= 1.
        rank: Directions kept; no more than ``min(d_out, d_in)`` are.
        batch_size: Rows of one pass; it changes nothing but rounding.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        threads: Torch threads on the CPU.

    Returns:
        Factors of scale 1 with ``B A`` the best approximation of the gradient of that rank, the
        singular values' roots on both.
    """
    where = prec.resolve_device(device)
    loaded.model.to(where)
    with prec.threads_of(threads), _bare(loaded):
        for start in range(0, len(rows), batch_size):
            _accumulate(loaded, table, rows[start : start + batch_size], len(rows), where)
        layers = loaded.backbone.layers.items()
        return {module: _leading(layer, rank) for module, layer in layers}


def _accumulate(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    total: int,
    device: torch.device,
) -> None:
    batch = to_device(table.batch(rows, loaded.pad_token_id), device)
    labels = batch.pop("labels")
    logits = loaded.model(**batch).logits.float()
    torch.autograd.backward(F.cross_entropy(logits, labels, reduction="sum") / total)


def _leading(layer: object, rank: int) -> LoraFactors:
    base = layer.base_layer  # type: ignore[attr-defined]
    gradient = base.weight.grad.T if isinstance(base, Conv1D) else base.weight.grad
    u, s, vt = torch.linalg.svd(gradient, full_matrices=False)
    root = torch.sqrt(s[:rank])
    return LoraFactors(
        a=lora.to_numpy(root[:, None] * vt[:rank]), b=lora.to_numpy(u[:, :rank] * root), scale=1.0
    )


@contextmanager
def _bare(loaded: LoadedModel) -> Iterator[None]:
    """Switch adapters off and the weights' gradients on; put both back."""
    layers = list(loaded.backbone.layers.values())
    try:
        for layer in layers:
            layer.enable_adapters(enabled=False)
            layer.base_layer.weight.requires_grad_(True)
        yield
    finally:
        for layer in layers:
            layer.base_layer.weight.requires_grad_(False)
            layer.enable_adapters(enabled=True)
        loaded.model.zero_grad(set_to_none=True)
        for layer in layers:
            layer.base_layer.weight.grad = None
