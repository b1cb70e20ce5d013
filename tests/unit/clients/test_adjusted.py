"""Clients that adjust logits to their label mix: on their own rows, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.training.evaluate import evaluate, logits_of
from atlas_flwr.training.prior import fitted_offset, log_prior
from atlas_flwr.types import Job
from homes import Home, home, same_bits


@pytest.fixture
def places(folder_of: Callable[[str], str], tmp_path: Path) -> list[Home]:
    """One client at strength 0, 1, both with one row of class 0 in nine."""
    found = []
    for strength in (0.0, 1.0):
        place = home(tmp_path, folder_of("gpt2"), logit_adjustment=strength)
        labels, rows = place.site.train_table.labels, place.site.train_rows
        one, other = (np.array([r for r in rows if labels[r] == c]) for c in (0, 1))
        skewed = np.sort(np.concatenate([one[:2], other[:16]]))
        found.append(Home(replace(place.site, train_rows=skewed), place.stores))
    return found


def test_own_rows_are_scored_with_the_mix_and_the_whole_set_without(places: list[Home]) -> None:
    plain, adjusted = places
    model = plain.random(1)
    for rows, numbers in (("own", plain.site.own_rows), ("full", plain.site.full_rows)):
        job = Job(0, "evaluate", 1, model, rows=rows)  # type: ignore[arg-type]
        scores = plain.evaluate(job), adjusted.evaluate(job)
        if rows == "full":
            assert scores[0] == scores[1]
            continue
        site = plain.site
        prior = log_prior(site.train_table.labels[site.train_rows], 2, 1.0)
        want = evaluate(site.model, site.score_table, numbers, 16, "fp32", "cpu", prior=prior)
        assert scores[1] == pytest.approx(want.loss, rel=1e-6)
        assert scores[0] != pytest.approx(want.loss, rel=1e-3)


def test_what_is_trained_differs(places: list[Home]) -> None:
    job = Job(0, "train", 1, places[0].random(1))
    one, other = (place.fit(job).parts for place in places)
    assert not same_bits(one, other)


def test_who_has_its_cluster_s_mix_adjusts_nothing(places: list[Home]) -> None:
    """To the bit, in training and in scoring; under another mix it does adjust."""
    plain, adjusted = places
    parts = plain.random(1)
    labels = plain.site.train_table.labels[plain.site.train_rows]
    own = tuple(int(n) for n in np.bincount(labels, minlength=2))
    for pooled, same in ((own, True), ((9, 9), False)):
        job = Job(0, "train", 1, parts, pooled=pooled)
        assert same_bits(plain.fit(job).parts, adjusted.fit(job).parts) is same
        job = replace(job, action="evaluate")
        assert (plain.evaluate(job) == adjusted.evaluate(job)) is same


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_fitted_offset_is_for_own_slices_alone(places: list[Home], strength: float) -> None:
    """It is fitted to the training rows under the model that is scored; nothing else changes."""
    plain = places[int(strength)]
    site = replace(plain.site, spec=replace(plain.site.spec, own_offset="fitted"))
    fitted = Home(site, plain.stores)
    model = plain.random(1)
    assert same_bits(
        plain.fit(Job(0, "train", 1, model)).parts, fitted.fit(Job(0, "train", 1, model)).parts
    )
    whole = Job(0, "evaluate", 1, model, rows="full")
    assert plain.evaluate(whole) == fitted.evaluate(whole)
    own = Job(0, "evaluate", 1, model)
    before, after = plain.evaluate(own), fitted.evaluate(own)
    labels, rows = site.train_table.labels[site.train_rows], site.train_rows
    logits = logits_of(site.model, site.train_table, rows, 16, "fp32", "cpu")
    offset = fitted_offset(logits, labels, log_prior(labels, 2, strength))
    want = evaluate(site.model, site.score_table, site.own_rows, 16, "fp32", "cpu", prior=offset)
    assert after == pytest.approx(want.loss, rel=1e-6)
    assert before != pytest.approx(after, rel=1e-3)
