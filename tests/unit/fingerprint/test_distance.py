"""Distances between class means are unbiased whatever the label mix, and their noise is known."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.distance import distances
from atlas_flwr.fingerprint.summary import summarise_vectors
from planted import World, flipped, prints_of, world


def pairs(plain: World, one, other, seeds: int, **options):
    """Return z and effect of fresh pairs of clients."""
    found = [distances(prints_of(plain, [one, other], s, **options)) for s in range(seeds)]
    return np.array([d.z[0, 1] for d in found]), np.array([d.effect[0, 1] for d in found])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((32, 32), (32, 32)),
        ((58, 18), (18, 58)),
        ((60, 4), (300, 20)),
        ((90, 0), (60, 44)),
        ((20, 20, 30), (10, 0, 60)),
    ],
    ids=str,
)
def test_clients_of_one_task_have_a_standard_normal_z_whatever_their_label_mixes(one, other):
    plain = world(1, 1, len(one), between=0.5)
    z, effect = pairs(plain, (0, one), (0, other), 200)
    assert abs(z.mean()) < 0.25
    assert 0.85 < z.std() < 1.15
    assert np.quantile(np.abs(z), 0.99) < 3.6
    assert abs(effect.mean()) < 4 * effect.std() / np.sqrt(200)


@pytest.mark.parametrize(
    ("one", "other"), [((60, 6), (6, 60)), ((40, 0), (9, 50)), ((30, 0), (9, 21))], ids=str
)
@pytest.mark.parametrize("between", [0.1, 0.5])
def test_where_classes_tell_little_one_task_is_still_one(one, other, between):
    """The larger of two tests is a little above 0 on average, and no larger in its tail."""
    z, _ = pairs(world(1, 1, between=between), (0, one), (0, other), 120)
    assert -0.3 < z.mean() < 1.2
    assert z.std() < 1.15
    assert np.quantile(z, 0.99) < 4


def test_several_clients_have_it_too():
    plain = world(2, 1)
    z = []
    for seed in range(20):
        d = distances(prints_of(plain, [(0, (30, 34))] * 8, seed))
        z += d.z[np.triu_indices(8, 1)].tolist()
    assert abs(np.mean(z)) < 0.15
    assert 0.9 < np.std(z) < 1.1


def test_the_effect_is_the_squared_distance_of_the_class_means():
    plain = world(3, 2)
    gap = (plain.means[0] - plain.means[1]) ** 2 / plain.variance
    for one, other, weights in (((40, 40), (40, 40), (0.5, 0.5)), ((80, 0), (40, 40), (1, 0))):
        _, effect = pairs(plain, (0, one), (1, other), 60)
        want = float(np.average(gap.mean(axis=1), weights=weights))
        assert effect.mean() == pytest.approx(want, rel=0.1)


def test_flipped_labels_are_as_far_apart_as_the_classes():
    plain = flipped(world(4, 1, between=0.3), 0)
    gap = float(((plain.means[0, 0] - plain.means[0, 1]) ** 2 / plain.variance).mean())
    z, effect = pairs(plain, (0, (100, 100)), (1, (100, 100)), 30)
    assert effect.mean() == pytest.approx(gap, rel=0.15)
    assert z.min() > 4


def test_the_error_holds_without_clients_measuring_it_on_rows():
    """Noise that clients did not measure is estimated from the halves' differences."""
    plain = world(5, 1)
    clients = [(0, (40, 24))] * 10
    own = [dict(p) for p in prints_of(plain, clients)]
    measured = distances(own)
    for p in own:
        p["facts"] = np.append(p["facts"][:-1], np.float32(0))
    estimated = distances(own)
    off = ~np.eye(10, dtype=bool)
    np.testing.assert_allclose(estimated.error[off], measured.error[off], rtol=0.3)


def test_private_noise_is_part_of_the_error():
    plain = world(6, 1)
    z = []
    for seed in range(40):
        d = distances(prints_of(plain, [(0, (150, 60))] * 8, seed, clip=40.0, noise=1.0))
        z += d.z[np.triu_indices(8, 1)].tolist()
    assert abs(np.mean(z)) < 0.3
    assert 0.7 < np.std(z) < 1.3


def test_what_was_compared_is_told():
    plain = world(7, 1)
    own = prints_of(plain, [(0, (40, 40)), (0, (80, 0)), (0, (0, 80)), (0, (1, 0)), (0, (80, 2))])
    d = distances(own, [0, 0, 0, 0, 0])
    assert d.how[0][1] == d.how[0][2] == d.how[1][4] == "classes"
    assert d.how[1][2] == d.how[2][4] == "means"
    assert {d.how[3][k] for k in (0, 1, 2, 4)} == {"nothing"}
    assert np.isinf(d.error[3, 0])
    assert d.z[3, 0] == 0
    assert np.isnan(d.reliability[3])


