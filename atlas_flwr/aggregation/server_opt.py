"""Server optimizers over the round's pseudo-gradient ``Δ = mean − previous``.

Reddi et al. 2021 (FedAdam), Hsu et al. 2019 (FedAvgM).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from atlas_flwr.types import Array, Tensors

Memory = Mapping[str, Tensors]


def momentum_step(
    previous: Tensors, mean: Tensors, memory: Memory, *, learning_rate: float, momentum: float
) -> tuple[dict[str, Array], Memory]:
    """FedAvgM: ``v ← β v + Δ``, ``θ ← θ + η v`` (Hsu et al. 2019).

    With momentum 0 and learning rate 1 this is FedAvg. A tensor seen first starts with ``v = 0``.

    Returns:
        The new tensors in ``previous``' dtypes, and the memory ``{"v": …}`` in float64.
    """
    new: dict[str, Array] = {}
    velocity: dict[str, Array] = {}
    for name, theta in previous.items():
        delta = mean[name].astype(np.float64) - theta
        velocity[name] = momentum * _slot(memory, "v", name, delta) + delta
        new[name] = (theta + learning_rate * velocity[name]).astype(theta.dtype)
    return new, {"v": velocity}


def adam_step(
    previous: Tensors,
    mean: Tensors,
    memory: Memory,
    *,
    step: int,
    learning_rate: float,
    beta_1: float,
    beta_2: float,
    tau: float,
) -> tuple[dict[str, Array], Memory]:
    """FedAdam: ``m, v`` of Δ, then ``θ ← θ + η_t m / (√v + τ)``.

    The rate carries Adam's bias correction ``η_t = η √(1 − β₂ᵗ) / (1 − β₁ᵗ)``, as Flower's own
    FedAdam does; the paper's Algorithm 2 has none. Element-wise moments are gauge dependent on
    LoRA factors: another basis of the same product takes another step.

    Args:
        previous: Tensors before the round.
        mean: The clients' weighted mean.
        memory: ``{"m": …, "v": …}`` of the step before, or empty.
        step: Number of this step, from 1.
        learning_rate: Server rate η.
        beta_1: Decay of the first moment.
        beta_2: Decay of the second moment.
        tau: Degree of adaptivity, added to the root.

    Returns:
        The new tensors in ``previous``' dtypes, and the new memory in float64.
    """
    rate = learning_rate * np.sqrt(1.0 - beta_2**step) / (1.0 - beta_1**step)
    new: dict[str, Array] = {}
    first: dict[str, Array] = {}
    second: dict[str, Array] = {}
    for name, theta in previous.items():
        delta = mean[name].astype(np.float64) - theta
        first[name] = beta_1 * _slot(memory, "m", name, delta) + (1.0 - beta_1) * delta
        second[name] = beta_2 * _slot(memory, "v", name, delta) + (1.0 - beta_2) * delta**2
        new[name] = (theta + rate * first[name] / (np.sqrt(second[name]) + tau)).astype(theta.dtype)
    return new, {"m": first, "v": second}


def _slot(memory: Memory, slot: str, name: str, like: Array) -> Array:
    """Return a moment, or zeros for a tensor that is seen first."""
    return memory.get(slot, {}).get(name, np.zeros_like(like))
