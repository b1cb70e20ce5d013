"""FedAvg of LoRA updates with central differential privacy, and the ε it costs."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from atlas_flwr.aggregation.clipping import clip_share, flat_norm, steps
from atlas_flwr.aggregation.noise import (
    accounting,
    epsilon,
    epsilon_sampled,
    noise_std,
    noisy,
    said,
)
from atlas_flwr.errors import ConfigError
from atlas_flwr.results.record import Measured
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Adapter, Array, ModelParts, Part, Stage, Tensors, Update
from strategies.base import Method, Options, Served, State
from strategies.folds import Tally
from strategies.rounds.rules import draw_cohort

KEY = "noise-key"
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class DpOptions(Options):
    """Options of FedAvg with differential privacy."""

    noise_multiplier: Above = 1.0
    """σ: the sum of the clipped updates gets noise of standard deviation σ · clip."""
    clip: Above = 1.0
    """L2 norm that no client's update exceeds, over all the numbers it sends."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """δ at which ε is told."""
    trains: Literal["b", "both"] = "b"
    """``b``: A stays at its seeded start and the noise on B is linear in the product (FFA-LoRA);
    ``both``: noise on A and on B, whose product is noise as well."""
    noise: Literal["secret", "seeded"] = "secret"
    """``secret``: from a key of the operating system, kept in the run's checkpoints; ``seeded``:
    from ``run.seed``, which every client is told: it can be repeated, and protects from nobody who
    knows the seed."""


