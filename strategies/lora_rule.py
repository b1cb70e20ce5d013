"""What the rules for LoRA adapters of mixed ranks share: one merged adapter, cut to each receiver.

A rule says how adapters are folded (``fold``) and how a receiver's adapter is cut from the merged
one (``cut``); the rest is here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from atlas_flwr.aggregation.delta import accumulate
from atlas_flwr.aggregation.factors import at_scale, truncate
from atlas_flwr.aggregation.products import Svd, stack, svd
from atlas_flwr.types import Adapter, LoraFactors, ModelParts, Part, Tensors
from strategies.base import Method, Served, State
from strategies.folds import FlatMean, Fold


class LoraRule(Method):
    """One merged adapter a group, of any rank; every client is served its own cut of it.

    Nobody's adapter is merged before the first round, so that every client starts from the seed.
    """

    needs_lora = True
    mixed_ranks = True

    def start(self) -> State:
        """Return the state before round 1: heads alone; adapters start from the seed."""
        return replace(super().start(), bodies={})

    def fold(self, group: str) -> Fold:
        """Return a new merge of a group's adapters."""
        raise NotImplementedError

    def cut(self, merged: LoraFactors, own: LoraFactors) -> LoraFactors:
        """Return a receiver's factors of one module, float64.

        Args:
            merged: The group's factors.
            own: The receiver's seeded factors, which tell its rank and scale.
        """
        return at_scale(truncate(merged, own.rank), own.scale)

    def body_for(self, state: State, partition: int) -> ModelParts:
        """Return the client's cut of its group's adapter; its seeded start before any merge."""
        own = self.whole(state, partition).adapter
        ranks = state.ranks.get(partition, {})
        own = {m: truncate(f, ranks.get(m, f.rank)) for m, f in own.items()}
        body = state.bodies.get(self.body_key(partition))
        if body is None:
            return ModelParts(adapter=own)
        return ModelParts(adapter={m: self.cut(body.adapter[m], own[m]) for m in own})

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the merged adapters; rows beyond the cohort's highest rank stay as they were."""
        widened = {group: self._widened(state, group, body) for group, body in bodies.items()}
        return super().step(state, widened, heads)

    def _widened(self, state: State, group: str, body: ModelParts) -> ModelParts:
        """Return the merged adapter with the rows that nobody in the cohort owned put back."""
        return replace(
            body,
            adapter={
                m: self.widen(f, self._before(state, group, m)) for m, f in body.adapter.items()
            },
        )

    def widen(self, merged: LoraFactors, before: LoraFactors) -> LoraFactors:
        """Return merged factors with the rows of ``before`` that go beyond their rank."""
        if before.rank <= merged.rank:
            return merged
        rest = at_scale(before, merged.scale)
        a = np.concatenate([merged.a, rest.a[merged.rank :]])
        b = np.concatenate([merged.b, rest.b[:, merged.rank :]], axis=1)
        return replace(merged, a=a, b=b)

    def _before(self, state: State, group: str, module: str) -> LoraFactors:
        """Return a group's factors before the merge: the widest seeded ones at first."""
        if group in state.bodies:
            return state.bodies[group].adapter[module]
        members = (p for p in range(self.setting.clients) if self.body_key(p) == group)
        seeded = (self.setting.initial_for(p).adapter[module] for p in members)
        return max(seeded, key=lambda factors: factors.rank)


class ProductRule(LoraRule):
    """A rule whose merge is a product, kept as its SVD: ``b = U Σ``, ``a = Vᵀ``, scale 1."""

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the merged products in place of the old ones, whatever their rank."""
        ordered = {
            group: replace(body, adapter={m: _ordered(f) for m, f in body.adapter.items()})
            for group, body in bodies.items()
        }
        return Method.step(self, state, ordered, heads)


def svd_of(ordered: LoraFactors) -> Svd:
    """Return the SVD that a ``ProductRule``'s factors hold."""
    s = np.linalg.norm(ordered.b, axis=0)
    return Svd(ordered.b / np.where(s > 0, s, 1.0), s, ordered.a)


def _ordered(factors: LoraFactors) -> LoraFactors:
    found = svd(factors)
    return LoraFactors(a=found.vt, b=found.u * found.s, scale=1.0)


