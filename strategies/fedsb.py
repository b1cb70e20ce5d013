"""Fed-SB: one small square matrix a module is trained between frozen factors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from atlas_flwr.aggregation.factors import truncate
from atlas_flwr.aggregation.product_mean import ProductMean
from atlas_flwr.aggregation.products import shape_of, svd
from atlas_flwr.aggregation.square import CoreMean, between, seeded_up
from atlas_flwr.errors import ConfigError
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import FACTORS, Adapter, Job, LoraFactors, ModelParts, Part, Tensors, Update
from strategies.base import Method, Options, Served, State
from strategies.folds import Fold, product_mean


class FedSbOptions(Options):
    """Options of Fed-SB."""

    init: Literal["gradient", "seeded"] = "gradient"
    """``gradient``: B⁰ and A⁰ from the clients' mean first gradient, as published; ``seeded``: A⁰
    as LoRA draws it, B⁰ with orthonormal columns, so that no gradient leaves a client."""


class _Cores:
    """The mean of cores as a fold of bodies."""

    def __init__(self) -> None:
        self._mean = CoreMean()

    def add(self, body: ModelParts, weight: float) -> None:
        """Fold one client's cores, with its example count."""
        self._mean.add(body.core, weight)

    def result(self) -> ModelParts:
        """Return the mean cores."""
        return ModelParts(core=self._mean.result())


