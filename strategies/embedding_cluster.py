"""Clusters from the subspaces of frozen embeddings: PACFL's clusters under ATLAS's rules."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import Field

from atlas_flwr.clustering.compared import by_angles, place_by_angles
from atlas_flwr.errors import AggregationError, ConfigError
from atlas_flwr.fingerprint.subspace import DIMENSIONS, Measure, width_for
from atlas_flwr.types import Scalar, Tensors
from strategies import found
from strategies.atlas import StepOptions, Stepping
from strategies.clustered import Eta


class EmbeddingOptions(StepOptions):
    """Options of the subspaces."""

    eta: Eta | Literal["auto"] = 1.0
    """As in ``atlas``, but that subspaces tell no ``shrinkage``; 1 is the average (the paper)."""
    dimensions: Annotated[int, Field(ge=1, le=16, strict=True)] = DIMENSIONS
    """p: leading directions of a client's embeddings (the paper takes 2 to 5)."""
    rows: Literal["pooled", "class_wise"] = "pooled"
    """``pooled``: directions of all rows, no labels read (the paper); ``class_wise``: of each class
    (the authors' program)."""
    angle: Measure = "sum"
    """``sum`` of the principal angles, or the ``smallest``."""
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)] = 0.0
    """Clusters of a mean angle up to this, in degrees, are joined (the paper). 0: the number of
    clusters is chosen by silhouette with a null test, one cluster included (ours)."""


class EmbeddingCluster(Stepping):
    """Clients are clustered by the angles between the subspaces of their embeddings.

    As published in one shot, before round 1, from the leading left singular vectors of each
    client's data (Vahidian et al., AAAI 2023); what the paper does with pixels is done with the
    frozen model's mean hidden states. Inside clusters ATLAS's step stands in for the paper's
    average of weights: the clustering alone differs from ``atlas`` and ``oracle_cluster``.
    """

    options_type = EmbeddingOptions
    options: EmbeddingOptions
    summary = "clusters from angles between embeddings' subspaces (PACFL), else atlas"

    def check(self) -> None:
        """Refuse more directions than a fingerprint holds, and a graph of other fingerprints, too.

        Raises:
            ConfigError: A label space has too many classes for class-wise directions, or the graph
                needs distances that subspaces don't have.
        """
        super().check()
        if self.options.graph != "complete":
            raise ConfigError(
                f"strategy.options.graph: '{self.options.graph}' weighs distances of class means, "
                "and 'embedding_cluster' has angles; set 'complete', or use strategy 'atlas'"
            )
        classes, p = max(self.spaces()), self.options.dimensions
        if self.options.rows == "pooled":
            return
        try:
            width_for(2 * p, classes, p)
        except AggregationError as error:
            raise ConfigError(
                f"strategy.options.rows: 'class_wise' with {p} dimensions of {classes} classes is "
                "more than a fingerprint holds; set 'pooled'"
            ) from error

    def print_options(self) -> dict[str, Scalar]:
        """Ask for subspaces."""
        options = self.options
        class_wise = options.rows == "class_wise"
        return {"kind": "subspace", "dimensions": options.dimensions, "class-wise": class_wise}

    def find(self, prints: Mapping[int, Tensors]) -> tuple[dict[int, int], Mapping[str, Any]]:
        """Cluster by angles."""
        known, spaces = sorted(prints), self.spaces()
        clustering = by_angles(
            [prints[p] for p in known],
            [spaces[p] for p in known],
            measure=self.options.angle,
            threshold=self.options.threshold or None,
            seed=self.setting.seed,
        )
        return found.named(known, clustering)

    def place(
        self,
        new: Mapping[int, Tensors],
        prints: Mapping[int, Tensors],
        clusters: Mapping[int, int],
    ) -> dict[int, int]:
        """Return the clusters of least mean angle."""
        one = partial(
            place_by_angles,
            measure=self.options.angle,
            threshold=self.options.threshold or None,
        )
        return found.place(new, prints, clusters, self.spaces(), one)
