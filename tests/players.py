"""Clients that answer jobs in plain NumPy: what `clients.base` means, without models or Flower.

A player puts its model together from what it is sent, its vault, what it carries and the seed, and
moves every tensor its job trains by noise of its own. Deltas are added up densely and the largest
entries are found here, so that neither is shared with the code under test; fingerprints are made by
the client's own functions, and which weights are routers is the method's to say.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from atlas_flwr.aggregation.experts import routers_of
from atlas_flwr.fingerprint.subspace import subspace
from atlas_flwr.fingerprint.summary import summarise
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import (
    PARTS,
    Array,
    Job,
    LoraFactors,
    ModelParts,
    Part,
    Report,
    Stage,
    Tensors,
    Update,
)
from federations import ALL, ROWS, Dense, added, initial, products, size
from strategies.base import Method, Setting, State

CARRIED: tuple[Part, ...] = ("lora_A", "lora_B")


@dataclass(frozen=True)
class Model:
    """A model put together: its parts, and what was merged into its frozen weights, densely."""

    parts: ModelParts = field(default_factory=ModelParts)
    delta: Mapping[str, Array] = field(default_factory=dict)

    def products(self) -> Dense:
        """What the model adds to each frozen weight, (d_out, d_in) in float64."""
        return added(products(self.parts), self.delta)


PRINTED = 40  # rows that a fingerprint is of

# What a round may begin with before anything is trained.
BEFORE = {"train.gradient", "train.fingerprint"}


@dataclass
class Player:
    """One client.

    Attributes:
        setting: The run's facts.
        partition: Who it is.
        rows: Its example count.
        noise: Standard deviation of its movements.
        voice: Whose movements it makes; its own by default.
        moves: Parts that can move at all, whatever a stage says.
        own: How far its rows' features are from its task's, in deviations, as root mean square.
        counts: Rows of each class of its fingerprint; as many of each by default.
        said: Dense products of its last update, as the server receives them; no deltas.
    """

    setting: Setting
    partition: int
    rows: int = 0
    noise: float = 0.1
    voice: int | None = None
    moves: frozenset[Part] = frozenset(PARTS)
    own: float = 0.0
    counts: tuple[int, ...] = ()
    said: Dense = field(default_factory=dict)
    _vault: dict[int, ModelParts] = field(default_factory=dict)
    _shelf: dict[int, Model] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rows = self.rows or ROWS[self.partition]

    # -------------------------------------------------------------- what a test asks

    def answer(self, job: Job) -> Update:
        """Do the job."""
        start = self.model(job)
        if not job.action.startswith("train"):
            return Update(self.partition, Report(self.rows, {"loss": 1.0}))
        if job.action == "train.gradient":
            rank = int(job.options["gradient-rank"])
            gradient = {m: self._gradient(m, rank, f) for m, f in start.parts.adapter.items()}
            return Update(self.partition, Report(self.rows), ModelParts(adapter=gradient))
        if job.action == "train.fingerprint":
            measured = sum(self.counts) or PRINTED
            return Update(self.partition, Report(measured), fingerprint=self._fingerprint(job))
        said = {"losses": self.losses(job)} if job.choices else {}
        if job.action == "train.score":
            return Update(self.partition, Report(self.rows), fingerprint=said)
        trained, metrics = self._trained(job, start.parts)
        if job.private:
            self._keep(self._vault, job.round, trained.only(*job.private), job.since)
        returned = trained.without(*job.private).only(*job.returns)
        return Update(self.partition, Report(self.rows, metrics), returned, job.sparse, said)

    def losses(self, job: Job) -> Array:
        """How far each model is from one the client's task would like: its loss."""
        task = self.setting.tasks[self._who()]

        def loss(parts: ModelParts) -> float:
            flat = {**parts.body(), **parts.head}
            taste = {n: rng_for(0, f"{task}/{n}").standard_normal(t.shape) for n, t in flat.items()}
            return float(np.mean([np.mean((t - taste[n]) ** 2) for n, t in flat.items()]))

        return np.array([loss(parts) for parts in job.choices])

    def _fingerprint(self, job: Job) -> Tensors:
        """Rows whose class means are the task's own."""
        task = self.setting.tasks[self.partition]
        labels = np.arange(PRINTED) % self.setting.num_labels[task]
        if self.counts:
            labels = np.repeat(np.arange(len(self.counts)), self.counts)
        means = rng_for(0, f"planted/{task}").normal(size=(self.setting.num_labels[task], 12))
        rng = rng_for(0, "rows", 0, self.partition)
        features = 3 * means[labels] + rng.normal(size=(len(labels), 12))
        features = features + self.own * rng_for(0, "own", 0, self.partition).normal(size=12)
        classes = self.setting.num_labels[task]
        if job.options["kind"] == "subspace":
            sets, p = classes if job.options["class-wise"] else 1, int(job.options["dimensions"])
            told = subspace(features, labels, sets, p, seed=0)
        else:
            clip, noise = (float(job.options.get(name, 0.0)) for name in ("clip", "noise"))
            hidden = {"clip": clip or None, "noise": noise}
            told = summarise(features, labels, classes, seed=0, rng=rng, **hidden)  # type: ignore[arg-type]
        if wanted := job.options.get("importance-rank"):
            # The first module has most of the energy in task a, the last in task b.
            modules = len(self.setting.initial_for(self.partition).adapter)
            shares = np.geomspace(1, 0.05, modules)[:: 1 if task == "a" else -1]
            fading = np.sort(rng.random((modules, int(wanted))))[:, ::-1]
            told = {**told, "importance": (shares[:, None] * fading).astype(np.float16)}
        return told

    def effective(self, job: Job) -> Dense:
        """What the model the job is done with adds to each frozen weight."""
        return self.model(job).products()

    def model(self, job: Job) -> Model:
        """Put the model together: sent, carried, private, seeded."""
        got = self._advanced(job)
        parts = got.parts
        if job.private:
            source = self._vault[job.since] if job.since else self._initial(0)
            parts = parts.filled(source.only(*job.private))
        if job.seeded:
            parts = parts.filled(self._initial(job.draw).only(*job.seeded))
        return Model(parts, got.delta)

    def move(self, job: Job, name: str, tensor: Array) -> Array:
        """A tensor after training."""
        rng = rng_for(0, f"noise/{name}", job.round, self._who())
        return tensor + (self.noise * rng.standard_normal(tensor.shape)).astype(np.float32)

    # -------------------------------------------------------------- at home

    def _who(self) -> int:
        return self.partition if self.voice is None else self.voice

    def _gradient(self, module: str, rank: int, like: LoraFactors) -> LoraFactors:
        """Directions of the client's own, no more than the module has."""
        rng = rng_for(0, f"gradient/{module}", 0, self._who())
        d_out, d_in = len(like.b), like.a.shape[1]
        kept = min(rank, d_out, d_in)
        a, b = rng.standard_normal((kept, d_in)), rng.standard_normal((d_out, kept))
        return LoraFactors(a.astype(np.float32), b.astype(np.float32), 1.0)

    def _initial(self, draw: int) -> ModelParts:
        own = self.setting.initial_for(self.partition)
        if not (draw and own.adapter):
            return own
        shapes = {m: (len(f.b), f.a.shape[1]) for m, f in own.adapter.items()}
        return initial(self.setting.ranks[self.partition], draw=draw, modules=shapes)

    def _advanced(self, job: Job) -> Model:
        held, new = job.carried
        chosen = job.choices[int(np.argmin(self.losses(job)))] if job.choices else job.parts
        sent = replace(chosen, delta={})
        if not new:
            assert not job.parts.delta
            return Model(sent)
        before = self._shelf[held] if held else Model()
        after = Model(sent.filled(before.parts), added(before.delta, products(job.parts, "delta")))
        if new != held:
            self._keep(self._shelf, new, replace(after, parts=after.parts.only(*CARRIED)), held)
        return after

    @staticmethod
    def _keep(shelf: dict[int, object], version: int, kept: object, since: int) -> None:
        """As the vault does: only what it continues from stays beside the new one."""
        shelf[version] = kept
        for old in shelf.keys() - {version, since}:
            del shelf[old]

    # -------------------------------------------------------------- training

    def _trained(self, job: Job, start: ModelParts) -> tuple[ModelParts, dict[str, float]]:
        if job.action == "train.ditto":
            own = self._vault[job.since] if job.since else self._initial(0)
            self._keep(self._vault, job.round, self._moved(job, own, Stage()), job.since)
        trained = start
        for stage in job.stages:
            trained = self._moved(job, trained, stage)
        metrics = {"loss": 1.0}
        if job.action == "train.experts":  # others' experts stay as they were sent
            trained = replace(trained, weights=routers_of(trained.weights))
        if job.action == "train.sparse":
            return self._sparse(job, start, trained, metrics)
        if job.action == "train.prune":
            trained = _pruned(start, trained, float(job.options["prune-keep"]))
        self.said = products(trained)
        return trained, metrics

    def _moved(self, job: Job, parts: ModelParts, stage: Stage) -> ModelParts:
        trains = stage.trains & self.moves
        trains = trains - {"lora_A", "lora_B"} if job.action == "train.core" else trains
        body = {
            name: self.move(job, name, tensor) if _part(name) in trains else tensor
            for name, tensor in parts.body().items()
        }
        head = {
            name: self.move(job, name, tensor) if "head" in trains else tensor
            for name, tensor in parts.head.items()
        }
        return replace(parts.with_body(body), head=head)

    def _sparse(
        self, job: Job, start: ModelParts, trained: ModelParts, metrics: dict[str, float]
    ) -> tuple[ModelParts, dict[str, float]]:
        before = start.body()
        moved = {name: tensor - before[name] for name, tensor in trained.body().items()}
        kept = _largest(moved, float(job.options["up-density"]))
        if size(moved):
            metrics["compression_error"] = size(added(moved, kept, -1.0)) / size(moved)
        self.said = products(start.with_body({name: before[name] + kept[name] for name in kept}))
        return trained.with_body(kept), metrics


