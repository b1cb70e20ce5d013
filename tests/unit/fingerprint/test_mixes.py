"""How far apart label mixes are: the largest distance that the draw of rows can't explain."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.prints import class_rows, mixes_apart
from atlas_flwr.fingerprint.summary import summarise
from atlas_flwr.types import Tensors


def of_counts(*counts: int) -> Tensors:
    labels = np.repeat(np.arange(len(counts)), counts)
    rng = np.random.default_rng(sum(counts))
    features = rng.normal(size=(len(labels), 8))
    return summarise(features, labels, len(counts), seed=0, rng=rng)


def test_it_is_the_total_variation_distance_of_the_furthest_pair() -> None:
    """But for what the draw of rows gives it."""
    prints = [of_counts(1500, 1500), of_counts(2400, 600), of_counts(300, 2700)]
    assert mixes_apart(prints) == pytest.approx(0.7, abs=0.015)
    assert mixes_apart(prints[:2]) == pytest.approx(0.3, abs=0.015)
    three = [of_counts(1000, 1000, 0), of_counts(0, 1000, 1000)]
    assert mixes_apart(three) == pytest.approx(0.5, abs=0.02)
    assert class_rows(three) == (1000, 2000, 1000)


@pytest.mark.parametrize("classes", [2, 20, 77])
@pytest.mark.parametrize("rows", [10, 60, 300])
def test_what_rows_do_by_chance_is_no_difference(rows: int, classes: int) -> None:
    rng = np.random.default_rng(0)
    mix = rng.dirichlet(np.full(classes, 5.0))
    for _ in range(40):
        drawn = rng.multinomial(rows, mix, size=4)
        assert mixes_apart([of_counts(*counts) for counts in drawn.tolist()]) == 0.0


def test_many_clients_are_no_reason_for_two_to_differ() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        ones = rng.binomial(40, 0.5, size=100)
        assert mixes_apart([of_counts(int(40 - n), int(n)) for n in ones]) == 0.0


def test_what_is_far_is_seen_with_few_rows_and_many_classes() -> None:
    assert mixes_apart([of_counts(0, 12), of_counts(12, 0)]) > 0.7
    one, other = np.zeros((2, 20), int)
    one[:10], other[10:] = 30, 30
    assert mixes_apart([of_counts(*one), of_counts(*other)]) > 0.8


def test_one_client_is_apart_from_nobody_and_none_are_refused() -> None:
    assert mixes_apart([of_counts(20, 280)]) == 0.0
    with pytest.raises(AggregationError, match="no fingerprints"):
        mixes_apart([])
