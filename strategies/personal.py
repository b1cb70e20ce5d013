"""Personalisation baselines: FedPer, FedRep, Ditto."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from atlas_flwr.errors import ConfigError
from atlas_flwr.types import BODY, PARTS, Job, Part, Scalar, Stage, Update
from strategies.base import Options, Served, State
from strategies.fedavg import FedAvg


class FedPer(FedAvg):
    """The body is averaged; the head stays with its client (Arivazhagan et al. 2019).

    On LoRA factors: FedIT with a local head.
    """

    summary = "FedAvg of the body; every client keeps its own head"
    head = "local"

    def private(self) -> frozenset[Part]:
        """Keep the head."""
        return frozenset({"head"})


class FedRepOptions(Options):
    """Options of FedRep."""

    head_epochs: Annotated[int, Field(ge=1, strict=True)] = 1
    """τ: passes of head training before the body's local epochs."""


class FedRep(FedPer):
    """FedPer with alternating training: first the head alone, then the body alone.

    Collins et al., ICML 2021.
    """

    options_type = FedRepOptions
    options: FedRepOptions
    summary = "as FedPer; each round trains the head first, then the body"

    def stages(self, state: State) -> tuple[Stage, ...]:
        """Train the head over the old body, then the body under the new head."""
        head = Stage(frozenset({"head"}), self.options.head_epochs)
        return (head, Stage(BODY))


class DittoOptions(Options):
    """Options of Ditto; ``lambda`` is λ."""

    pull: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True, alias="lambda")] = 0.1
    """λ: pull of the shared model on the personal one; 0 is local training."""


class Ditto(FedAvg):
    """A shared model by FedAvg, and beside it a personal one near it (Li et al., ICML 2021).

    ``v_k ← argmin f_k(v) + (λ/2)‖v − w‖²``: the personal models are what clients are scored with;
    they never leave the vault. Local work doubles, bytes don't. Who was never drawn holds its
    seeded start.
    """

    options_type = DittoOptions
    options: DittoOptions
    summary = "a shared model by FedAvg, and a personal one pulled towards it (lambda)"

    def check(self) -> None:
        """Refuse local heads: the shared model needs one to train with."""
        super().check()
        if self.setting.head_policy == "local":
            raise ConfigError(
                "model.head: 'local' with 'ditto', whose shared model needs a head; leave it out"
            )

    def plan(self, state: State, cohort: Sequence[int]) -> list[Job] | None:
        """Send the shared model; the client finds its own at home."""
        if state.phase:
            return None
        jobs = []
        for partition in cohort:
            job = self.train_job(state, partition)
            shared = super().model_for(state, partition).travelling()
            expects = self.setting.initial_for(partition).shapes()
            jobs.append(
                replace(
                    job, action="train.ditto", parts=shared, private=frozenset(), expects=expects
                )
            )
        return jobs

    def job_options(self, state: State) -> Mapping[str, Scalar]:
        """Send λ."""
        return {"lambda": self.options.pull}

    def note(self, state: State, update: Update) -> State:
        """Note whose own model was trained."""
        return replace(state, kept={**state.kept, update.partition: state.round})

    def model_for(self, state: State, partition: int) -> Served:
        """Return the client's own model, of which the server holds nothing."""
        served = super().model_for(state, partition)
        return replace(
            served,
            key=f"client-{partition}",
            parts=served.parts.only(),
            private=frozenset(PARTS),
        )
