"""ATLAS: clusters from fingerprints, and personal models pulled together inside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from atlas_flwr.types import FACTORS, Job, Scalar, Update
from strategies.base import Options, State
from strategies.clustered import Clustered, Step
from strategies.found import find, place

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class FingerprintOptions(Options):
    """Options of the fingerprints."""

    fingerprint: Literal["class_means", "embedding", "mean_gradient", "rms_gradient"] = (
        "class_means"
    )
    """What clients are compared by."""
    clip: Amount = 0.0
    """Features are shortened to this norm; 0 leaves them. Noise needs it."""
    noise: Amount = 0.0
    """σ of the Gaussian mechanism on the fingerprint, in units of what one row's text can change
    (``atlas_flwr.fingerprint.privacy`` says what ε that is); 0 is none."""

    @model_validator(mode="after")
    def _noise_needs_clip(self) -> Self:
        if self.noise and not self.clip:
            raise ValueError("noise needs a clip: set strategy.options.clip too")
        return self


class AtlasOptions(FingerprintOptions):
    """Options of ATLAS."""

    eta: Step = 0.5
    """η: 0 leaves every client alone, 1 gives it its cluster's mean weighted by rows."""


class FingerprintClustered(Clustered):
    """Clients are clustered by what their rows look like to the shared, seeded model.

    Round 1 begins with one exchange in which every client sends a fingerprint of at most 8 kB; the
    server compares them, finds how many clusters there are, one included, and never learns what
    the tasks are called. Who arrives later is placed by its fingerprint.
    """

    options_type: ClassVar[type[Options]] = FingerprintOptions
    options: FingerprintOptions

    def plan(self, state: State, cohort: Sequence[int]) -> list[Job] | None:
        """Ask whom nobody knows yet for a fingerprint, then let the cohort train."""
        if state.phase == 0 and (lacking := self._lacking(state, cohort)):
            return [self._fingerprint_job(state, partition) for partition in lacking]
        if state.phase > (1 if state.asked == state.round else 0):
            return None
        return [self.train_job(state, p) for p in cohort if p in state.clusters]

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Find clusters, place late-comers, or take the trained models."""
        first = next(updates, None)
        if first is None:
            return super().merge(state, updates)
        stream = chain([first], updates)
        return self._known(state, stream) if first.fingerprint else super().merge(state, stream)

    def _lacking(self, state: State, cohort: Sequence[int]) -> list[int]:
        """Return who is to be asked: everybody at first, then those of the cohort nobody knows."""
        wanted = cohort if state.prints else range(self.setting.clients)
        return [p for p in wanted if p not in state.prints]

    def _fingerprint_job(self, state: State, partition: int) -> Job:
        """Return the job that measures a client's rows at the seeded start."""
        options: dict[str, Scalar] = {
            "kind": self.options.fingerprint,
            "clip": self.options.clip,
            "noise": self.options.noise,
        }
        return Job(
            partition=partition,
            action="train.fingerprint",
            round=state.round,
            seeded=FACTORS | {"head"},
            options=options,
        )

    def _known(self, state: State, updates: Iterator[Update]) -> State:
        """Return the state with the clusters of those who told their fingerprint."""
        new = {update.partition: update.fingerprint for update in updates}
        state = replace(state, phase=state.phase + 1, asked=state.round)
        prints = {**state.prints, **new}
        if not state.prints:
            clusters, facts = find(prints, self.spaces())
            return replace(state, prints=prints, clusters=clusters, found=facts)
        clusters = {**state.clusters, **place(new, state.prints, state.clusters, self.spaces())}
        return replace(state, prints=prints, clusters=clusters)


class Atlas(FingerprintClustered):
    """Personal adapters that take one step along the graph of their cluster, on products."""

    options_type = AtlasOptions
    options: AtlasOptions
    summary = "clusters from fingerprints, one graph step on products inside them"

    @property
    def eta(self) -> float:
        """The step η."""
        return self.options.eta


class AtlasNoLaplacian(FingerprintClustered):
    """ATLAS without its graph step: with nothing averaged before it, this is local training."""

    summary = "atlas at η = 0: local training (an ablation)"

    @property
    def eta(self) -> float:
        """Take no step."""
        return 0.0


class AtlasClusterMean(FingerprintClustered):
    """ATLAS whose step is the whole way: every client gets its cluster's mean product."""

    summary = "atlas at η = 1: the mean product of each found cluster"

    @property
    def eta(self) -> float:
        """Go to the mean."""
        return 1.0
