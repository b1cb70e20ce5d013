"""How far a client moved, and the same movement made shorter.

A movement is what an update changes of what the client was sent: of effective products for
``movement`` (any basis of the factors gives one norm), of the numbers that travel for ``flat_norm``
(what differential privacy has to bound, for those are released).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from atlas_flwr.aggregation.products import Float, difference, norm, stack
from atlas_flwr.aggregation.robust import check_tensor
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, Array, LoraFactors, ModelParts, Tensors


def movement(after: ModelParts, before: ModelParts) -> float:
    """Return how far a client moved: ``√(Σ ‖P − P₀‖_F² + ‖w − w₀‖²)`` over all it sent.

    Raises:
        AggregationError: ``before`` lacks a tensor, a shape differs, or the norm is not finite.
    """
    moved = [
        norm(difference(factors, _known(before.adapter, module)))
        for module, factors in after.adapter.items()
    ]
    for mine, theirs in ((after.weights, before.weights), (after.head, before.head)):
        moved += [float(np.linalg.norm(_step(n, t, theirs))) for n, t in mine.items()]
    if not math.isfinite(length := math.hypot(*moved)):
        raise AggregationError("the norm of an update is not finite")
    return length


def flat_norm(moved: Tensors) -> float:
    """Return the L2 norm of all tensors as one vector, in float64.

    Raises:
        AggregationError: It is not finite.
    """
    lengths = (float(np.linalg.norm(t.astype(np.float64))) for t in moved.values())
    if not math.isfinite(length := math.hypot(*lengths)):
        raise AggregationError("the norm of an update is not finite")
    return length


def steps(after: Tensors, before: Tensors) -> dict[str, Float]:
    """Return ``after − before`` by name, float64.

    Raises:
        AggregationError: ``before`` lacks a tensor, a shape or dtype is wrong, a value not finite.
    """
    return {name: _step(name, tensor, before) for name, tensor in after.items()}


def clip_share(length: float, bound: float) -> float:
    """Return ``min(1, bound / length)``, the share of a movement that a bound lets in."""
    return 1.0 if length <= bound else bound / length


def clipped(after: ModelParts, before: ModelParts, share: float) -> ModelParts:
    """Return ``before + share · (after − before)``, exactly: products as factors of both ranks.

    A share of 1 returns ``after`` itself; values come back in float64 otherwise.
    """
    if share == 1.0:
        return after
    adapter = {
        module: stack([(share, factors), (1.0 - share, _known(before.adapter, module))])
        for module, factors in after.adapter.items()
    }

    def nearer(mine: Tensors, theirs: Tensors) -> dict[str, Array]:
        return {n: theirs[n] + share * _step(n, tensor, theirs) for n, tensor in mine.items()}

    return replace(
        after,
        adapter=adapter,
        weights=nearer(after.weights, before.weights),
        head=nearer(after.head, before.head),
    )


def _known(before: Adapter, module: str) -> LoraFactors:
    if module not in before:
        raise AggregationError(f"{module}: was never sent to the client")
    return before[module]


def _step(name: str, tensor: Array, before: Tensors) -> Float:
    if name not in before:
        raise AggregationError(f"{name}: was never sent to the client")
    check_tensor(name, tensor, before[name])
    return np.asarray(tensor, np.float64) - np.asarray(before[name], np.float64)
