"""The rounds: one Flower ``Strategy`` that drives any method.

Flower's own loop serves one global model, samples with a global generator and keeps no numbers for
each client. This one serves each client its model, draws the cohort from the seed, folds replies in
partition order and tells an observer of every client, phase and round. Methods never see Flower;
this file never sees a formula.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from atlas_flwr.results.record import (
    MB,
    METRICS,
    Bytes,
    ClientRow,
    Measured,
    compact_ranks,
    round_record,
)
from atlas_flwr.types import Job, Update
from atlas_flwr.wire import count_bytes, pack_job
from strategies.base import Method, State
from strategies.rounds.exchange import exchange, greet
from strategies.rounds.gate import Gate
from strategies.rounds.losses import check_losses
from strategies.rounds.nodes import refreshed
from strategies.rounds.rules import Limits, Observer, draw_cohort, phase_of

HELLO_SECONDS = 120.0  # a client that is there answers at once; the first may load for a while


@dataclass
class _Tally:
    """What the current round, or the final evaluation, has produced so far."""

    rows: list[ClientRow] = field(default_factory=list)
    moved: Bytes = field(default_factory=Bytes)


class Federation(Strategy):
    """Drives a method through its rounds over any Flower grid.

    Attributes:
        method: The method's three functions.
        state: Where the run stands, at its start or as of its last commit (``since``); replaced as
            a whole after each exchange.
        moved: All bytes so far, those of a round that failed included.
    """

    def __init__(
        self,
        method: Method,
        limits: Limits,
        config: str,
        observer: Observer,
        since: tuple[State, Bytes] | None = None,
    ) -> None:
        self.method, self.limits, self.config, self.observer = method, limits, config, observer
        self.state, self.moved = since or (method.start(), Bytes())
        self.gate = Gate(method.setting, limits.norm_ratio, observer.arrived)
        self.nodes: dict[int, int] = {}
        self._tally = _Tally()
        self._jobs: list[Job] = []
        self._answered: list[Job] = []
        self._phase = "train"
        self._explained: Mapping[str, Any] = self.state.found
        self._held_back: list[tuple[ClientRow, Sequence[str], int, int]] = []
        self._sent: list[dict[str, int]] = []

    # -------------------------------------------------------------- the loop

    def start(self, grid: Grid, *_: Any, **__: Any) -> Result:
        """Run all rounds; the models are in ``state``, the numbers with the observer.

        Raises:
            RunFailed: A client was lost under ``on-failure = "raise"``, or too few replied.
        """
        patience = min(self.limits.timeout, HELLO_SECONDS)
        greeted = greet(grid, self.method.setting.clients, patience)
        self.nodes = {partition: one.node for partition, one in greeted.items()}
        self.gate.declared = {partition: one.declared for partition, one in greeted.items()}
        nothing, plain = ArrayRecord(), ConfigRecord()
        for round_ in range(self.state.round + 1, self.limits.rounds + 1):
            began = time.monotonic()
            self._tally = _Tally()
            self.state = replace(self.state, round=round_, phase=0, measured=Measured())
            while messages := self.configure_train(round_, nothing, plain, grid):
                self.aggregate_train(round_, exchange(grid, messages, self.limits.timeout))
            messages = self.configure_evaluate(round_, nothing, plain, grid)
            self.aggregate_evaluate(round_, exchange(grid, messages, self.limits.timeout))
            seconds = time.monotonic() - began
            record = round_record(
                round_, self._tally.rows, self._tally.moved, seconds, self.state.measured
            )
            self.observer.round(record)
            self.state = self.observer.commit(self.state, self.moved)
        return Result()

    def evaluate_final(self, grid: Grid) -> list[ClientRow]:
        """Score each distinct model once on its task's whole evaluation set.

        The task's lowest partition that holds a model scores it; where lost clients are skipped,
        the next one does when it is lost.

        Returns:
            A row per *client*: those who hold the same model share its scores, not its bytes.

        Raises:
            RunFailed: A client was lost under ``on-failure = "raise"``, or too few models could
                be scored.
        """
        self._tally = _Tally()
        model_of = {
            partition: (self.method.model_for(self.state, partition).key, task)
            for partition, task in enumerate(self.method.setting.tasks)
        }
        waiting: dict[tuple[str, str], list[int]] = {}
        for partition, model in model_of.items():
            waiting.setdefault(model, []).append(partition)
        models = len(waiting)
        while asked := {group.pop(0): m for m, group in waiting.items() if group}:
            self.nodes = refreshed(grid, self.nodes, HELLO_SECONDS)
            jobs = [self._evaluate_job(partition, full=True) for partition in asked]
            replies = exchange(grid, self._messages("final", jobs), self.limits.timeout)
            for _ in self._updates("final", replies):
                pass
            self.state = self.method.acknowledged(self.state, self._answered)
            if self.limits.on_failure == "raise":
                self._check_losses("final")
            good = [row for row in self._tally.rows if row.status == "ok"]
            scored = {model_of[row.partition] for row in good}
            waiting = {m: group for m, group in waiting.items() if m not in scored}
        self._check_losses("final", models)
        return self._shared(model_of)

    def _shared(self, model_of: Mapping[int, tuple[str, str]]) -> list[ClientRow]:
        """Return a row per client: its model's score, or that there is none."""
        rows = {model_of[row.partition]: row for row in self._tally.rows}
        rows |= {model_of[row.partition]: row for row in self._tally.rows if row.status == "ok"}
        return [
            rows[model]
            if rows[model].partition == partition
            else replace(rows[model], partition=partition, bytes_up=0, bytes_down=0, seconds=None)
            for partition, model in model_of.items()
        ]

    # -------------------------------------------------------------- Flower's hooks

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the next training messages of the round; none when its exchanges are done."""
        setting, limits = self.method.setting, self.limits
        self.nodes = refreshed(grid, self.nodes, HELLO_SECONDS)
        cohort = draw_cohort(limits.seed, server_round, setting.clients, limits.fraction)
        jobs = self.method.plan(self.state, cohort)
        if not jobs:
            return []
        self._phase = phase_of(jobs[0])
        return self._messages(self._phase, jobs)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Merge the replies, given one for each message and in their order, into ``state``."""
        updates = self._updates(self._phase, replies)
        try:
            merged = self.method.merge(self.state, updates)
            for _ in updates:  # a merge that stops early must not hide a lost client
                pass
            self._check_losses(self._phase)
            self.state = self.gate.remembered(self.method.acknowledged(merged, self._answered))
        finally:
            self._tell_held_back()
        return None, None

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> list[Message]:
        """Return the messages that score every client's model on its own slice."""
        self.nodes = refreshed(grid, self.nodes, HELLO_SECONDS)
        jobs = [self._evaluate_job(p) for p in range(self.method.setting.clients)]
        return self._messages("evaluate", jobs)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Take down the clients' scores."""
        self._drain("evaluate", replies)
        return None

    def summary(self) -> None:
        """Flower asks for a log line; the observer shows what runs."""

    # -------------------------------------------------------------- jobs out, updates in

    def _evaluate_job(self, partition: int, full: bool = False) -> Job:
        """Return the job that scores a partition's model on its own or the task's full rows."""
        rows: Literal["full", "own"] = "full" if full else "own"
        return self.method.job(self.state, partition, "evaluate", rows)

    def _messages(self, phase: str, jobs: Sequence[Job]) -> list[Message]:
        """Return the jobs' messages in partition order, and remember what was asked."""
        self._jobs = sorted(jobs, key=lambda job: job.partition)
        self.observer.phase(self.state.round, phase, [job.partition for job in self._jobs])
        contents = [pack_job(job, self.config) for job in self._jobs]
        self._sent = [count_bytes(content) for content in contents]
        return [
            Message(content, self.nodes[job.partition], job.action)
            for job, content in zip(self._jobs, contents, strict=True)
        ]

    def _tell_held_back(self) -> None:
        """Hand on the rows of a fingerprint phase, and the clusters that an exchange found."""
        clusters = self.state.clusters
        held, self._held_back = self._held_back, []
        rows = [replace(row, cluster=clusters.get(row.partition)) for row, *_ in held]
        if held:
            others = [row for row in self._tally.rows if row.phase != "fingerprint"]
            self._tally.rows = [*others, *rows]
        if self.state.found not in ({}, self._explained):
            self._explained = self.state.found
            self.observer.clusters(self.method.explain(self.state))
        for row, (_, notes, done, total) in zip(rows, held, strict=True):
            self.observer.client(row, notes, done, total)

    def _drain(self, phase: str, replies: Iterable[Message]) -> None:
        for _ in self._updates(phase, replies):
            pass
        self._check_losses(phase)
        self.state = self.method.acknowledged(self.state, self._answered)

    def _updates(self, phase: str, replies: Iterable[Message]) -> Iterator[Update]:
        """Yield the good updates in partition order; every reply becomes a row."""
        total = len(self._jobs)
        self._answered = []
        verdicts = self.gate.screen(self.state, self._jobs, replies)
        turns = enumerate(zip(self._jobs, self._sent, verdicts, strict=True), start=1)
        for done, (job, down, verdict) in turns:
            update, up = verdict.update, verdict.moved
            row = replace(
                self._row(phase, job, update),
                bytes_up=sum(up.values()),
                bytes_down=sum(down.values()),
                status=verdict.status,
                error=verdict.error,
            )
            self._tally.rows.append(row)
            self._tally.moved += Bytes(up, down)
            self.moved += Bytes(up, down)
            told = (row, update.report.notes if update else (), done, total)
            if phase == "fingerprint":  # its rows name the clusters that come of it
                self._held_back.append(told)
            else:
                self.observer.client(*told)
            if update is not None:
                self._answered.append(job)
                yield update

    def _row(self, phase: str, job: Job, update: Update | None) -> ClientRow:
        """Return the client's line for ``clients.parquet``, bytes and status apart."""
        setting = self.method.setting
        ranks = job.parts.ranks() or self.method.whole(self.state, job.partition).ranks()
        row = ClientRow(
            round=job.round,
            partition=job.partition,
            task=setting.tasks[job.partition],
            phase=phase,
            cluster=self.state.clusters.get(job.partition),
            ranks=compact_ranks(ranks),
        )
        if update is None:
            return row
        report = update.report
        return replace(
            row,
            num_examples=report.num_examples,
            seconds=report.seconds,
            peak_memory_mb=report.peak_memory_bytes / MB,
            precision=report.precision or None,
            **{metric: report.metrics.get(metric) for metric in METRICS},  # type: ignore[arg-type]
        )

    def _check_losses(self, phase: str, asked: int | None = None) -> None:
        """Stop at a lost client of a phase that has ended, or go on if enough replied."""
        rows = [row for row in self._tally.rows if row.phase == phase]
        again = phase == "fingerprint" and bool(self.state.prints)  # when they are drawn
        where = f"round {self.state.round}, {phase}"
        check_losses(rows, self.limits, where, asked, again)