def _part(name: str) -> str:
    ending = name.rpartition(".")[2]
    return ending if ending in PARTS else "weights"


def _largest(tensors: Tensors, density: float) -> dict[str, Array]:
    """The share of all entries that is largest; with equal ones at the edge, all of them."""
    every = np.sort(np.abs(np.concatenate([tensor.ravel() for tensor in tensors.values()])))
    least = every[-math.ceil(density * every.size - 1e-9)]
    none = np.float32(0)
    return {n: np.where(np.abs(tensor) >= least, tensor, none) for n, tensor in tensors.items()}


def _pruned(start: ModelParts, trained: ModelParts, keep: float) -> ModelParts:
    def cut(f: LoraFactors) -> int:
        return max(1, math.ceil(keep * f.rank))

    def tails(parts: ModelParts) -> float:
        pairs = ((f.a[cut(f) :], f.b[:, cut(f) :]) for f in parts.adapter.values())
        return sum(float(np.linalg.norm(a) * np.linalg.norm(b)) for a, b in pairs)

    if not tails(trained) < tails(start):
        return trained
    first = {m: replace(f, a=f.a[: cut(f)], b=f.b[:, : cut(f)]) for m, f in trained.adapter.items()}
    return replace(trained, adapter=first)


# ------------------------------------------------------------------ rounds