class FedSb(Method):
    """``W₀ + s B⁰ R A⁰`` with B⁰ and A⁰ frozen and common; only R, r × r, is trained and averaged.

    Fed-SB (Singhal et al. 2025, arXiv 2502.15436): the mean of R is the mean of products, and a
    round costs r² numbers a module. Round 1 begins with an exchange in which clients send the
    leading r_max directions of their mean gradient at W₀ (r_max: the highest rank that any module
    of any client has); the mean's leading singular vectors become B⁰ and A⁰, which are sent once.
    R starts at 0, so that the first model is W₀. The paper starts R at the first optimizer step's
    size and takes that step's sign matrix for the gradient [unverified: its text could not be
    read]. Mixed ranks, which it does not have, train the leading block of R; what lies beyond a
    round's cohort stays, and counts as error in that round.
    """

    options_type = FedSbOptions
    options: FedSbOptions
    summary = "a small square matrix between frozen factors (exact, r² numbers a module)"
    needs_lora = True
    mixed_ranks = True

    def check(self) -> None:
        """Refuse a core larger than its module: its last rows and columns could never be trained.

        Raises:
            ConfigError: Names the rank, the module and what it has.
        """
        super().check()
        for partition in range(self.setting.clients):
            for module, f in self.setting.initial_for(partition).adapter.items():
                d_out, d_in = shape_of(f)
                if f.rank > min(d_out, d_in):
                    raise ConfigError(
                        f"lora.rank: {f.rank} is more directions than {module} ({d_out} x {d_in}) "
                        "has, and this strategy freezes that many orthogonal ones; set "
                        f"{min(d_out, d_in)} at most, for this module alone in lora.rank-pattern"
                    )

    # -------------------------------------------------------------- the frozen factors

    def start(self) -> State:
        """Return the state before round 1: heads, and the frozen factors where they are seeded."""
        state = replace(super().start(), bodies={})
        if self.options.init == "gradient":
            return state
        groups = dict.fromkeys(self.body_key(p) for p in range(self.setting.clients))
        bodies = {group: _around(self._seeded(group)) for group in groups}
        return replace(state, bodies=bodies, version=1)

    def _seeded(self, group: str) -> Adapter:
        """Return seeded factors at the group's highest rank."""
        widest = self.setting.initial_for(self._widest(group)).adapter
        return {m: replace(f, b=self._up(m, f), scale=1.0) for m, f in widest.items()}

    def _up(self, module: str, own: LoraFactors) -> np.ndarray:
        stream = rng_for(self.setting.seed, f"fedsb-up/{module}")
        return seeded_up(own.b.shape[0], own.rank, stream).astype(np.float32)

    def _widest(self, group: str) -> int:
        """Return a partition of the group's highest rank."""
        members = [p for p in range(self.setting.clients) if self.body_key(p) == group]
        return max(members, key=lambda p: self.setting.ranks[p])

    def _measure_first(self, state: State) -> bool:
        """Tell whether the frozen factors are still to be found."""
        return not state.bodies

    def _found(self, state: State, updates: Iterator[Update]) -> State:
        """Return the state with the frozen factors of the clients' mean gradient."""
        means: dict[str, ProductMean] = {}
        for update in updates:
            mean = means.setdefault(self.body_key(update.partition), product_mean())
            mean.add(update.parts.adapter, update.report.num_examples)
        bodies = {}
        for group, mean in means.items():
            widest = self.setting.initial_for(self._widest(group)).ranks()
            found = {m: _leading(f, widest[m]) for m, f in mean.result().items()}
            bodies[group] = _around(found)
        return replace(state, bodies=bodies, phase=state.phase + 1, version=state.round)

    # -------------------------------------------------------------- the three functions

    def plan(self, state: State, cohort: Sequence[int]) -> list[Job] | None:
        """Ask for the gradient once, then for cores."""
        if self._measure_first(state):
            return [self._gradient_job(state, partition) for partition in cohort]
        before = 1 if self.options.init == "gradient" and state.version == state.round else 0
        if state.phase > before:
            return None
        jobs = (self.train_job(state, partition) for partition in cohort)
        return [replace(job, action="train.core") for job in jobs]

    def _gradient_job(self, state: State, partition: int) -> Job:
        own = self.setting.initial_for(partition).adapter
        every = map(self.setting.initial_for, range(self.setting.clients))
        # Of every module, not lora.rank: lora.rank-pattern may give one of them more.
        rank = max(rank for initial in every for rank in initial.ranks().values())
        expects = {}
        for module, f in own.items():
            kept = min(rank, f.b.shape[0], f.a.shape[1])
            expects[f"{module}.lora_A"] = (kept, f.a.shape[1])
            expects[f"{module}.lora_B"] = (f.b.shape[0], kept)
        job = self.job(state, partition, "train.gradient")
        return replace(job, expects=expects, options={"gradient-rank": rank})

    def train_job(self, state: State, partition: int) -> Job:
        """Return a job whose answer is a square matrix for each module."""
        job = super().train_job(state, partition)
        ranks = self.setting.initial_for(partition).ranks()
        cores = {f"{module}.core": (r, r) for module, r in ranks.items()}
        return replace(job, expects={**job.expects, **cores})

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Find the frozen factors, or average the cores."""
        if self._measure_first(state):
            return self._found(state, updates)
        return super().merge(state, updates)

    def model_for(self, state: State, partition: int) -> Served:
        """Send the frozen factors to a client that does not carry them yet."""
        served = super().model_for(state, partition)
        if self._measure_first(state):
            return replace(served, seeded=FACTORS)
        held = state.delivered.get(partition, 0)
        sent = served.parts.without(*FACTORS) if held == state.version else served.parts
        return replace(served, sent=sent, carried=(held, state.version))

    # -------------------------------------------------------------- parts of the merge

    def fold(self, group: str) -> Fold:
        """Average the cores."""
        return _Cores()

    def returns(self, state: State) -> frozenset[Part]:
        """Ask for the cores and the head."""
        return frozenset({"core", "head"})

    def received(self, state: State, update: Update) -> ModelParts:
        """Return the cores at scale 1; the factors around them never travel back."""
        own = self.setting.initial_for(update.partition).adapter
        return ModelParts(core={m: own[m].scale * core for m, core in update.parts.core.items()})

    def effective(self, state: State, partition: int, body: ModelParts) -> Adapter:
        """Return the client's products in factors."""
        around = state.bodies[self.body_key(partition)].adapter
        return {m: between(truncate(around[m], len(core)), core) for m, core in body.core.items()}

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the mean cores; what a cohort of low ranks could not reach stays as it was."""
        new = {
            g: replace(state.bodies[g], core=_over(state.bodies[g].core, b.core))
            for g, b in bodies.items()
        }
        return super().step(state, new, heads)

    def body_for(self, state: State, partition: int) -> ModelParts:
        """Return the client's frozen factors and the leading block of the mean cores."""
        own = self.setting.initial_for(partition).without("head")
        body = state.bodies.get(self.body_key(partition))
        if body is None:
            return own
        ranks = own.ranks()
        around = {
            m: replace(truncate(f, ranks[m]), scale=own.adapter[m].scale)
            for m, f in body.adapter.items()
        }
        core = {m: body.core[m][:r, :r] / around[m].scale for m, r in ranks.items()}
        return ModelParts(adapter=around, core=core)

    def applied(self, state: State, group: str) -> Adapter:
        """Return the mean cores between the frozen factors."""
        body = state.bodies[group]
        return {m: between(f, body.core[m]) for m, f in body.adapter.items()}

    def held(self, state: State, partition: int) -> Adapter:
        """Return the client's products in factors."""
        body = self.body_for(state, partition)
        return {m: between(f, body.core[m]) for m, f in body.adapter.items()}


def _around(frozen: Adapter) -> ModelParts:
    """Return frozen factors with cores of zeros between them."""
    return ModelParts(frozen, core={m: np.zeros((f.rank, f.rank)) for m, f in frozen.items()})


def _leading(gradient: LoraFactors, rank: int) -> LoraFactors:
    """Return the leading singular vectors of a gradient: orthonormal B⁰ and A⁰, float32."""
    found = svd(gradient)
    b, a = found.u[:, :rank], found.vt[:rank]
    return LoraFactors(a=a.astype(np.float32), b=b.astype(np.float32), scale=1.0)


def _over(before: Tensors, new: Tensors) -> dict[str, np.ndarray]:
    """Return the new cores laid over the old ones, whose further rows and columns stay."""
    laid = {}
    for module, core in new.items():
        laid[module] = before[module].astype(np.float64)
        laid[module][: len(core), : len(core)] = core
    return laid
