"""The step that fingerprints ask for is empirical Bayes': noise over noise and difference."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.shrinkage import shrinkages
from planted import prints_of, skewed, world

SIX = [0] * 6


def etas(apart: float, rows: int, seeds: int = 30) -> np.ndarray:
    """The step of clusters of six clients that are as far apart, each drawn anew."""
    found = []
    for seed in range(seeds):
        own = world(seed, 6, apart=apart, between=0.0)
        clients = [(k, (rows // 2, rows // 2)) for k in range(6)]
        found.append(shrinkages(prints_of(own, clients, seed), SIX)[0])
    return np.array(found)


@pytest.mark.parametrize("rows", [60, 300])
@pytest.mark.parametrize("times", [0.25, 1.0, 4.0])
def test_it_is_the_share_of_noise(rows: int, times: float) -> None:
    """Clients whose own variance is so many times the noise of their rows."""
    found = etas(np.sqrt(2 * times / rows), rows)
    assert np.median(found) == pytest.approx(1 / (1 + times), abs=0.05)


def test_clients_that_differ_in_nothing_go_to_the_mean_and_far_ones_stay() -> None:
    assert np.median(etas(0.0, 300)) > 0.95
    assert etas(0.0, 300).min() > 0.5
    assert etas(1.0, 300).max() < 0.02


def test_label_mixes_are_no_difference() -> None:
    plain = world(1, 1, between=0.5)
    found = [
        shrinkages(prints_of(plain, skewed([0], 6, 300, 0.5, seed), seed), SIX)[0]
        for seed in range(30)
    ]
    assert np.median(found) > 0.9


def test_its_step_has_the_least_risk() -> None:
    """What the step is for: models as good as these means are nearest to what clients want."""
    rows, times = 100, 1.0
    risk = dict.fromkeys((0.0, 0.25, "found", 0.75, 1.0), 0.0)
    for seed in range(30):
        own = world(seed, 6, apart=np.sqrt(2 * times / rows), between=0.0)
        prints = prints_of(own, [(k, (rows // 2, rows // 2)) for k in range(6)], seed)
        means = np.stack([p["sketch"][:-1].astype(float).mean(axis=0) for p in prints])
        for step in risk:
            eta = shrinkages(prints, SIX)[0] if step == "found" else step
            moved = (1 - eta) * means + eta * means.mean(axis=0)
            risk[step] += float(((moved - own.means.mean(axis=1)) ** 2 / own.variance).mean())
    assert risk["found"] == min(risk.values()), risk


def test_each_cluster_has_its_own_and_label_spaces_stay_apart() -> None:
    near, far = world(2, 1), world(3, 3, apart=1.0)
    prints = prints_of(near, [(0, (150, 150))] * 3)
    prints += prints_of(far, [(k, (99, 99)) for k in range(3)])
    found = shrinkages(prints, [4, 4, 4, 7, 7, 7], ["x"] * 3 + ["y"] * 3)
    assert list(found) == [4, 7]
    assert found[4] > 0.7
    assert found[7] < 0.05
    alone = shrinkages(prints, [0, 1, 2, 3, 3, 3])
    assert [alone[c] for c in (0, 1, 2)] == [1.0] * 3
    assert alone[3] == pytest.approx(found[7], rel=0.1)


def test_clients_that_cant_be_compared_show_no_difference() -> None:
    prints = prints_of(world(4, 2, apart=1.0), [(0, (1, 0)), (1, (0, 1))])
    assert shrinkages(prints, [0, 0]) == {0: 1.0}


def test_lengths_that_differ_are_refused() -> None:
    prints = prints_of(world(5, 1), [(0, (9, 9))] * 2)
    with pytest.raises(AggregationError):
        shrinkages(prints, [0])
