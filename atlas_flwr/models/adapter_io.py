"""Between a loaded model and the tensors that travel: nothing is lost, added, cast or broadcast."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from atlas_flwr.errors import WriteBackError
from atlas_flwr.models import backbone, lora
from atlas_flwr.models.backbone import LoadedModel, ModelSpec
from atlas_flwr.types import Array, LoraFactors, ModelParts, Tensors


def initial_parts(
    spec: ModelSpec,
    num_labels: int,
    rank: int | Mapping[str, int],
    scale: float | Mapping[str, float],
    seed: int,
    draw: int = 0,
) -> ModelParts:
    """Return the tensors every client starts from, the same on every machine.

    LoRA: nested factors with B = 0. Full fine-tuning: the checkpoint's own weights, read afresh,
    for the loaded backbone may have been trained since.

    Args:
        spec: The model.
        num_labels: Labels of the task.
        rank: LoRA rank of every module, or of each by path; unused for ``"full"``.
        scale: LoRA scale of every module, or of each by path; unused for ``"full"``.
        seed: The run's seed.
        draw: Which draw of the factors; the head has one.

    Raises:
        ModelError: The model can't be had.
    """
    full = spec.adaptation == "full"
    loaded = (backbone.load_fresh if full else backbone.load)(spec, num_labels, seed)
    shapes = loaded.backbone.shapes
    return ModelParts(
        adapter={} if full else lora.nested_init(shapes, rank, scale, seed, draw),
        head={name: lora.to_numpy(tensor) for name, tensor in loaded.initial_head.items()},
        weights={name: lora.to_numpy(tensor) for name, tensor in loaded.weights.items()},
    )


def read_parts(loaded: LoadedModel) -> ModelParts:
    """Return float32 copies of everything that is trained, by full path in the plain model."""
    return ModelParts(
        adapter={path: lora.get_factors(layer) for path, layer in loaded.backbone.layers.items()},
        head={name: lora.to_numpy(tensor) for name, tensor in loaded.head.items()},
        weights={name: lora.to_numpy(tensor) for name, tensor in loaded.weights.items()},
    )


def write_parts(loaded: LoadedModel, parts: ModelParts) -> None:
    """Load every tensor sent; afterwards ``read_parts`` gives the same bytes back.

    A delta is merged into the checkpoint's own weights, and none leaves those as they are. All is
    checked before the first tensor is written, so a refused message changes nothing. Ranks and
    scales may differ from those loaded, and from module to module.

    Raises:
        WriteBackError: A tensor is missing, unknown, of another shape, not float32, A and B
            disagree on the rank, or a core was not folded into B.
    """
    if parts.core:
        raise WriteBackError(f"core of '{min(parts.core)}': a layer holds A and B alone")
    _check_names("adapter module", parts.adapter, loaded.backbone.shapes)
    for module, factors in parts.adapter.items():
        _check_factors(module, factors, loaded.backbone.shapes[module])
    for module, factors in parts.delta.items():
        if module not in loaded.backbone.shapes:
            raise WriteBackError(f"delta of '{module}': the model adapts no such module")
        _check_factors(module, factors, loaded.backbone.shapes[module])
    for kind, sent, held in (
        ("head tensor", parts.head, loaded.head),
        ("weight", parts.weights, loaded.weights),
    ):
        _check_names(kind, sent, held)
        for name, array in sent.items():
            _check_tensor(name, array, tuple(held[name].shape))
    for module, layer in loaded.backbone.layers.items():
        lora.set_delta(layer, parts.delta.get(module))
    for module, factors in parts.adapter.items():
        lora.set_factors(loaded.backbone.layers[module], factors.a, factors.b, factors.scale)
    _copy(parts.head, loaded.head)
    _copy(parts.weights, loaded.weights)


def _copy(sent: Tensors, held: Mapping[str, nn.Parameter]) -> None:
    with torch.no_grad():
        for name, array in sent.items():
            held[name].copy_(torch.tensor(array))


def _check_names(kind: str, sent: Iterable[str], held: Iterable[str]) -> None:
    """Refuse a set of names that is not exactly the one the model has."""
    got, want = set(sent), set(held)
    if got == want:
        return
    missing, unknown = sorted(want - got), sorted(got - want)
    name = (missing or unknown)[0]
    what = "was not sent" if missing else "is not in the model"
    raise WriteBackError(
        f"{kind} '{name}' {what}: {len(got)} sent, {len(want)} expected, "
        f"{len(missing)} missing, {len(unknown)} unknown"
    )


def _check_factors(module: str, factors: LoraFactors, shape: tuple[int, int]) -> None:
    """Refuse factors that are not ``(r, d_in)`` and ``(d_out, r)`` of one rank r >= 1."""
    d_out, d_in = shape
    if factors.a.ndim != 2 or factors.a.shape[0] < 1:
        raise WriteBackError(f"'{module}.lora_A': expected (r, {d_in}), got {factors.a.shape}")
    _check_tensor(f"{module}.lora_A", factors.a, (factors.a.shape[0], d_in))
    _check_tensor(f"{module}.lora_B", factors.b, (d_out, factors.a.shape[0]))
    if not np.isfinite(factors.scale):
        raise WriteBackError(f"'{module}': scale {factors.scale} is not finite")


def _check_tensor(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if tuple(array.shape) != shape:
        raise WriteBackError(f"'{name}': expected shape {shape}, got {tuple(array.shape)}")
    if array.dtype != np.float32:
        raise WriteBackError(f"'{name}': expected float32, got {array.dtype}")
