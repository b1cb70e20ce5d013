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
    prints = [of_counts(150, 150), of_counts(240, 60), of_counts(30, 270)]
    assert mixes_apart(prints) == pytest.approx(0.7)
    assert mixes_apart(prints[:2]) == pytest.approx(0.3)
    three = [of_counts(100, 100, 0), of_counts(0, 100, 100)]
    assert mixes_apart(three) == pytest.approx(0.5)
    assert class_rows(three) == (100, 200, 100)


def test_what_few_rows_do_by_chance_is_no_difference() -> None:
    rng = np.random.default_rng(0)
    for rows in (10, 60, 300):
        for _ in range(40):
            ones = rng.binomial(rows, 0.5, size=4)
            assert mixes_apart([of_counts(int(rows - n), int(n)) for n in ones]) == 0.0
    assert mixes_apart([of_counts(4, 6), of_counts(6, 4)]) == 0.0
    assert mixes_apart([of_counts(0, 4), of_counts(4, 0)]) == 0.0
    assert mixes_apart([of_counts(0, 12), of_counts(12, 0)]) == 1.0


def test_one_client_is_apart_from_nobody_and_none_are_refused() -> None:
    assert mixes_apart([of_counts(20, 280)]) == 0.0
    with pytest.raises(AggregationError, match="no fingerprints"):
        mixes_apart([])
