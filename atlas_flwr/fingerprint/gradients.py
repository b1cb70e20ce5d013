"""Gradients of the frozen trunk as vectors of a few thousand numbers: the older fingerprints."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

from atlas_flwr.errors import AtlasError
from atlas_flwr.fingerprint import sketch
from atlas_flwr.fingerprint.summary import split
from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.training.batches import TokenTable
from atlas_flwr.training.local import to_device
from atlas_flwr.training.memory import with_smaller_batches

_BLOCKS = 2  # the last ones: what is closest to the task


@dataclass(frozen=True)
class Plan:
    """How gradients are taken.

    Attributes:
        squared: The root of the mean square over single rows, instead of the mean.
        limit: Bytes of the fingerprint.
        batch_size: Rows of one pass; 1 where single rows are squared.
        device: Where the model is.
    """

    squared: bool
    limit: int
    batch_size: int
    device: torch.device


def of_halves(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    plan: Plan,
    *,
    seed: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the sketched gradient of two halves of the rows, ``(2, width)``, and their sizes.

    Each class is split in two, so that both halves have nearly the same label mix.

    Raises:
        AtlasError: There is only one row, or a gradient is not finite.
    """
    half = split(table.labels[rows], rng)
    parts = [rows[half == h] for h in (0, 1)]
    if not all(map(len, parts)):
        raise AtlasError("fingerprint: a gradient's halves need two rows of one class")
    with _bare(loaded) as weights:
        total = sum(weight.numel() for weight in weights.values())
        _, width = sketch.layout(total, 1, plan.limit)
        step = 1 if plan.squared else plan.batch_size
        found = [
            with_smaller_batches(
                lambda size, part=part: _sketched(  # type: ignore[misc]
                    loaded, table, part, replace(plan, batch_size=size), weights, width, seed
                ),
                step,
                "fingerprint",
            )
            for part in parts
        ]
    both = np.stack(found)
    if not np.isfinite(both).all():
        raise AtlasError("fingerprint: the gradient is not finite")
    return both, (len(parts[0]), len(parts[1]))


def _sketched(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    plan: Plan,
    weights: Mapping[str, nn.Parameter],
    width: int,
    seed: int,
) -> NDArray[np.float64]:
    """Return the sketch of one half's gradient, ``(width,)``."""
    sums = [torch.zeros_like(weight) for weight in weights.values()]
    for start in range(0, len(rows), plan.batch_size):
        batch = table.batch(rows[start : start + plan.batch_size], loaded.pad_token_id)
        tensors = to_device(batch, plan.device)
        labels = tensors.pop("labels")
        logits = loaded.model(**tensors).logits.float()
        loss = F.cross_entropy(logits, labels, reduction="sum")
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_(gradient.square() if plan.squared else gradient)
    vector = np.zeros(width)
    for name, total in zip(weights, sums, strict=True):
        mean = (total / len(rows)).cpu().numpy()
        values = np.sqrt(mean) if plan.squared else mean
        vector += sketch.count_sketch(values, width, seed, name)
    return vector


@contextmanager
def _bare(loaded: LoadedModel) -> Iterator[dict[str, nn.Parameter]]:
    """Yield the last blocks' weights with gradients on and adapters off; put both back."""
    layers = list(loaded.backbone.layers.values())
    weights = _trunk(loaded)
    frozen = [weight for weight in weights.values() if not weight.requires_grad]
    try:
        for layer in layers:
            layer.enable_adapters(enabled=False)
        for weight in frozen:
            weight.requires_grad_(True)
        yield weights
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
        for layer in layers:
            layer.enable_adapters(enabled=True)


def _trunk(loaded: LoadedModel) -> dict[str, nn.Parameter]:
    """Return the weights of the last blocks' adapted layers; all linear ones if none is adapted."""
    layers = {name: layer.base_layer for name, layer in loaded.backbone.layers.items()}
    if not layers:
        modules = loaded.backbone.module.named_modules()
        layers = {name: m for name, m in modules if isinstance(m, nn.Linear | Conv1D)}
    block = {name: int(n[0]) for name in layers if (n := re.findall(r"(?<=\.)\d+(?=\.)", name))}
    last = sorted(set(block.values()))[-_BLOCKS:]
    kept = {name: m for name, m in layers.items() if block.get(name) in last} if last else layers
    return {name: module.weight for name, module in kept.items()}
