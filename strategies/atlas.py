"""ATLAS: clusters from fingerprints, ranks under budgets, and a graph step between models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from atlas_flwr.errors import AggregationError, ConfigError
from atlas_flwr.fingerprint.shrinkage import shrinkages
from atlas_flwr.types import Job, ModelParts, Scalar, Tensors, Update
from strategies.allocated import Allocated, PrintedRankOptions
from strategies.asking import ROWS
from strategies.base import Method, State
from strategies.clustered import Eta
from strategies.fingerprinted import OF_GRADIENTS, FingerprintClustered
from strategies.walking import GraphOptions, Walking

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


class StepOptions(GraphOptions):
    """Options of the step's length."""

    eta: Eta | Literal["shrinkage", "auto"] = "shrinkage"
    """η: 0 leaves every client alone, 1 goes as far as the graph allows, which is the cluster's
    weighted mean where it is complete. ``shrinkage``: each cluster's is the share of what its
    clients' fingerprints differ by that is noise. ``auto``: each cluster takes, round by round, the
    step whose models lose least on rows that its clients hold back from training."""
    head_eta: Eta | Literal["same"] = "same"
    """η of the heads: the adapters', or a number; 0 lets each client keep the head that fits its
    own label mix."""
    hold_back: Annotated[float, Field(ge=0, lt=1, strict=True)] | Literal["auto"] = "auto"
    """Share of a client's training rows that it neither trains on nor measures. ``auto``: 0.2 where
    η is chosen, which needs some, else 0; the same share at a number is the fair comparison."""


class Stepping(Walking):
    """Personal adapters that take one step along the graph of their cluster, on products.

    With ``eta = "shrinkage"`` clusters come with their steps (``fingerprint.shrinkage``).

    With ``eta = "auto"`` a round has one more exchange: every client of the cohort is sent the
    models it would have after each step of ``GRID`` and answers with their losses on rows it does
    not train on. Clients whose cluster has nobody in the cohort keep the step they took last.
    """

    options: StepOptions

    def eta_of(self, state: State, partition: int) -> float:
        """Return the option, or what the client's cluster has been given or has chosen."""
        eta = self.options.eta
        return state.etas.get(partition, 0.0) if isinstance(eta, str) else eta

    def head_eta_of(self, state: State, partition: int) -> float:
        """Return the heads' own option, where there is one."""
        own = self.options.head_eta
        return super().head_eta_of(state, partition) if own == "same" else own

    def check(self) -> None:
        """Refuse a choice of η on no rows."""
        super().check()
        if self._auto and self.options.hold_back == 0:
            raise ConfigError(
                "strategy.options.hold-back: 0, but eta = 'auto' is chosen on rows that are held "
                "back; set a share above 0, or eta to a number"
            )

    def told(self, state: State, rows: Mapping[int, int]) -> State:
        """Return the state with the steps that fingerprints ask for, in its record too."""
        state = super().told(state, rows)
        if self.options.eta != "shrinkage":
            return state
        known, spaces = sorted(state.prints), self.spaces()
        found = shrinkages(
            [state.prints[p] for p in known],
            [state.clusters[p] for p in known],
            [spaces[p] for p in known],
            [float(state.prints[p][ROWS][0]) for p in known],
        )
        etas = {p: found[state.clusters[p]] for p in known}
        by_cluster = {str(cluster): eta for cluster, eta in found.items()}
        return replace(state, etas=etas, found={**state.found, "eta": by_cluster})

    @property
    def _held(self) -> Mapping[str, Scalar]:
        """Return what a client is told of the rows it holds back; nothing where it holds none."""
        share = self.options.hold_back
        if share == "auto":
            share = 0.2 if self._auto else 0.0
        return {"hold-back": share} if share else {}

    def job_options(self, state: State) -> Mapping[str, Scalar]:
        """Hold rows back from training."""
        return {**super().job_options(state), **self._held}

    def fingerprint_options(self) -> dict[str, Scalar]:
        """Hold the same rows back from what is measured."""
        return {**super().fingerprint_options(), **self._held}

    def plan(self, state: State, cohort: Sequence[int]) -> list[Job] | None:
        """Train; then, where η is chosen, let those who trained score each step."""
        if self._auto and self.exchange(state) == 1:
            return self._score_jobs(state, self._scorers(state)) or None
        return super().plan(state, cohort)

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the trained models, and the step unless there is somebody to choose it first."""
        trained = Method.step(self, state, bodies, heads)
        if not bodies or (self._auto and self._scorers(state)):
            return trained
        return self.along_the_graph(trained)

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Choose η from the losses that were told, and take the step."""
        if not (self._auto and self.exchange(state) == 1):
            return super().merge(state, updates)
        losses = self._losses(state, updates)
        chosen = {c: GRID[int(np.argmin(each))] for c, each in losses.items()}
        etas = {p: chosen[c] for p, c in state.clusters.items() if c in chosen}
        stepped = self.along_the_graph(
            replace(state, phase=state.phase + 1, etas={**state.etas, **etas})
        )
        told = {
            str(c): {f"{eta:g}": loss for eta, loss in zip(GRID, each, strict=True)}
            for c, each in losses.items()
        }
        by_cluster = {str(c): eta for c, eta in sorted(chosen.items())}
        return replace(stepped, measured=replace(stepped.measured, eta=by_cluster, eta_loss=told))

    # -------------------------------------------------------------- choosing η

    @property
    def _auto(self) -> bool:
        return self.options.eta == "auto"

    def _scorers(self, state: State) -> list[int]:
        """Return who has trained in this round and holds a row back: of two rows, as far as known.

        Where the server did not deal the rows it knows those that train: who trains on one is left
        out.
        """
        dealt = self.setting.rows
        rows = {p: dealt[p].train if dealt else state.sizes[p] for p in state.sizes}
        return [p for p in sorted(rows) if rows[p] > 1 and state.trained[p] == state.round]

    def _score_jobs(self, state: State, trained: Sequence[int]) -> list[Job]:
        """Return the jobs that score the models after each step of the grid."""
        after = [self._stepped(state, eta) for eta in GRID] if trained else []
        return [
            Job(
                partition=partition,
                action="train.score",
                round=state.round,
                choices=tuple(self.model_for(each, partition).parts for each in after),
                rows="held",
                options=self.job_options(state),
                pooled=self.pooled_rows(state, partition),
                returns=frozenset(),
            )
            for partition in trained
        ]

    def _stepped(self, state: State, eta: float) -> State:
        """Return the state if every cluster took this step."""
        return self.taken(replace(state, etas=dict.fromkeys(state.clusters, eta)))

    def _losses(self, state: State, updates: Iterator[Update]) -> dict[int, list[float]]:
        """Return the mean loss after each step over the rows that a cluster's clients told of."""
        sums: dict[int, list[tuple[float, list[float]]]] = {}
        for update in updates:
            told = np.asarray(update.fingerprint.get("losses", ()), np.float64)
            if told.shape != (len(GRID),) or not np.isfinite(told).all():
                raise AggregationError(f"partition {update.partition}: told no losses of each step")
            rows = update.report.num_examples
            if rows:
                cluster = sums.setdefault(state.clusters[update.partition], [])
                cluster.append((float(rows), [float(loss) for loss in told]))
        return {
            cluster: list(np.average([t for _, t in each], axis=0, weights=[n for n, _ in each]))
            for cluster, each in sorted(sums.items())
        }


