"""Model parts <-> flat named tensors, in the three kinds that travel and are counted apart.

LoRA factors are named ``<module>.lora_A`` and ``<module>.lora_B``, square matrices between them
``<module>.core``, factors merged into the base ``<module>.delta_A`` and ``<module>.delta_B``: all
of the kind ``adapter``. Scales have no tensor and go beside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from atlas_flwr.errors import WireError
from atlas_flwr.types import LoraFactors, ModelParts, Tensors

NDArray = npt.NDArray[Any]
Kinds = Mapping[str, Tensors]

KINDS = ("adapter", "head", "weights")
_A, _B, _CORE = ".lora_A", ".lora_B", ".core"
_DELTA_A, _DELTA_B = ".delta_A", ".delta_B"


def flatten(parts: ModelParts) -> dict[str, Tensors]:
    """Return each non-empty kind's tensors by name; absent factors are left out."""
    adapter = parts.without("weights").body()
    for module, factors in parts.delta.items():
        if factors.scale != 1.0:
            raise WireError(f"{module}: a delta's scale must be 1, got {factors.scale}")
        adapter[module + _DELTA_A], adapter[module + _DELTA_B] = factors.a, factors.b
    kinds: dict[str, Tensors] = {"adapter": adapter, "head": parts.head, "weights": parts.weights}
    return {kind: tensors for kind, tensors in kinds.items() if tensors}


def unflatten(kinds: Kinds, scales: Mapping[str, float]) -> ModelParts:
    """Return the model parts behind named tensors; a factor that came alone has an absent partner.

    Raises:
        WireError: A factor has no finite scale, the ranks of A and B differ, a core is no square,
            or a name is of no part.
    """
    flat = dict(kinds.get("adapter", {}))
    core = {n.removesuffix(_CORE): flat.pop(n) for n in list(flat) if n.endswith(_CORE)}
    for module, square in core.items():
        if square.ndim != 2 or square.shape[0] != square.shape[1]:
            raise WireError(f"{module}: a core of shape {square.shape} is no square")
    delta = {
        module: LoraFactors(a, b, 1.0)
        for module, (a, b) in _pairs(flat, _DELTA_A, _DELTA_B).items()
    }
    adapter = {}
    for module, (a, b) in _pairs(flat, _A, _B).items():
        if module not in scales:
            raise WireError(f"{module}: LoRA factors came without their scale")
        adapter[module] = LoraFactors(a, b, scale := float(scales[module]))
        if not math.isfinite(scale):
            raise WireError(f"{module}: scale {scale} is not finite")
    if flat:
        raise WireError(f"adapter: no part of a model is named '{sorted(flat)[0]}'")
    return ModelParts(adapter, kinds.get("head", {}), kinds.get("weights", {}), delta, core)


def _pairs(flat: dict[str, NDArray], end_a: str, end_b: str) -> dict[str, tuple[NDArray, NDArray]]:
    """Take the factors of two endings out of ``flat``; an absent one is empty, of equal rank."""
    pairs: dict[str, tuple[NDArray, NDArray]] = {}
    for name in list(flat):
        ending = next((end for end in (end_a, end_b) if name.endswith(end)), None)
        if ending is None or name not in flat:
            continue
        module = name.removesuffix(ending)
        a, b = flat.pop(module + end_a, None), flat.pop(module + end_b, None)
        for tensor in (a, b):
            if tensor is not None and tensor.ndim != 2:
                raise WireError(f"{module}: a LoRA factor of shape {tensor.shape} is no matrix")
        if a is None and b is not None:
            a = np.empty((b.shape[1], 0), b.dtype)
        if b is None and a is not None:
            b = np.empty((0, a.shape[0]), a.dtype)
        assert a is not None  # one of the two was found
        assert b is not None
        if a.shape[0] != b.shape[1]:
            raise WireError(f"{module}: A {a.shape} and B {b.shape} don't share a rank")
        pairs[module] = (a, b)
    return pairs


# ------------------------------------------------------------------ NumPyClient's lists


@dataclass(frozen=True)
class Layout:
    """What the places of a NumPyClient's list of arrays mean: ``(kind, name)`` each, and scales."""

    places: tuple[tuple[str, str], ...]
    scales: Mapping[str, float]


def to_arrays(parts: ModelParts) -> tuple[list[NDArray], Layout]:
    """Return model parts as the list of arrays a NumPyClient takes, and what its places mean."""
    kinds = flatten(parts)
    places = tuple((kind, name) for kind, tensors in kinds.items() for name in tensors)
    scales = {module: factors.scale for module, factors in parts.adapter.items()}
    return [kinds[kind][name] for kind, name in places], Layout(places, scales)


def from_arrays(arrays: Sequence[NDArray], layout: Layout) -> ModelParts:
    """Return the model parts behind a NumPyClient's list of arrays.

    Raises:
        WireError: The list is not as long as its layout.
    """
    if len(arrays) != len(layout.places):
        raise WireError(f"{len(arrays)} arrays came for {len(layout.places)} places")
    kinds: dict[str, dict[str, NDArray]] = {}
    for (kind, name), array in zip(layout.places, arrays, strict=True):
        kinds.setdefault(kind, {})[name] = array
    return unflatten(kinds, layout.scales)


# ------------------------------------------------------------------ zeros that don't travel

_BITS, _VALUES = ".bits", ".values"


def squeeze(tensors: Tensors) -> dict[str, NDArray]:
    """Return each matrix as a bitmap of its non-zeros (``.bits``) and those (``.values``).

    Lossless to the bit: an entry costs one bit and, unless it is +0, its value. The bitmap has the
    shape ``(rows, ceil(columns / 8))``; the number of columns is told beside it.
    """
    squeezed: dict[str, NDArray] = {}
    for name, tensor in tensors.items():
        there = (tensor != 0) | np.signbit(tensor)  # -0 is a value
        squeezed[name + _BITS] = np.packbits(there, axis=1)
        squeezed[name + _VALUES] = tensor[there]
    return squeezed


def stretch(squeezed: Tensors, columns: Mapping[str, int]) -> dict[str, NDArray]:
    """Return the matrices behind bitmaps and values.

    Args:
        squeezed: What ``squeeze`` returned.
        columns: Number of columns of each matrix.

    Raises:
        WireError: A matrix lacks its bitmap or values, they disagree, or a tensor is of no matrix.
    """
    known = {name + ending for name in columns for ending in (_BITS, _VALUES)}
    if odd := sorted(squeezed.keys() - known):
        raise WireError(f"adapter: no sparse tensor has a part '{odd[0]}'")
    tensors: dict[str, NDArray] = {}
    for name, width in columns.items():
        bits, values = squeezed.get(name + _BITS), squeezed.get(name + _VALUES)
        if bits is None or values is None or bits.dtype != np.uint8 or bits.ndim != 2:
            raise WireError(f"{name}: a sparse tensor came without its bitmap or values")
        if bits.shape[1] != -(-width // 8):
            raise WireError(f"{name}: {width} columns don't fit a bitmap of shape {bits.shape}")
        marked = np.unpackbits(bits, axis=1).astype(bool)
        if marked[:, width:].any():
            raise WireError(f"{name}: the bitmap marks entries beyond its {width} columns")
        there = marked[:, :width]
        if values.shape != (int(there.sum()),):
            raise WireError(f"{name}: {values.shape} values for {int(there.sum())} non-zeros")
        tensor = np.zeros(there.shape, values.dtype)
        tensor[there] = values
        tensors[name] = tensor
    return tensors