class EqualRankRule(LoraRule):
    """A rule for adapters of one rank that needs no cut: factors travel as they are merged."""

    mixed_ranks = False

    def fold(self, group: str) -> Fold:
        """Average A and B apart, as FedIT does."""
        return FlatMean()

    def cut(self, merged: LoraFactors, own: LoraFactors) -> LoraFactors:
        """Return the merged factors."""
        return merged


class MergingRule(EqualRankRule):
    """A rule that merges a change into the frozen weights of all clients, round by round.

    A change travels once, as factors; each client adds it to those it carries. Who was absent is
    sent what it missed: the server keeps a change for each version that somebody carries, and the
    last two, however many rounds somebody stays away.
    """

    def merged(self, state: State, changes: Mapping[str, Adapter]) -> State:
        """Return the state with a round's changes of the frozen weights, by group."""
        if not changes:
            return state
        deltas = {g: accumulate(state.deltas.get(g, {}), c) for g, c in changes.items()}
        # Who carries nothing is sent the whole delta: only those who carry some need the steps.
        held = {version for version in state.delivered.values() if version}
        oldest = min(held, default=state.version)
        still = {r: c for r, c in state.changes.items() if r > oldest}
        return replace(
            state,
            deltas={**state.deltas, **deltas},
            # The new one stays apart: who was sent the last version with this round's job will
            # be noted as its carrier after the merge.
            changes={**_joined(still, held), state.round: changes},
            version=state.round,
        )

    def missing(self, state: State, partition: int) -> tuple[Adapter, tuple[int, int]]:
        """Return the changes a client lacks as one, and the versions before and after them.

        Only who carries nothing is sent the whole delta. To anybody else that would be a new
        beginning: the client forgets the version it carried, and if its answer is lost the server
        goes on from a version that is nowhere.
        """
        group, held = self.body_key(partition), state.delivered.get(partition, 0)
        if held == state.version:
            return {}, (held, held)
        if not held:
            return state.deltas.get(group, {}), (0, state.version)
        lacking: Adapter = {}
        for round_ in sorted(r for r in state.changes if r > held):
            lacking = accumulate(lacking, state.changes[round_].get(group, {}))
        return lacking, (held, state.version)

    def model_for(self, state: State, partition: int) -> Served:
        """Return the client's model with the whole delta, of which it is sent what it lacks."""
        served = super().model_for(state, partition)
        whole = state.deltas.get(self.body_key(partition), {})
        lacking, carried = self.missing(state, partition)
        parts = replace(served.parts, delta=whole)
        sent = replace(served.parts, delta=_single(lacking)).without(*self.seeded())
        return replace(served, parts=parts, sent=sent, carried=carried, seeded=self.seeded())

    def seeded(self) -> frozenset[Part]:
        """Return the parts a client draws by itself."""
        return frozenset()

    def held(self, state: State, partition: int) -> Adapter:
        """Return all that was applied: receivers merge it whole."""
        return self.applied(state, self.body_key(partition))

    def gained(self, state: State, group: str) -> Adapter:
        """Return all changes of the frozen weights, and the adapter upon them."""
        body = state.bodies.get(group, ModelParts())
        return accumulate(state.deltas.get(group, {}), body.adapter)


def both(left: Adapter, right: Adapter) -> Adapter:
    """Return two adapters as one, their products added; what one lacks counts as zero there."""
    modules = dict.fromkeys([*left, *right])
    pairs = {m: [each[m] for each in (left, right) if m in each] for m in modules}
    return {m: stack([(1.0, factors) for factors in pair]) for m, pair in pairs.items()}


def _joined(
    changes: Mapping[int, Mapping[str, Adapter]], held: Collection[int]
) -> dict[int, Mapping[str, Adapter]]:
    """Return changes by round, neighbours added up where no version that is held lies between."""
    joined: dict[int, Mapping[str, Adapter]] = {}
    for round_ in sorted(changes):
        change, last = changes[round_], max(joined, default=round_)
        if last < round_ and not any(last <= version < round_ for version in held):
            before = joined.pop(last)
            groups = dict.fromkeys([*before, *change])
            change = {g: accumulate(before.get(g, {}), change.get(g, {})) for g in groups}
        joined[round_] = change
    return joined


def _single(adapter: Adapter) -> Adapter:
    return {module: factors.astype(np.float32) for module, factors in adapter.items()}
