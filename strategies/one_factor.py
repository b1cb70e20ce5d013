"""Rules that train or share one LoRA factor: FFA-LoRA, RoLoRA, FedSA-LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np

from atlas_flwr.aggregation.factors import truncate, up_at_scale
from atlas_flwr.aggregation.frozen import DownMean, UpMean
from atlas_flwr.types import FACTORS, LoraFactors, ModelParts, Part, Stage, Tensors
from strategies.base import Method, Options, Served, State
from strategies.folds import Fold, OfAdapters
from strategies.lora_rule import EqualRankRule, LoraRule

_OTHER: dict[Part, Part] = {"lora_A": "lora_B", "lora_B": "lora_A"}


class FfaOptions(Options):
    """Options of FFA-LoRA."""

    average: Literal["all", "owners"] = "all"
    """``all``: zero-padded over all clients, exact; ``owners``: column by column over the clients
    whose rank reaches it, another estimator."""


class Ffa(LoraRule):
    """A is frozen at the shared seeded A⁰; B alone is trained, sent and averaged.

    FFA-LoRA (Sun et al., ICLR 2024): ``Σ p_k s B_k A⁰ = s B̄ A⁰``, exact, at half the bytes. Mixed
    ranks, which the paper does not have, use the first r_k rows of one A⁰. A receiver of lower
    rank loses B̄'s further columns, which is not the best cut of its rank. Columns beyond the
    ranks of a round's cohort stay as they were, and count as error in that round.
    """

    options_type = FfaOptions
    options: FfaOptions
    summary = "A frozen and shared, B averaged (exact, half the bytes)"

    def fold(self, group: str) -> Fold:
        """Average B."""
        return OfAdapters(UpMean(owners=self.options.average == "owners"))

    def cut(self, merged: LoraFactors, own: LoraFactors) -> LoraFactors:
        """Return B's first columns beside the receiver's own A⁰."""
        return up_at_scale(truncate(merged, own.rank), own.scale)

    def widen(self, merged: LoraFactors, before: LoraFactors) -> LoraFactors:
        """Put back rows nobody owned; the scale is on B, for A⁰ never changes."""
        return super().widen(merged, up_at_scale(before, merged.scale))

    def stages(self, state: State) -> tuple[Stage, ...]:
        """Train B and the head."""
        return (Stage(frozenset({"lora_B", "head"})),)

    def returns(self, state: State) -> frozenset[Part]:
        """Ask for B and the head."""
        return frozenset({"lora_B", "head"})

    def model_for(self, state: State, partition: int) -> Served:
        """Let the client draw A⁰ from the seed."""
        return replace(super().model_for(state, partition), seeded=frozenset({"lora_A"}))


class RoLora(EqualRankRule):
    """Odd rounds train and average B over a common A, even rounds A over a common B.

    RoLoRA (Chen et al., NeurIPS 2025): exact in every round, for the frozen factor is everybody's.
    B first: while B is zero, A has no gradient. Clients carry the factor that did not change, so
    each round moves one factor up and one down; who was absent is sent what changed meanwhile.
    """

    summary = "B in odd rounds, A in even ones, the other frozen (exact, half the bytes)"

    def _active(self, round_: int) -> Part:
        return "lora_B" if round_ % 2 else "lora_A"

    def stages(self, state: State) -> tuple[Stage, ...]:
        """Train the round's factor and the head."""
        return (Stage(frozenset({self._active(state.round), "head"})),)

    def returns(self, state: State) -> frozenset[Part]:
        """Ask for the round's factor and the head."""
        return frozenset({self._active(state.round), "head"})

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the round's mean factor beside the frozen one, as clients hold it to the bit."""
        active = self._active(state.round)
        exact = {}
        for group, body in bodies.items():
            before = {m: self._before(state, group, m).without(active) for m in body.adapter}
            frozen = {m: f.astype(np.float32) for m, f in before.items()}
            mean = body.without(_OTHER[active]).adapter
            exact[group] = ModelParts(adapter={m: f.filled(frozen[m]) for m, f in mean.items()})
        return Method.step(self, replace(state, version=state.round), exact, heads)

    def model_for(self, state: State, partition: int) -> Served:
        """Send the factors that changed since the version the client carries."""
        served = super().model_for(state, partition)
        held = state.delivered.get(partition, 0)
        changed = {self._active(round_) for round_ in range(held + 1, state.version + 1)}
        sent = served.parts.without(*(FACTORS - changed))
        carried = (held, state.version)
        return replace(served, seeded=FACTORS, sent=sent, carried=carried)


class FedSa(LoraRule):
    """A is averaged; B and the head never leave the client.

    FedSA-LoRA (Guo et al., ICLR 2025): client k's model is ``W₀ + s B_k Ā``, personal by design,
    so no mean of products exists. Mixed ranks average each row of A over its owners, which the
    paper does not have.
    """

    summary = "A averaged; B and the head stay with the client (personal, half the bytes)"
    head = "local"

    def private(self) -> frozenset[Part]:
        """Keep B and the head."""
        return frozenset({"lora_B", "head"})

    def fold(self, group: str) -> Fold:
        """Average A."""
        return OfAdapters(DownMean())

    def cut(self, merged: LoraFactors, own: LoraFactors) -> LoraFactors:
        """Return A's first rows as they are: the scale is the receiver's, and with its B."""
        return replace(truncate(merged, own.rank), scale=own.scale)

    def widen(self, merged: LoraFactors, before: LoraFactors) -> LoraFactors:
        """Put back rows nobody owned; there is no B and no scale to keep."""
        return super().widen(merged, replace(before.without("lora_B"), scale=merged.scale))
