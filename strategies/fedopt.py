"""FedOpt: a server optimizer over the round's mean movement.

Reddi et al. 2021 (FedAdam), Hsu et al. 2019 (FedAvgM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from atlas_flwr.aggregation.server_opt import Memory, adam_step, momentum_step
from atlas_flwr.types import Array, ModelParts, Tensors
from strategies.base import Method, Options, State

Rate = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
Decay = Annotated[float, Field(ge=0, lt=1, strict=True)]


class FedOpt(Method):
    """The server takes one optimizer step towards each group's mean; heads step like bodies."""

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Replace each group's jump to the mean by an optimizer step in its direction."""
        new_bodies, new_heads, memory = dict(state.bodies), dict(state.heads), dict(state.memory)
        for key, mean in bodies.items():
            flat, memory[f"body/{key}"] = self._step(
                state, f"body/{key}", new_bodies[key].body(), mean.body()
            )
            new_bodies[key] = new_bodies[key].with_body(flat)
        for key, head in heads.items():
            slot = f"head/{key}"
            new_heads[key], memory[slot] = self._step(state, slot, new_heads[key], head)
        return replace(state, bodies=new_bodies, heads=new_heads, memory=memory)

    def _step(
        self, state: State, slot: str, previous: Tensors, mean: Tensors
    ) -> tuple[dict[str, Array], Memory]:
        """Return one optimizer step of a group and its new moments."""
        raise NotImplementedError


class FedAvgMOptions(Options):
    """Options of FedAvgM."""

    learning_rate: Rate = 1.0
    """Server rate η."""
    momentum: Decay = 0.9
    """Momentum β; 0 with rate 1 is FedAvg."""


class FedAvgM(FedOpt):
    """FedAvg with server momentum ``v ← β v + Δ, θ ← θ + η v``."""

    options_type = FedAvgMOptions
    options: FedAvgMOptions
    summary = "FedAvg with server momentum"

    def _step(
        self, state: State, slot: str, previous: Tensors, mean: Tensors
    ) -> tuple[dict[str, Array], Memory]:
        return momentum_step(
            previous,
            mean,
            state.memory.get(slot, {}),
            learning_rate=self.options.learning_rate,
            momentum=self.options.momentum,
        )


class FedAdamOptions(Options):
    """Options of FedAdam; the rate is the size of one step of one number, so it is small."""

    learning_rate: Rate = 0.01
    """Server rate η: about how far each number moves in a round."""
    beta_1: Decay = 0.9
    """Decay of the mean movement."""
    beta_2: Decay = 0.99
    """Decay of the mean squared movement."""
    tau: Rate = 1e-3
    """Degree of adaptivity."""


class FedAdam(FedOpt):
    """Adam on the server over the clients' mean movement, bias-corrected as Flower's own is."""

    options_type = FedAdamOptions
    options: FedAdamOptions
    summary = "Adam on the server over the clients' mean movement"

    def _step(
        self, state: State, slot: str, previous: Tensors, mean: Tensors
    ) -> tuple[dict[str, Array], Memory]:
        memory = state.memory.get(slot, {})
        # A group's own steps count: it may be absent from rounds under partial participation.
        step = int(memory["t"]["t"]) + 1 if memory else 1
        new, moments = adam_step(
            previous,
            mean,
            memory,
            step=step,
            learning_rate=self.options.learning_rate,
            beta_1=self.options.beta_1,
            beta_2=self.options.beta_2,
            tau=self.options.tau,
        )
        return new, {**moments, "t": {"t": np.array(step)}}
