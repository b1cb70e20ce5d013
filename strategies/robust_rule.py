"""What the robust rules share: a round's updates are collected, then decided on group by group.

LoRA updates are merged as products ``P = s B A``, so that neither the basis of the factors nor
their rank or scale matters, and written back to each receiver's rank by SVD as in FlexLoRA; weights
and heads are merged as tensors. A shared head and the body are judged together, other heads inside
their own group. The server holds all of a round's updates: no such rule can be folded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.aggregation.factors import check_weight
from atlas_flwr.aggregation.write_back import balanced
from atlas_flwr.types import LoraFactors, ModelParts, Tensors, Update
from strategies.base import Method, State
from strategies.folds import FlatMean, Fold, Tally
from strategies.lora_rule import ProductRule, svd_of


@dataclass(frozen=True)
class Vote:
    """What one client says in one group.

    Attributes:
        partition: Who.
        parts: Body, head or both.
        start: The same before training, as it was sent.
        weight: Its example count; coordinate-wise rules ignore it.
    """

    partition: int
    parts: ModelParts
    start: ModelParts
    weight: float


@dataclass(frozen=True)
class Merged:
    """What a rule makes of the votes.

    Attributes:
        parts: The merged parts.
        shares: How much of each client's update was let in, where a rule takes clients whole.
        spectra: All singular values by module, where ``parts`` holds a cut of the product.
    """

    parts: ModelParts
    shares: Mapping[int, float] = field(default_factory=dict)
    spectra: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)


class RobustRule(ProductRule):
    """A rule that sees all of a group's updates at once; the server holds them all."""

    needs_lora: ClassVar[bool] = False

    def check(self) -> None:
        """Refuse groups that are too small for the rule even when everybody drawn answers."""
        super().check()
        drawn = max(1, round(self.setting.fraction * self.setting.clients))
        partitions = range(self.setting.clients)
        keys = [self.body_key(p) for p in partitions]
        if "head" not in self.private():
            keys += [self.head_key(p) for p in partitions if self.setting.head_policy != "shared"]
        for group in sorted(key for key in set(keys) if not key.startswith("client-")):
            self.check_group(group, min(keys.count(group), drawn))

    def check_group(self, group: str, clients: int) -> None:
        """Refuse a group that never has more than so many answers.

        Raises:
            ConfigError: Names the option.
        """

    def decide(self, state: State, group: str, votes: Sequence[Vote]) -> Merged:
        """Merge a group's votes, one at least, in order of partitions."""
        raise NotImplementedError

    # -------------------------------------------------------------- the three functions

    def start(self) -> State:
        """Return the state before round 1; LoRA adapters start from the seed."""
        return super().start() if self.setting.ranks else Method.start(self)

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Collect a round's updates and let the rule decide group by group."""
        tally, noted = Tally(self.fold), state
        groups: dict[tuple[str, ...], list[Vote]] = {}
        for update in updates:
            noted = self.note(noted, update)
            body, weight = self.received(state, update), update.report.num_examples
            check_weight(weight)
            if body.shapes():
                effective = self.effective(state, update.partition, body)
                tally.products(self.body_key(update.partition), effective, weight)
            for slot, vote in self._votes(state, update, body):
                groups.setdefault(slot, []).append(vote)
        for votes in groups.values():  # ties are the lower partition's, whoever came first
            votes.sort(key=lambda vote: vote.partition)
        found = {slot: self.decide(state, slot[-1], votes) for slot, votes in groups.items()}
        bodies = {s[-1]: m.parts.without("head") for s, m in found.items() if "body" in s}
        heads = {s[-1]: m.parts.head for s, m in found.items() if "head" in s}
        new = self.step(replace(noted, phase=state.phase + 1), bodies, heads)
        measured = self.measure(new, tally.exact())
        merged = next((m for slot, m in found.items() if "body" in slot), Merged(ModelParts()))
        if merged.spectra:
            measured = replace(measured, truncation_error=self._truncation(merged))
        if lost := tally.lost():
            measured = replace(measured, compression_error={"stack": lost})
        shares = {str(p): share for p, share in sorted(merged.shares.items())} or None
        return replace(new, measured=replace(measured, shares=shares))

    def fold(self, group: str) -> Fold:
        """Nothing is folded: see ``decide``."""
        return FlatMean()

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the merged products as their SVD, weights as they are."""
        if self.setting.ranks:
            return super().step(state, bodies, heads)
        return Method.step(self, state, bodies, heads)

    def body_for(self, state: State, partition: int) -> ModelParts:
        """Return the client's cut of the merged products, or the group's weights."""
        if self.setting.ranks:
            return super().body_for(state, partition)
        return Method.body_for(self, state, partition)

    def cut(self, merged: LoraFactors, own: LoraFactors) -> LoraFactors:
        """Return the best approximation of the receiver's rank, balanced."""
        return balanced(svd_of(merged), own.rank, own.scale, own.a)

    # -------------------------------------------------------------- what a group votes on

    def _votes(
        self, state: State, update: Update, body: ModelParts
    ) -> Iterator[tuple[tuple[str, ...], Vote]]:
        """Yield a client's vote in each group: ``(kinds…, group)`` and what it says there."""
        partition, weight = update.partition, update.report.num_examples
        start = self.model_for(state, partition).parts
        group, own = self.body_key(partition), self.head_key(partition)
        head = ModelParts(head=update.parts.head)
        if body.shapes() and head.head and self.setting.head_policy == "shared":
            whole = replace(body, head=head.head)
            yield ("body", "head", group), Vote(partition, whole, start, weight)
            return
        if body.shapes():
            yield ("body", group), Vote(partition, body, start, weight)
        if head.head:
            yield ("head", own), Vote(partition, head, start, weight)

    def _truncation(self, merged: Merged) -> dict[str, float | None]:
        """Return what receivers of each rank lose of the rule's products, uncut, by rank."""
        found: dict[str, float | None] = {}
        whole = float(np.sqrt(sum(np.sum(s**2) for s in merged.spectra.values())))
        for rank in sorted(set(self.setting.ranks)):
            ranks = self.setting.initial_for(self.setting.ranks.index(rank)).ranks()
            tails = (np.sum(s[ranks[module] :] ** 2) for module, s in merged.spectra.items())
            found[str(rank)] = float(np.sqrt(sum(tails))) / whole if whole else None
        return found

    def _widest(self, module: str) -> int:
        """Return the highest rank that any client holds of a module."""
        setting = self.setting
        return max(setting.initial_for(p).adapter[module].rank for p in range(setting.clients))
