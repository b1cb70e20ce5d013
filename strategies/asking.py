"""Clients that are asked what their rows are like: when, who, and what becomes of late-comers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from atlas_flwr.results.record import Measured
from atlas_flwr.types import FACTORS, Job, Scalar, Tensors, Update
from strategies.base import Options, State
from strategies.clustered import Clustered

# Beside a fingerprint: how many rows it is of, which under noise it doesn't say itself.
ROWS = "measured_rows"


class AskingOptions(Options):
    """Options of methods that ask clients what their rows are like."""

    every: Annotated[int, Field(ge=0, strict=True)] = 0
    """Rounds after which the cohort is asked again and all are clustered anew; 0 is never. Answers
    differ only where rows have changed, or noise was added."""


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
            return replace(self.asked_again(state), measured=Measured())
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
        return self.told(self.asked_again(replace(state, prints=prints)), rows)

    def asked_again(self, state: State) -> State:
        """Return the state after one more exchange in which fingerprints were asked for."""
        return replace(state, phase=state.phase + 1, asked=state.round, askings=state.askings + 1)


def _stays(partition: int, before: Mapping[int, int], after: Mapping[int, int]) -> bool:
    """Tell whether all whom a client was clustered with still are with it."""
    own = before.get(partition)
    return all(after.get(p) == after.get(partition) for p, c in before.items() if c == own)
