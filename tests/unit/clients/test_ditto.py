"""Ditto's client: the shared model as FedAvg trains it, and a personal one pulled towards it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.models.adapter_io import read_parts, write_parts
from atlas_flwr.seeding import rng_for, seed_for
from atlas_flwr.training.local import Goal, train
from atlas_flwr.types import PARTS, Job, ModelParts
from clients.base import FineTuneClient
from clients.ditto import DittoClient
from clients.full import FullClient
from clients.lora import LoraClient
from homes import Answer, Home, home, same_bits, tensors

KINDS: dict[str, type[FineTuneClient]] = {"lora": LoraClient, "full": FullClient}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(folder_of: Callable[[str], str], tmp_path: Path, kind: str) -> Home:
    return home(tmp_path, folder_of("bert"), kind)


def shared(place: Home, kind: str) -> ModelParts:
    """Return a shared model that is not the seeded start."""
    if kind == "lora":
        return place.random(7)
    start = place.site.initial(0)
    rng = np.random.default_rng(7)

    def near(named: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        noise = {n: rng.normal(0, 0.05, t.shape).astype(np.float32) for n, t in named.items()}
        return {n: t + noise[n] for n, t in named.items()}

    return replace(start, head=near(dict(start.head)), weights=near(dict(start.weights)))


def ask(place: Home, parts: ModelParts, pull: float, round_: int = 1, since: int = 0) -> Answer:
    options = {"lambda": pull}
    job = Job(0, "train.ditto", round_, parts, since=since, options=options)
    return place.fit(job, DittoClient)


def own(place: Home, round_: int = 1) -> ModelParts:
    return place.stores.private.load(round_)


def distance(left: ModelParts, right: ModelParts) -> float:
    a, b = tensors(left), tensors(right)
    return float(sum(((a[n] - b[n]).astype(float) ** 2).sum() for n in a)) ** 0.5


def test_the_shared_answer_is_that_of_plain_training(place: Home, kind: str) -> None:
    sent = shared(place, kind)
    plain = place.fit(Job(0, "train", 1, sent), KINDS[kind])
    for pull in (0.0, 10.0):
        answer = ask(place, sent, pull)
        assert same_bits(answer.parts, plain.parts)
        assert (answer.rows, answer.told["loss"]) == (plain.rows, plain.told["loss"])


def test_without_a_pull_the_own_model_is_trained_alone(place: Home, kind: str) -> None:
    """Oracle: local training from the seeded start, on the second stage's streams."""
    ask(place, shared(place, kind), 0.0)
    site = place.site
    write_parts(site.model, site.initial(0))
    train(
        site.model,
        site.train_table,
        site.train_rows,
        site.spec,
        rng_for(site.seed, "batches/1", 1, 0),
        seed_for(site.seed, "dropout/1", 1, 0),
    )
    assert same_bits(own(place), read_parts(site.model))
    # Whatever is shared.
    alone = own(place)
    ask(place, replace(site.initial(0)), 0.0)
    assert same_bits(own(place), alone)


def test_the_pull_is_towards_the_shared_model_as_received(place: Home, kind: str) -> None:
    """Oracle: the same training with the term's centre given by hand."""
    sent = shared(place, kind)
    ask(place, sent, 0.7)
    site = place.site
    write_parts(site.model, sent)
    centre = [parameter.detach().clone() for parameter in site.model.trainable()]
    write_parts(site.model, site.initial(0))
    streams = rng_for(site.seed, "batches/1", 1, 0), seed_for(site.seed, "dropout/1", 1, 0)
    goal = Goal(prox_mu=0.7, anchors=centre)
    train(site.model, site.train_table, site.train_rows, site.spec, *streams, goal)
    assert same_bits(own(place), read_parts(site.model))


def test_a_strong_pull_ends_near_the_shared_model(place: Home, kind: str) -> None:
    long = replace(place, site=replace(place.site, spec=replace(place.site.spec, epochs=20)))
    sent = shared(place, kind)
    found = {}
    for pull in (0.0, 1e4):
        ask(long, sent, pull)
        found[pull] = distance(own(long), sent)
    assert found[1e4] < 0.2 * found[0.0]


def test_the_own_model_goes_on_from_where_it_was_and_scores_as_itself(
    place: Home, kind: str
) -> None:
    sent = shared(place, kind)
    ask(place, sent, 0.1)
    first = own(place)
    ask(place, sent, 0.1, round_=2, since=1)
    second = own(place, 2)
    assert not same_bits(first, second)
    assert same_bits(own(place, 1), first)  # an answer can be lost: round 2 is asked again
    ask(place, sent, 0.1, round_=2, since=1)
    assert same_bits(own(place, 2), second)
    job = Job(0, "evaluate", 2, private=frozenset(PARTS), since=2)
    alone = Job(0, "evaluate", 2, second)
    assert place.evaluate(job, KINDS[kind]) == place.evaluate(alone, KINDS[kind])
    never = replace(job, since=0)
    start = replace(alone, parts=place.site.initial(0))
    assert place.evaluate(never, KINDS[kind]) == place.evaluate(start, KINDS[kind])
