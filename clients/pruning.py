"""The client that gives up ranks it does not use (HetLoRA's self-pruning)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch

from atlas_flwr.models.lora import factor_parameters
from atlas_flwr.training.local import Goal
from atlas_flwr.types import LoraFactors, ModelParts, Scalar, Stage
from clients.lora import LoraClient


class PruningClient(LoraClient):
    """Penalises the tail of each module's ranks, and drops the tails that shrank.

    Adds ``λ ‖B[:, c:]‖ ‖A[c:]‖`` to the loss with ``c = ⌈γ r⌉``, summed over modules; when that
    sum is smaller after training than before, each module is cut to its first c ranks (Cho et
    al. 2024, §3). Whether the paper compares module by module or the sum could not be checked.
    """

    def _goal(self, stage: Stage, config: Mapping[str, Scalar]) -> Goal:
        """Add the penalty to the loss."""
        weight = float(config["prune-penalty"])
        goal = super()._goal(stage, config)
        return replace(goal, penalty=lambda: weight * self._tails()) if weight else goal

    def _tails(self) -> torch.Tensor:
        """Return the sum over modules of the tails' norm products."""
        gamma = float(self.job.options["prune-keep"])
        total = torch.zeros((), device=next(iter(self.site.model.head.values())).device)
        for layer in self.site.model.backbone.layers.values():
            a, b = factor_parameters(layer)
            cut = kept_rank(a.shape[0], gamma)
            # The norm has no gradient at zero, where B starts; the root is taken a bit away.
            squares = a[cut:].square().sum() * b[:, cut:].square().sum()
            total = total + torch.sqrt(squares + torch.finfo(a.dtype).tiny ** 0.5)
        return total

    def _trained(self, start: ModelParts) -> ModelParts:
        """Return the trained factors, cut where the tails shrank."""
        trained = super()._trained(start)
        gamma = float(self.job.options["prune-keep"])
        before, after = (
            sum(map(lambda f: tail(f, gamma), p.adapter.values())) for p in (start, trained)
        )
        if not after < before:
            return trained
        cut = {module: first(f, kept_rank(f.rank, gamma)) for module, f in trained.adapter.items()}
        return replace(trained, adapter=cut)


def kept_rank(rank: int, gamma: float) -> int:
    """Return ``⌈γ r⌉``, at least 1."""
    # The slack keeps binary rounding from asking one more: 0.55 · 20 = 11.000000000000002.
    return max(1, math.ceil(gamma * rank * (1 - 1e-12)))


def first(factors: LoraFactors, rank: int) -> LoraFactors:
    """Return the factors' first ranks."""
    return replace(factors, a=factors.a[:rank], b=factors.b[:, :rank])


def tail(factors: LoraFactors, gamma: float) -> float:
    """Return ``‖B[:, c:]‖_F ‖A[c:]‖_F`` of one module, 0 where nothing would be cut."""
    cut = kept_rank(factors.rank, gamma)
    b, a = factors.b[:, cut:], factors.a[cut:]
    return float(math.sqrt((b.astype(float) ** 2).sum() * (a.astype(float) ** 2).sum()))
