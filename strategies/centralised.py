"""Centralised training: the pooled rows of each task in one place; the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from atlas_flwr.types import Job, Part
from strategies.base import Method, Options, State


class CentralisedOptions(Options):
    """Options of centralised training."""

    steps: Literal["total", "client"] = "total"
    """Optimizer steps of a round: ``total``, as many as the task's clients take together;
    ``client``, as many as its largest client takes alone (other rows, not more work)."""


class Centralised(Method):
    """One model for each task, trained on the rows of all its clients.

    No privacy and no federation: what a method could reach if rows could be pooled, at equal
    steps. Only simulation can run it: the task's lowest partition reads the rows of the others.
    ``steps = "client"`` is a control and no ceiling: averaging clients that took as many steps
    each can beat it.
    """

    options_type = CentralisedOptions
    options: CentralisedOptions
    summary = "the pooled rows of each task, equal steps (the ceiling)"

    def body_key(self, partition: int) -> str:
        """Name the task's group."""
        return f"task-{self.setting.tasks[partition]}"

    def head_key(self, partition: int) -> str:
        """Name the task's group."""
        return f"task-{self.setting.tasks[partition]}"

    def private(self) -> frozenset[Part]:
        """Keep nothing private: rows are pooled."""
        return frozenset()

    def plan(self, state: State, cohort: Sequence[int]) -> list[Job] | None:
        """Ask each task's lowest partition to train on the pool; the cohort plays no part."""
        if state.phase:
            return None
        jobs = []
        for task in dict.fromkeys(self.setting.tasks):
            pool = tuple(p for p, t in enumerate(self.setting.tasks) if t == task)
            job = self.train_job(state, pool[0])
            each = [self.setting.steps[p] for p in pool]
            steps = sum(each) if self.options.steps == "total" else max(each)
            jobs.append(replace(job, pool=pool, options={"max-steps": steps}))
        return jobs
