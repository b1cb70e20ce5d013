"""LoRA-FAIR: the mean adapter with B corrected towards the mean product."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import Field

from atlas_flwr.aggregation.fair import fair
from atlas_flwr.types import ModelParts
from strategies.base import Options
from strategies.folds import FlatMean, Fold, product_mean
from strategies.lora_rule import EqualRankRule


class LoraFairOptions(Options):
    """Options of LoRA-FAIR."""

    ridge: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 0.01
    """λ: weight of ``‖ΔB‖²``; large is FedIT, 0 the best B for the mean A."""


class _Corrected:
    """The mean of factors, its B corrected by the mean of products."""

    def __init__(self, ridge: float) -> None:
        self._mean, self._exact, self._ridge = FlatMean(), product_mean(), ridge

    def add(self, body: ModelParts, weight: float) -> None:
        """Fold one client's adapter, with its example count."""
        self._mean.add(body, weight)
        self._exact.add(body.adapter, weight)

    def result(self) -> ModelParts:
        """Return ``(B̄ + ΔB, Ā)``."""
        mean, exact = self._mean.result(), self._exact.result()
        return replace(
            mean, adapter={m: fair(f, exact[m], self._ridge) for m, f in mean.adapter.items()}
        )


class LoraFair(EqualRankRule):
    """``min ‖P*/s − (B̄ + ΔB) Ā‖_F² + λ‖ΔB‖_F²`` over ΔB, in closed form (Bian et al., ICCV 2025).

    The paper minimises a cosine similarity by gradient steps [unverified: its text could not be
    read]; the Frobenius form has this closed form, in factors alone. What lies outside Ā's rows is
    lost.
    """

    options_type = LoraFairOptions
    options: LoraFairOptions
    summary = "FedIT with B corrected towards the mean product"

    def fold(self, group: str) -> Fold:
        """Average factors and products, then correct."""
        return _Corrected(self.options.ridge)
