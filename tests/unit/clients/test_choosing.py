"""Clients that compare models on their own rows, and rows that no training sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.apps.visit import ACTIONS
from atlas_flwr.flat import from_arrays
from atlas_flwr.models.adapter_io import write_parts
from atlas_flwr.training.evaluate import evaluate
from atlas_flwr.types import Array, Job, ModelParts, Stage
from clients.choosing import ChoosingClient, ScoringClient
from clients.lora import LoraClient
from homes import Home, home, same_bits

HELD = {"hold-back": 0.25}


@pytest.fixture
def place(folder_of: Callable[[str], str], tmp_path: Path) -> Home:
    return home(tmp_path, folder_of("gpt2"))


def loss_of(place: Home, parts: ModelParts, rows: Array) -> float:
    """Oracle: the model written and scored by hand."""
    site = place.site
    write_parts(site.model, parts)
    how = {"batch_size": 16, "precision": "fp32", "device": "cpu"}
    return evaluate(site.model, site.train_table, rows, **how).loss  # type: ignore[arg-type]


def client(place: Home, kind: type[LoraClient], job: Job) -> LoraClient:
    return kind(place.site, job, place.stores)


def test_their_actions_are_known() -> None:
    assert (ACTIONS["train.score"], ACTIONS["train.choose"]) == (ScoringClient, ChoosingClient)


# ------------------------------------------------------------------ scoring


@pytest.mark.parametrize("rows", ["own", "held"])
def test_scores_are_those_of_each_model_on_the_rows_asked_for(place: Home, rows: str) -> None:
    models = tuple(place.random(seed, 0.5) for seed in range(3))
    job = Job(0, "train.score", 1, choices=models, rows=rows, options=HELD)  # type: ignore[arg-type]
    scoring = client(place, ScoringClient, job)
    arrays, used, told = scoring.fit([], dict(job.options))
    mine = scoring.rows_held if rows == "held" else scoring.rows_trained
    assert (arrays, used, told) == ([], len(mine), {})
    assert used == (10 if rows == "held" else 30)
    losses = scoring.fingerprint["losses"]
    assert (losses.dtype, losses.shape) == (np.float64, (3,))
    np.testing.assert_allclose(losses, [loss_of(place, m, mine) for m in models], rtol=1e-6)
    assert scoring.fingerprint["rows"] == [used]
    assert len(set(losses)) == 3


def test_private_and_seeded_parts_are_the_clients_own(place: Home) -> None:
    start, other = place.site.initial(0), place.random(1, 0.5)
    job = Job(
        0, "train.score", 1, choices=(other.without("head"),), private=frozenset({"head"})
    )  # fmt: skip
    scoring = client(place, ScoringClient, job)
    scoring.fit([], {})
    whole = replace(other, head=start.head)
    expected = loss_of(place, whole, place.site.train_rows)
    assert scoring.fingerprint["losses"][0] == pytest.approx(expected, rel=1e-6)


# ------------------------------------------------------------------ choosing


@pytest.mark.parametrize("options", [{}, HELD], ids=["all", "held"])
def test_it_trains_the_best_as_any_client_does(place: Home, options: dict[str, float]) -> None:
    models = tuple(place.random(seed, 0.5) for seed in range(4))
    job = Job(0, "train.choose", 2, choices=models, options=options)
    choosing = client(place, ChoosingClient, job)
    arrays, used, told = choosing.fit([], dict(options))
    rows = choosing.rows_trained
    best = int(np.argmin([loss_of(place, model, rows) for model in models]))
    assert int(np.argmin(choosing.fingerprint["losses"])) == best
    plain = place.fit(Job(0, "train", 2, models[best], options=options))
    assert same_bits(from_arrays(arrays, choosing.layout), plain.parts)
    assert (used, told) == (plain.rows, plain.told)


def test_the_first_of_equals_is_chosen(place: Home) -> None:
    worse, model = (place.random(seed, 0.5) for seed in (0, 1))
    rows = place.site.train_rows
    if loss_of(place, worse, rows) < loss_of(place, model, rows):
        worse, model = model, worse
    scaled = {m: replace(f, b=f.b / 2, scale=2 * f.scale) for m, f in model.adapter.items()}
    twin = replace(model, adapter=scaled)  # the same function to the bit, told in other units
    for first, second in ((model, twin), (twin, model)):
        choosing = client(place, ChoosingClient, Job(0, "t", 1, choices=(worse, first, second)))
        arrays, *_ = choosing.fit([], {})
        assert choosing.fingerprint["losses"][1] == choosing.fingerprint["losses"][2]
        module = next(iter(first.adapter))
        scale = from_arrays(arrays, choosing.layout).adapter[module].scale
        assert scale == first.adapter[module].scale


# ------------------------------------------------------------------ rows held back


@pytest.mark.parametrize(
    ("share", "held"), [(0.0, 0), (0.01, 1), (0.25, 10), (0.26, 11), (1.0, 39), (7.0, 39)]
)
def test_rows_are_parted_by_share_the_same_in_every_round(
    place: Home, share: float, held: int
) -> None:
    parted = []
    for round_ in (1, 5):
        job = Job(0, "train", round_, options={"hold-back": share})
        one = client(place, LoraClient, job)
        assert sorted([*one.rows_trained, *one.rows_held]) == list(place.site.train_rows)
        assert len(one.rows_held) == held
        assert list(one.rows_trained) == sorted(one.rows_trained)  # in their order
        parted.append(one.rows_held)
    np.testing.assert_array_equal(*parted)
    other = client(place, LoraClient, Job(1, "train", 1, options={"hold-back": share}))
    assert held in (0, 39) or set(other.rows_held) != set(parted[0])


def test_training_never_sees_rows_held_back(place: Home) -> None:
    """Training is, to the bit, that of a client that has no other rows."""
    start = place.random(0)
    job = Job(0, "train", 1, start, options=HELD, stages=(Stage(epochs=2),))
    kept = client(place, LoraClient, job).rows_trained
    fewer = Home(replace(place.site, train_rows=kept), place.stores)
    held, alone = place.fit(job), fewer.fit(replace(job, options={}))
    assert held.rows == alone.rows == 30
    assert same_bits(held.parts, alone.parts)
    assert not same_bits(held.parts, place.fit(replace(job, options={})).parts)


def test_a_model_can_be_scored_on_rows_held_back(place: Home) -> None:
    model = place.random(3, 0.5)
    job = Job(0, "evaluate", 1, model, rows="held", options=HELD)
    rows = client(place, LoraClient, job).rows_held
    assert place.evaluate(job) == pytest.approx(loss_of(place, model, rows), rel=1e-6)