def test_clients_without_a_common_class_are_apart_only_beyond_what_classes_are():
    plain = world(8, 2, apart=0.8, between=0.05)
    for seed in range(10):
        own = prints_of(plain, [(0, (90, 0)), (0, (0, 90)), (1, (0, 90))], seed)
        d = distances(own)
        assert d.z[0, 1] < 4.5 < d.z[0, 2]
        assert d.z[1, 2] > 4.5


def test_label_spaces_are_never_compared():
    two, three = world(9, 1), world(9, 1, 3, 40)
    own = [
        *prints_of(two, [(0, (30, 30))] * 2),
        *prints_of(three, [(0, (30, 30, 30))] * 2),
    ]
    d = distances(own, ["a", "a", "b", "b"])
    assert np.isinf(d.z[:2, 2:]).all()
    assert np.isinf(d.error[2:, :2]).all()
    assert d.how[0][3] == "spaces"
    assert np.isfinite(d.z[0, 1])
    with pytest.raises(AggregationError, match="has shape"):
        distances(own)


def test_it_is_symmetric_and_renumbering_renumbers():
    plain = world(10, 3)
    own = prints_of(plain, [(t, (30, 10 + 9 * t)) for t in (0, 1, 2, 0, 1)])
    d = distances(own)
    order = [3, 0, 4, 2, 1]
    other = distances([own[k] for k in order])
    for name in ("z", "effect", "error"):
        matrix = getattr(d, name)
        np.testing.assert_array_equal(matrix, matrix.T)
        assert not np.diagonal(matrix).any()
        np.testing.assert_allclose(matrix[np.ix_(order, order)], getattr(other, name), rtol=1e-9)
    np.testing.assert_allclose(d.reliability[order], other.reliability)


def test_units_and_origin_of_the_features_do_not_matter():
    plain = world(11, 2)
    units = 2.0 ** np.random.default_rng(0).integers(-3, 4, 64)
    scaled = World(plain.means * units, plain.mixing * units)
    moved = World(plain.means + 5, plain.mixing)
    clients = [(0, (40, 40)), (1, (40, 40)), (0, (60, 20))]
    want = distances(prints_of(plain, clients)).z
    np.testing.assert_allclose(distances(prints_of(scaled, clients)).z, want, rtol=0.02, atol=0.02)
    np.testing.assert_allclose(distances(prints_of(moved, clients)).z, want, rtol=0.05, atol=0.1)


def test_reliability_is_high_where_clients_differ_and_low_where_they_do_not():
    many = distances(prints_of(world(12, 4), [(t, (60, 60)) for t in range(4)])).reliability
    one = distances(prints_of(world(12, 1), [(0, (60, 60))] * 8)).reliability
    assert many.min() > 0.8
    assert np.mean(one) < 0.35
    assert ((one >= 0) & (one <= 1)).all()


def test_one_client_and_no_variance_are_no_trouble():
    d = distances(prints_of(world(13, 1), [(0, (8, 8))]))
    assert d.z.tolist() == [[0.0]]
    assert np.isnan(d.reliability).all()
    still = World(np.ones((1, 2, 64)), np.zeros((64, 64)))
    assert not distances(prints_of(still, [(0, (8, 8))] * 3)).z.any()


def test_vectors_without_rows_of_features_are_compared_too():
    rng = np.random.default_rng(0)
    tasks = rng.standard_normal((2, 1, 500))
    own = [
        summarise_vectors(tasks[t] + rng.standard_normal((2, 500)), (20, 20)) for t in (0, 0, 1, 1)
    ]
    d = distances(own)
    assert d.z[0, 1] < 4 < min(d.z[0, 2], d.z[1, 3])


def test_what_is_no_fingerprint_is_refused():
    own = prints_of(world(14, 1), [(0, (8, 8))] * 2)
    broken = [
        ({"sketch": own[0]["sketch"]}, "lacks facts"),
        ({**own[0], "sketch": own[0]["sketch"][:, :-1]}, "has shape"),
        ({**own[0], "facts": -own[0]["facts"]}, "no rows' means"),
        ({**own[0], "sketch": own[0]["sketch"] * np.nan}, "no rows' means"),
    ]
    for bad, match in broken:
        with pytest.raises(AggregationError, match=match):
            distances([own[1], bad])
    with pytest.raises(AggregationError, match="label spaces for"):
        distances(own, [0])
    assert distances([]).z.shape == (0, 0)
