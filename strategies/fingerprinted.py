"""Clusters from fingerprints: asked for before round 1, again where that is wanted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from atlas_flwr.aggregation.information import informative_rows
from atlas_flwr.errors import ConfigError
from atlas_flwr.fingerprint.prints import class_rows, mixes_apart
from atlas_flwr.fingerprint.privacy import epsilon
from atlas_flwr.fingerprint.sketch import layout
from atlas_flwr.results.record import Measured
from atlas_flwr.types import FACTORS, Job, Scalar, Tensors, Update
from strategies import found
from strategies.base import Options, State
from strategies.clustered import Clustered

DELTA = 1e-5  # at which ε is told: well below one over the rows of a client
ROWS = "rows"  # beside a fingerprint: how many rows it is of, which under noise it doesn't say
OF_GRADIENTS = ("mean_gradient", "rms_gradient")  # one vector of all rows: none has a feature
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


class AskingOptions(Options):
    """Options of methods that ask clients what their rows are like."""

    every: Annotated[int, Field(ge=0, strict=True)] = 0
    """Rounds after which the cohort is asked again and all are clustered anew; 0 is never. Answers
    differ only where rows have changed, or noise was added."""


class FingerprintOptions(AskingOptions):
    """Options of the fingerprints."""

    fingerprint: Literal["class_means", "embedding", "mean_gradient", "rms_gradient"] = (
        "class_means"
    )
    """What clients are compared by."""
    clustering: found.Method = "merge_test"
    """``merge_test`` merges the nearest while a test finds no difference; ``agglomerative`` and
    ``kmeans`` take the number of clusters of the best silhouette, one if none beats chance."""
    clip: Amount = 0.0
    """Features are shortened to this norm; 0 leaves them. Noise needs it."""
    noise: Amount = 0.0
    """σ of the Gaussian mechanism on the fingerprint, in units of what one row's text can change
    (``clusters.json`` says what ε that is for one row's text); 0 is none."""
    weights: Literal["rows", "information"] = "rows"
    """What a client counts for in its cluster: its ``rows``, or how many rows of even classes tell
    as much as its own (``information``): where one class is all it has, next to nothing."""
    label_mix: Literal["even", "cluster"] = "even"
    """What a model's own logits fit under ``train.logit-adjustment``: ``even`` classes, or those of
    the ``cluster``'s rows together, which fingerprints tell and its clients are told."""

    @model_validator(mode="after")
    def _noise_needs_clip(self) -> Self:
        if self.noise and not self.clip:
            raise ValueError(f"noise: {self.noise:g} needs a clip; set strategy.options.clip too")
        if self.clip and self.fingerprint in OF_GRADIENTS:
            raise ValueError(
                f"clip: {self.clip:g} is not for fingerprint = '{self.fingerprint}'; remove it, or "
                "set strategy.options.fingerprint = 'class_means'"
            )
        for option, value, other in self.of_counts():
            if self.noise or self.fingerprint != "class_means":
                raise ValueError(
                    f"{option}: '{value}' needs the rows of each class, which fingerprint = "
                    f"'class_means' tells without noise; set those, or {option} = '{other}'"
                )
        return self

    def of_counts(self) -> list[tuple[str, str, str]]:
        """Return options that read the rows of each class, as they are, and what does without."""
        found = []
        if self.label_mix == "cluster":
            found.append(("label-mix", "cluster", "even"))
        if self.weights == "information":
            found.append(("weights", "information", "rows"))
        return found


class Asking(Clustered):
    """Clients are asked what their rows are like, and clustered by their answers.

    Round 1 begins with one exchange: every client sends at most 8 kB, and the spectra of its
    gradients where ranks are allocated by them. The server compares what it is told, finds how many
    clusters there are, one included, and never learns what the tasks are called. Who arrives later
    is placed by its answer.
    """

    options: AskingOptions

    def plan(self, state: State, cohort: Sequence[int]) -> list[Job] | None:
        """Ask whom nobody knows yet for a fingerprint, then let the cohort train."""
        if state.phase == 0 and (wanted := self._wanted(state, cohort)):
            return [self.fingerprint_job(state, partition) for partition in wanted]
        return self.training(state, cohort) if self.exchange(state) == 0 else None

    def training(self, state: State, cohort: Sequence[int]) -> list[Job]:
        """Return the jobs that train the cohort, those without a cluster left out."""
        return [self.train_job(state, p) for p in cohort if p in state.clusters]

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Find clusters, place late-comers, or take the trained models."""
        first = next(updates, None)
        if first is None and state.phase == 0:  # nobody new answered: those known train
            return replace(self.counted(state), measured=Measured())
        stream = updates if first is None else chain([first], updates)
        if first is not None and first.fingerprint and state.phase == 0:
            return self._known(state, stream)
        return super().merge(state, stream)

    # -------------------------------------------------------------- what a subclass may change

    def find(self, prints: Mapping[int, Tensors]) -> tuple[dict[int, int], Mapping[str, Any]]:
        """Return the cluster of each partition, and how the clusters were found."""
        raise NotImplementedError

    def place(
        self,
        new: Mapping[int, Tensors],
        prints: Mapping[int, Tensors],
        clusters: Mapping[int, int],
    ) -> dict[int, int]:
        """Return the clusters of those who came later."""
        raise NotImplementedError

    def print_options(self) -> dict[str, Scalar]:
        """Return what the client is told of what to measure."""
        raise NotImplementedError

    def fingerprint_options(self) -> dict[str, Scalar]:
        """Return all that the client is told."""
        return self.print_options()

    def told(self, state: State, rows: Mapping[int, int]) -> State:
        """Return the state with what follows from new fingerprints and their clusters.

        Args:
            state: Fingerprints and clusters are in it.
            rows: Rows of those who told their fingerprint now.
        """
        return state

    def pooled_rows(self, state: State, partition: int) -> tuple[int, ...]:
        """Return the rows of each class that the client's logits are to fit; none: even classes."""
        return ()

    # -------------------------------------------------------------- the exchanges

    def job(
        self, state: State, partition: int, action: str, rows: Literal["own", "full"] = "own"
    ) -> Job:
        """Return the job that hands a client its model, and what label mix that is of."""
        job = super().job(state, partition, action, rows)
        return replace(job, pooled=self.pooled_rows(state, partition))

    def exchange(self, state: State) -> int:
        """Return how many exchanges of the round are done, that of fingerprints apart."""
        return state.phase - (1 if state.asked == state.round else 0)

    def _wanted(self, state: State, cohort: Sequence[int]) -> list[int]:
        """Return who is to be asked: everybody at first, then those of the cohort nobody knows."""
        if not state.prints:
            return list(range(self.setting.clients))
        if self.options.every and state.round - state.clustered >= self.options.every:
            return list(cohort)
        return [p for p in cohort if p not in state.prints]

    def fingerprint_job(self, state: State, partition: int) -> Job:
        """Return the job that measures a client's rows at the seeded start."""
        return Job(
            partition=partition,
            action="train.fingerprint",
            round=state.round,
            seeded=FACTORS | {"head"},
            options=self.fingerprint_options(),
        )

    def _known(self, state: State, updates: Iterator[Update]) -> State:
        """Return the state with the clusters of those who told their fingerprint."""
        new, rows = {}, {}
        for update in updates:
            rows[update.partition] = update.report.num_examples
            new[update.partition] = {
                **update.fingerprint,
                ROWS: np.array([update.report.num_examples]),
            }
        again = not state.prints or new.keys() & state.prints.keys()
        prints = {**state.prints, **new}
        if again:
            clusters, facts = self.find(prints)
            tails = {p: t for p, t in state.tails.items() if _stays(p, state.clusters, clusters)}
            state = replace(state, clusters=clusters, found=facts, tails=tails)
            state = replace(state, clustered=state.round)
        else:
            placed = self.place(new, state.prints, state.clusters)
            clusters = {**state.clusters, **placed}
            told = {str(p): cluster for p, cluster in sorted(clusters.items())}
            found_ = {**state.found, "clusters": told, "k": len(set(told.values()))}
            state = replace(state, clusters=clusters, found=found_)
        return self.told(self.counted(replace(state, prints=prints)), rows)

    def counted(self, state: State) -> State:
        """Return the state after one more exchange in which fingerprints were asked for."""
        return replace(state, phase=state.phase + 1, asked=state.round, askings=state.askings + 1)


def _stays(partition: int, before: Mapping[int, int], after: Mapping[int, int]) -> bool:
    """Tell whether all whom a client was clustered with still are with it."""
    own = before.get(partition)
    return all(after.get(p) == after.get(partition) for p, c in before.items() if c == own)


class FingerprintClustered(Asking):
    """Clients are clustered by what their rows look like to the shared, seeded model."""

    options_type: ClassVar[type[Options]] = FingerprintOptions
    options: FingerprintOptions

    def check(self) -> None:
        """Refuse a cluster's label mix that nobody adds, and counts that nobody is told."""
        super().check()
        if self.options.label_mix == "cluster" and not self.setting.adjusts:
            raise ConfigError(
                "strategy.options.label-mix: 'cluster' changes nothing without adjusted logits; "
                "set train.logit-adjustment = 1, or label-mix = 'even'"
            )
        most = max(self.setting.num_labels.values())
        held = layout(self.setting.features or 1, most)[0]
        for option, value, other in self.options.of_counts():
            if held < most:
                raise ConfigError(
                    f"strategy.options.{option}: '{value}', but a fingerprint holds {held} of "
                    f"{most} classes; set '{other}'"
                )

    def pooled_rows(self, state: State, partition: int) -> tuple[int, ...]:
        """Return the rows of each class in the client's cluster, by its fingerprints."""
        if self.options.label_mix == "even" or partition not in state.clusters:
            return ()
        own = state.clusters[partition]
        return class_rows(
            [state.prints[p] for p in sorted(state.prints) if state.clusters[p] == own]
        )

    def sizes_of(self, state: State, present: Sequence[int]) -> list[float]:
        """Return rows, or how many rows of even classes tell as much by the fingerprints."""
        if self.options.weights == "rows":
            return super().sizes_of(state, present)
        return [informative_rows(class_rows([state.prints[p]])) for p in present]

    def find(self, prints: Mapping[int, Tensors]) -> tuple[dict[int, int], Mapping[str, Any]]:
        """Return the cluster of each partition, and how the clusters were found."""
        how, seed = self.options.clustering, self.setting.seed
        counted = self.options.noise == 0
        return found.find(prints, self.spaces(), method=how, seed=seed, counted=counted)

    def place(
        self,
        new: Mapping[int, Tensors],
        prints: Mapping[int, Tensors],
        clusters: Mapping[int, int],
    ) -> dict[int, int]:
        """Return the clusters of those who came later."""
        return found.place(new, prints, clusters, self.spaces())

    def told(self, state: State, rows: Mapping[int, int]) -> State:
        """Return the state with what is told of label mixes in its record."""
        state = super().told(state, rows)
        if self.options.fingerprint != "class_means" or self.options.noise:
            return state
        return replace(state, found={**state.found, **self._mixes(state)})

    def counted(self, state: State) -> State:
        """Return the state with what the noise is still worth in its record.

        Whose answer was lost is asked again and draws new noise, so that exchanges count.
        """
        state, noise = super().counted(state), self.options.noise
        if not noise:
            return state
        times = state.askings
        spent = epsilon(noise / math.sqrt(times), DELTA)
        facts = {"noise": noise, "times": times, "delta": DELTA, "epsilon": spent}
        return replace(state, found={**state.found, "privacy": facts})

    def _mixes(self, state: State) -> dict[str, Any]:
        """Return how far label mixes are apart in each cluster, and what clients count for."""
        known, clusters = sorted(state.prints), sorted({*state.clusters.values()})
        apart = {
            str(c): mixes_apart([state.prints[p] for p in known if state.clusters[p] == c])
            for c in clusters
        }
        told: dict[str, Any] = {"label_mixes": {"apart": apart, "adjusted": self.setting.adjusts}}
        if self.options.weights == "information":
            worth = zip(known, self.sizes_of(state, known), strict=True)
            told["informative_rows"] = {str(p): round(rows, 1) for p, rows in worth}
        return told

    def print_options(self) -> dict[str, Scalar]:
        """Return the kind of fingerprint, and what hides it."""
        options = self.options
        return {"kind": options.fingerprint, "clip": options.clip, "noise": options.noise}