class AtlasOptions(StepOptions, PrintedRankOptions):
    """Options of ATLAS."""


class Atlas(Stepping, FingerprintClustered):
    """Clusters from fingerprints, ranks by budget, and a graph step between personal models."""

    options_type = AtlasOptions
    options: AtlasOptions
    summary = "clusters from fingerprints, ranks by budget, one graph step on products"

    def check(self) -> None:
        """Refuse a step measured by fingerprints that don't tell what one row's noise is."""
        super().check()
        kind = self.options.fingerprint
        if self.options.eta == "shrinkage" and kind in OF_GRADIENTS:
            raise ConfigError(
                f"strategy.options.eta: 'shrinkage' needs features of rows, and '{kind}' is one "
                "gradient of all; set eta to a number, or fingerprint = 'class_means'"
            )

    def averages(self) -> bool:
        """Tell whether a step is taken."""
        return self.options.eta != 0


class UniformOptions(AtlasOptions):
    """Options of ATLAS with equal ranks."""

    ranks: Literal["uniform"] = "uniform"
    """Equal ranks in each client's budget."""


class AtlasUniformRank(Atlas):
    """ATLAS whose clients give every module the same rank, at the same bytes."""

    options_type = UniformOptions
    options: UniformOptions
    summary = "atlas with equal ranks at the same bytes (an ablation)"


class AtlasNoLaplacian(Allocated, FingerprintClustered):
    """ATLAS without its graph step: with nothing averaged before it, this is local training."""

    options_type = PrintedRankOptions
    options: PrintedRankOptions
    summary = "atlas at η = 0: local training (an ablation)"

    def check(self) -> None:
        """Refuse weights of a mean that is never taken."""
        super().check()
        if self.options.weights != "rows":
            raise ConfigError(
                f"strategy.options.weights: '{self.options.weights}' changes nothing where no step "
                "is taken; remove it, or use strategy 'atlas'"
            )

    def averages(self) -> bool:
        """Average nothing."""
        return False

    def eta_of(self, state: State, partition: int) -> float:
        """Take no step."""
        return 0.0


class AtlasClusterMean(Allocated, FingerprintClustered):
    """ATLAS whose step is the whole way: every client gets its cluster's mean product."""

    options_type = PrintedRankOptions
    options: PrintedRankOptions
    summary = "atlas at η = 1: the mean product of each found cluster"

    def eta_of(self, state: State, partition: int) -> float:
        """Go to the mean."""
        return 1.0
