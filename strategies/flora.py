"""FLoRA and FedEx-LoRA: exact rules that merge what no adapter can hold into the frozen weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from atlas_flwr.aggregation.products import compress, difference
from atlas_flwr.types import FACTORS, Adapter, ModelParts, Part, Tensors
from strategies.base import Method, Served, State
from strategies.folds import FlatMean, Fold, OfAdapters, product_stack
from strategies.lora_rule import MergingRule, both


class Flora(MergingRule):
    """Stack all factors, send the stack to everybody, merge it, and start afresh (B = 0).

    Wang et al., NeurIPS 2024. ``[B_1 … B_m] [p_1 s_1 A_1; …; p_m s_m A_m]`` is P* itself, for any
    mix of ranks; the weights p_k s_k stand on one factor alone. Each round draws new A's from the
    seed. The stack goes down to every client, ``Σ C(r_k)``; the change grows by Σ r_k ranks a
    round, up to full rank.
    """

    summary = "stack all factors; every client merges the stack and starts afresh (exact)"
    mixed_ranks = True
    cuts = False

    def fold(self, group: str) -> Fold:
        """Stack."""
        return OfAdapters(product_stack())

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Merge the stacks; no adapter is left over."""
        moved = self.merged(state, {group: body.adapter for group, body in bodies.items()})
        return Method.step(self, moved, {}, heads)

    def model_for(self, state: State, partition: int) -> Served:
        """Return the merged model under an adapter whose A is this round's draw, and B zero."""
        served = super().model_for(state, partition)
        return replace(served, draw=max(0, state.round - 1))

    def seeded(self) -> frozenset[Part]:
        """Let clients draw their adapters."""
        return FACTORS

    def applied(self, state: State, group: str) -> Adapter:
        """Return the round's stack."""
        return state.changes[state.round][group]


class _WithResidual:
    """The mean of factors as the adapter, and what the mean product has beyond it as the delta."""

    def __init__(self) -> None:
        self._mean, self._exact = FlatMean(), product_stack()

    def add(self, body: ModelParts, weight: float) -> None:
        """Fold one client's adapter, with its example count."""
        self._mean.add(body, weight)
        self._exact.add(body.adapter, weight)

    def result(self) -> ModelParts:
        """Return mean and residual, of rank ``(m − 1) r`` at most; a module without has none."""
        mean, exact = self._mean.result(), self._exact.result()
        residual = {m: compress(difference(exact[m], f))[0] for m, f in mean.adapter.items()}
        return replace(mean, delta={m: f for m, f in residual.items() if f.b.any()})


class FedEx(MergingRule):
    """FedIT's adapter, and its error merged into the frozen weights.

    FedEx-LoRA (Singhal et al., ACL 2025): ``W₀ ← W₀ + Σ p_k s B_k A_k − s B̄ Ā``. The residual
    travels as factors of rank (m − 1) r, never as a dense matrix. The authors' released code
    averages uniformly and adds the residual transposed; here weights are rows, and the
    orientation is tested.
    """

    summary = "FedIT plus its exact error, merged into the frozen weights as factors"

    def fold(self, group: str) -> Fold:
        """Average factors and products."""
        return _WithResidual()

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the mean adapters and merge the residuals."""
        moved = self.merged(state, {group: body.delta for group, body in bodies.items()})
        plain = {group: replace(body, delta={}) for group, body in bodies.items()}
        return Method.step(self, moved, plain, heads)

    def applied(self, state: State, group: str) -> Adapter:
        """Return the adapter and the round's residual together."""
        return both(state.bodies[group].adapter, state.changes[state.round][group])