def crew(method: Method, **how: object) -> list[Player]:
    """A player for each partition."""
    return [Player(method.setting, p, **how) for p in range(method.setting.clients)]  # type: ignore[arg-type]


def rounds(
    method: Method,
    cohorts: Sequence[Collection[int]],
    players: Sequence[Player],
    lose: Collection[tuple[int, str, int]] = (),
) -> Iterator[State]:
    """Drive a method as the federation does; yield the state after each round.

    Args:
        method: The method.
        cohorts: Who trains, round by round; everybody is scored in each.
        players: The clients by partition.
        lose: ``(round, phase, partition)`` whose answer is lost on its way back.
    """
    state = method.start()
    for round_, cohort in enumerate(cohorts, start=1):
        state = replace(state, round=round_, phase=0)
        while jobs := method.plan(state, sorted(cohort)):
            answers = {job.partition: players[job.partition].answer(job) for job in jobs}
            heard = [job for job in jobs if (round_, "train", job.partition) not in lose]
            state = method.merge(state, (answers[job.partition] for job in heard))
            state = method.acknowledged(state, heard)
        jobs = [method.job(state, p, "evaluate") for p in range(method.setting.clients)]
        for job in jobs:
            players[job.partition].answer(job)
        heard = [job for job in jobs if (round_, "evaluate", job.partition) not in lose]
        state = method.acknowledged(state, heard)
        yield state


def play(
    method: Method,
    cohorts: Sequence[Collection[int]],
    players: Sequence[Player] | None = None,
    lose: Collection[tuple[int, str, int]] = (),
) -> State:
    """Return the state after all rounds."""
    *_, last = rounds(method, cohorts, players if players is not None else crew(method), lose)
    return last


def opened(method: Method, players: Sequence[Player]) -> State:
    """Return the state of round 1 when training begins: what precedes it is done."""
    state = replace(method.start(), round=1)
    while (jobs := method.plan(state, ALL) or []) and jobs[0].action in BEFORE:
        state = method.merge(state, (players[job.partition].answer(job) for job in jobs))
        state = method.acknowledged(state, jobs)
    return state


def first_round(
    method: Method, players: Sequence[Player] | None = None
) -> tuple[State, list[Update]]:
    """Return the state of round 1 when training begins, and everybody's answers."""
    players = players if players is not None else crew(method)
    state = opened(method, players)
    jobs = method.plan(state, ALL) or []
    return state, [players[job.partition].answer(job) for job in jobs]
