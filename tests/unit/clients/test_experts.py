"""FedLEASE's client: its own expert and routers are trained in the mixture, others never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.aggregation.experts import pack, routers_of
from atlas_flwr.errors import WireError
from atlas_flwr.types import Job, ModelParts, Stage
from clients.experts import ExpertsClient
from homes import Home, home, same_bits


@pytest.fixture
def place(folder_of: Callable[[str], str], tmp_path: Path) -> Home:
    return home(tmp_path, folder_of("distilbert"))


def sent(place: Home, seeds: tuple[int, ...] = (1, 2, 3), own: int = 1) -> ModelParts:
    """Return the client's own expert, its head, and the other experts with the routers."""
    drawn = [place.random(seed) for seed in seeds]
    rng = np.random.default_rng(0)
    shape = 2 * len(seeds) - 1
    shapes = place.site.model.backbone.shapes
    routers = {f"{m}.router": rng.normal(size=(shape, d)) / 4 for m, (_, d) in shapes.items()}
    return replace(drawn[own], weights=pack(routers, [d.adapter for d in drawn], own))


def train(parts: ModelParts, **how: object) -> Job:
    return replace(Job(0, "train.experts", 2, parts), **how)  # type: ignore[arg-type]


def test_it_returns_its_own_expert_the_routers_and_the_head_all_moved(place: Home) -> None:
    parts = sent(place)
    answer = place.fit(train(parts), ExpertsClient)
    routers = routers_of(parts.weights)
    assert answer.parts.weights.keys() == routers.keys()
    assert answer.parts.adapter.keys() == parts.adapter.keys()
    for name, router in routers.items():
        assert answer.parts.weights[name].shape == router.shape
        assert (answer.parts.weights[name] != router).any()
    for module, factors in answer.parts.adapter.items():
        assert factors.scale == parts.adapter[module].scale
        assert (factors.a != parts.adapter[module].a).any()
        assert (factors.b != parts.adapter[module].b).any()
    assert answer.rows == 40


def test_training_lowers_the_mixtures_own_loss_and_repeats_to_the_bit(place: Home) -> None:
    parts = sent(place)
    before = place.evaluate(Job(0, "evaluate.experts", 1, parts, rows="full"), ExpertsClient)
    job = train(parts, stages=(Stage(epochs=4),))
    answer, again = (place.fit(job, ExpertsClient).parts for _ in range(2))
    assert same_bits(answer, again)
    trained = replace(answer, weights={**parts.weights, **answer.weights})
    after = place.evaluate(Job(0, "evaluate.experts", 2, trained, rows="full"), ExpertsClient)
    assert after < before - 0.01


def test_the_mixture_is_what_is_scored(place: Home) -> None:
    parts = sent(place)
    alone = place.loss_of(replace(parts, weights={}))
    assert abs(place.evaluate(Job(0, "evaluate.experts", 1, parts), ExpertsClient) - alone) > 1e-5
    same = sent(place, (2, 2, 2))
    plain = place.loss_of(replace(same, weights={}))
    mixed = place.evaluate(Job(0, "evaluate.experts", 1, same), ExpertsClient)
    assert mixed == pytest.approx(plain, abs=1e-5)


def test_no_other_job_ever_sees_the_mixture(place: Home) -> None:
    plain = Job(0, "train", 1, place.random(5))
    before = place.fit(plain).parts
    place.fit(train(sent(place)), ExpertsClient)
    assert same_bits(place.fit(plain).parts, before)
    layers = place.site.model.backbone.layers
    assert all("forward" not in vars(layer) for layer in layers.values())


def test_a_frozen_part_stays_and_a_local_head_is_kept_at_home(place: Home) -> None:
    parts = sent(place)
    still = place.fit(train(parts, stages=(Stage(frozenset({"head"})),)), ExpertsClient).parts
    assert same_bits(
        replace(still, weights={}).without("head"), replace(parts, weights={}, head={})
    )
    for name, router in routers_of(parts.weights).items():
        np.testing.assert_array_equal(still.weights[name], router)
    local = train(replace(parts, head={}), private=frozenset({"head"}))
    answer = place.fit(local, ExpertsClient)
    assert not answer.parts.head
    kept = place.stores.private.load(2)
    assert kept.head
    assert not kept.weights


def test_what_is_no_mixture_is_refused_and_leaves_nothing_behind(place: Home) -> None:
    parts = sent(place)
    lost = next(name for name in parts.weights if name.endswith("lora_A"))
    bad = replace(parts, weights={n: t for n, t in parts.weights.items() if n != lost})
    with pytest.raises(WireError, match="not those of one mixture"):
        place.fit(train(bad), ExpertsClient)
    layers = place.site.model.backbone.layers
    assert all("forward" not in vars(layer) for layer in layers.values())
