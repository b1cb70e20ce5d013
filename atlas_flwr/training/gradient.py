"""The mean gradient of the frozen weights themselves: where a full fine-tuning would go first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from atlas_flwr.models import lora
from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.training import precision as prec
from atlas_flwr.training.batches import TokenTable, by_length
from atlas_flwr.training.local import to_device
from atlas_flwr.training.memory import with_smaller_batches
from atlas_flwr.types import Adapter, LoraFactors

T = TypeVar("T")


@dataclass(frozen=True)
class Passes:
    """How rows are passed through the model.

    Attributes:
        batch_size: Rows of one pass; it changes nothing but rounding.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        threads: Torch threads on the CPU.
    """

    batch_size: int
    device: prec.DeviceChoice
    threads: int


def leading_gradient(
    loaded: LoadedModel, table: TokenTable, rows: NDArray[np.int64], rank: int, how: Passes
) -> Adapter:
    """Return the leading singular directions of each adapted module's mean gradient.

    The gradient of the mean cross-entropy over the rows with respect to the checkpoint's weight W,
    without adapters and dropout, in float32. A function of its arguments alone.

    Args:
        loaded: The model, its head written.
        table: Tokenised rows.
        rows: Which of them, shape ``(n,)``, n >= 1.
        rank: Directions kept; no more than ``min(d_out, d_in)`` are.
        how: How the rows are passed through.

    Returns:
        Factors of scale 1 with ``B A`` the best approximation of the gradient of that rank, the
        singular values' roots on both.
    """
    return _of_gradients(loaded, table, rows, how, lambda gradient: _leading(gradient, rank))


def leading_values(
    loaded: LoadedModel, table: TokenTable, rows: NDArray[np.int64], rank: int, how: Passes
) -> dict[str, NDArray[np.float64]]:
    """Return the leading singular values of each adapted module's mean gradient, largest first.

    Arguments as in ``leading_gradient``. From the eigenvalues of the smaller Gram matrix in
    float64, ten times as fast as an SVD; values below 1e-8 of a module's largest are rounding.
    """
    return _of_gradients(loaded, table, rows, how, lambda gradient: _values(gradient, rank))


def _of_gradients(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    how: Passes,
    read: Callable[[torch.Tensor], T],
) -> dict[str, T]:
    """Return what is read of each module's mean gradient, ``(d_out, d_in)``."""
    where = prec.resolve_device(how.device)
    loaded.model.to(where).eval()
    with prec.threads_of(how.threads), _bare(loaded):
        with_smaller_batches(
            lambda size: _accumulate_all(loaded, table, rows, size, where),
            how.batch_size,
            "gradient",
        )
        layers = loaded.backbone.layers.items()
        return {module: read(_gradient(layer)) for module, layer in layers}


def _accumulate_all(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    batch_size: int,
    device: torch.device,
) -> None:
    """Leave the rows' mean gradient in the weights, whatever was there before."""
    loaded.model.zero_grad(set_to_none=True)
    for layer in loaded.backbone.layers.values():
        layer.base_layer.weight.grad = None
    for batch in by_length(table.lengths[rows], batch_size):
        _accumulate(loaded, table, rows[batch], len(rows), device)


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


def _gradient(layer: object) -> torch.Tensor:
    base = layer.base_layer  # type: ignore[attr-defined]
    gradient: torch.Tensor = base.weight.grad
    return gradient.T if isinstance(base, Conv1D) else gradient


def _leading(gradient: torch.Tensor, rank: int) -> LoraFactors:
    u, s, vt = torch.linalg.svd(gradient, full_matrices=False)
    root = torch.sqrt(s[:rank])
    return LoraFactors(
        a=lora.to_numpy(root[:, None] * vt[:rank]), b=lora.to_numpy(u[:, :rank] * root), scale=1.0
    )


def _values(gradient: torch.Tensor, rank: int) -> NDArray[np.float64]:
    g = gradient.double()
    gram = g @ g.T if g.shape[0] <= g.shape[1] else g.T @ g
    squares = torch.linalg.eigvalsh(gram).flip(0)[:rank].clamp(min=0)
    values: NDArray[np.float64] = squares.sqrt().cpu().numpy()
    return values


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