class DpFedAvg(Method):
    """The plain mean of clipped updates with Gaussian noise, factors as they travel.

    McMahan et al., ICLR 2018, with a fixed clip; A is frozen by default, as FFA-LoRA (Sun et al.,
    ICLR 2024) argues: of ``(B + ξ)(A + ζ)`` the terms with ζ grow with B and with each other. Heads
    are released too, so they are clipped with the adapter as one vector. Clients count equally:
    example counts would be one more thing to hide.
    """

    options_type = DpOptions
    options: DpOptions
    summary = "uniform mean of clipped updates with Gaussian noise (client-level DP, tells ε)"
    needs_lora = True

    def check(self) -> None:
        """Refuse what can't be accounted for."""
        super().check()
        accounting()
        clients, delta = self.setting.clients, self.options.delta
        if delta * clients >= 1:
            raise ConfigError(
                f"strategy.options.delta: {delta} is no less than 1 / {clients}, so that showing "
                "one client whole would pass; lower it"
            )

    def opening(self) -> tuple[str, ...]:
        """Return the ε of all rounds, and against whom it does not hold."""
        spent = said(self.spent(self.setting.rounds))
        told = f"privacy after {self.setting.rounds} rounds: ε {spent} at δ {self.options.delta:g}"
        told += f", noise {self.options.noise_multiplier:g} × clip {self.options.clip:g}"
        if self.options.noise == "seeded":
            told += "; noise is seeded: none of it holds against who knows run.seed"
        return (told,)

    def spent(self, rounds: int) -> dict[str, float]:
        """Return ε after so many rounds, by neighbouring relation (``aggregation.noise``).

        The first two count the rounds of the client that was drawn most often, for the draw is no
        secret; ``replace_one_sampled`` takes it for one, and is told where some clients rest.
        """
        setting, options = self.setting, self.options
        times = np.zeros(setting.clients, int)
        for round_ in range(1, rounds + 1):
            times[draw_cohort(setting.seed, round_, setting.clients, setting.fraction)] += 1
        found = dict(epsilon(options.noise_multiplier, int(times.max()), options.delta))
        cohort = max(1, round(setting.fraction * setting.clients))
        if rounds and cohort < setting.clients:
            found["replace_one_sampled"] = epsilon_sampled(
                options.noise_multiplier, setting.clients, cohort, rounds, options.delta
            )
        return found

    # -------------------------------------------------------------- who trains what

    def _travelling(self) -> frozenset[Part]:
        both: frozenset[Part] = frozenset({"lora_A", "lora_B", "head"})
        return both if self.options.trains == "both" else both - {"lora_A"}

    def stages(self, state: State) -> tuple[Stage, ...]:
        """Train what travels."""
        return (Stage(self._travelling()),)

    def returns(self, state: State) -> frozenset[Part]:
        """Ask for what was trained."""
        return self._travelling()

    def model_for(self, state: State, partition: int) -> Served:
        """Let the client draw a frozen A from the seed."""
        served = super().model_for(state, partition)
        frozen = self.options.trains == "b"
        return replace(served, seeded=frozenset({"lora_A"})) if frozen else served

    # -------------------------------------------------------------- clip, average, add noise

    def start(self) -> State:
        """Return the state before round 1, with a key for the noise."""
        return self._keyed(super().start())

    def note(self, state: State, update: Update) -> State:
        """Remember who is in the round's mean."""
        noted = super().note(state, update)
        return replace(noted, trained={**noted.trained, update.partition: state.round})

    def tally(self, state: State, updates: Iterator[Update]) -> tuple[Tally, State]:
        """Fold the clipped updates, all of one weight; the exact mean is of the whole ones."""
        tally, noted = Tally(self.fold), state
        for update in updates:
            noted = self.note(noted, update)
            partition, group = update.partition, self.body_key(update.partition)
            whole = self.received(state, update)
            body, head = self._clipped(state, update)
            effective: Adapter = self.effective(state, partition, whole)
            tally.products(group, effective, update.report.num_examples)
            tally.body(group, whole.with_body({**whole.body(), **body}), 1.0)
            tally.head(self.head_key(partition), head, 1.0)
        return tally, noted

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the means with noise on every number that clients sent."""
        keyed = self._keyed(state)
        answered = sorted(p for p, round_ in state.trained.items() if round_ == state.round)
        told = _digest(answered, bodies, heads)
        rng = rng_for(self._noise_seed(keyed), "dp-noise", state.round, told)
        new_bodies, new_heads = dict(bodies), dict(heads)
        for group, mean in sorted(bodies.items()):
            std = self._std(sum(self.body_key(p) == group for p in answered))
            sent = mean.only(*self._travelling()).body()
            new_bodies[group] = mean.with_body({**mean.body(), **noisy(sent, std, rng)})
        for group, head in sorted(heads.items()):
            std = self._std(sum(self.head_key(p) == group for p in answered))
            known = state.heads[group]
            new_heads[group] = {
                n: t.astype(known[n].dtype) for n, t in noisy(head, std, rng).items()
            }
        return super().step(keyed, new_bodies, new_heads)

    def measure(self, state: State, exact: Mapping[str, Adapter]) -> Measured:
        """Return the distances, and the ε of the rounds so far."""
        return replace(super().measure(state, exact), epsilon=self.spent(state.round))

    def _clipped(self, state: State, update: Update) -> tuple[Tensors, Tensors]:
        """Return what a client sent, its movement cut to the clip: adapter and head."""
        served = self.model_for(state, update.partition).parts
        sides = (served.body(), update.parts.body()), (served.head, update.parts.head)
        moved = [steps(after, before) for before, after in sides]
        share = clip_share(math.hypot(*map(flat_norm, moved)), self.options.clip)

        def short(before: Tensors, step: Tensors) -> dict[str, Array]:
            # Float64: to round here would let a norm exceed the clip by the last bit.
            return {n: before[n] + share * s for n, s in step.items()}

        body, head = (short(b, step) for (b, _), step in zip(sides, moved, strict=True))
        return body, head

    def _std(self, clients: int) -> float:
        return noise_std(self.options.noise_multiplier, self.options.clip, clients)

    def _noise_seed(self, state: State) -> int:
        if self.options.noise == "seeded":
            return self.setting.seed
        words = np.asarray(state.memory[KEY][KEY][KEY], "<u4")
        return int.from_bytes(words.tobytes(), "little")

    def _keyed(self, state: State) -> State:
        """Return the state with a key of 256 bits, drawn if there is none and one is needed.

        It stays in the state, so that a run that is resumed draws the noise it would have drawn.
        """
        if self.options.noise == "seeded" or KEY in state.memory:
            return state
        key = np.frombuffer(secrets.token_bytes(32), "<u4").copy()
        return replace(state, memory={**state.memory, KEY: {KEY: {KEY: key}}})


def _digest(
    answered: Sequence[int], bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
) -> int:
    """Return 256 bits of who is in the means, and of these before noise.

    A round that is run again after a crash may have other answers, and clients may have been served
    its first release: the same noise on another mean would show them the difference bare.
    """
    found = hashlib.sha256(repr(answered).encode())
    named = {f"body {g} {n}": t for g, mean in bodies.items() for n, t in mean.body().items()}
    named |= {f"head {g} {n}": t for g, head in heads.items() for n, t in head.items()}
    for name in sorted(named):
        found.update(name.encode() + b"\0" + np.ascontiguousarray(named[name]).tobytes())
    return int.from_bytes(found.digest(), "big")
