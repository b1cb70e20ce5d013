"""Clusters from fingerprints: what is measured, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from atlas_flwr.aggregation.information import informative_rows
from atlas_flwr.errors import ConfigError
from atlas_flwr.fingerprint.prints import class_rows, mixes_apart
from atlas_flwr.fingerprint.privacy import epsilon
from atlas_flwr.fingerprint.sketch import layout
from atlas_flwr.types import Scalar, Tensors
from strategies import found
from strategies.asking import Asking, AskingOptions
from strategies.base import Options, State

DELTA = 1e-5  # at which ε is told: well below one over the rows of a client
OF_GRADIENTS = ("mean_gradient", "rms_gradient")  # one vector of all rows: none has a feature
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]


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

    def averages(self) -> bool:
        """Tell whether models of a cluster are averaged at all."""
        return True

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

    def asked_again(self, state: State) -> State:
        """Return the state with what the noise is still worth in its record.

        Whose answer was lost is asked again and draws new noise, so that exchanges count.
        """
        state, noise = super().asked_again(state), self.options.noise
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
        learned = self.averages() and not self.setting.adjusts
        told: dict[str, Any] = {"label_mixes": {"apart": apart, "learned": learned}}
        if self.options.weights == "information":
            worth = zip(known, self.sizes_of(state, known), strict=True)
            told["informative_rows"] = {str(p): round(rows, 1) for p, rows in worth}
        return told

    def print_options(self) -> dict[str, Scalar]:
        """Return the kind of fingerprint, and what hides it."""
        options = self.options
        return {"kind": options.fingerprint, "clip": options.clip, "noise": options.noise}
