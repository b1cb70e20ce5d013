"""Class means of two halves: what they are by NumPy, that they fit, and what noise does."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from flwr.common.serde import array_record_to_proto
from safetensors.numpy import save

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.prints import read, vectors
from atlas_flwr.fingerprint.sketch import measured
from atlas_flwr.fingerprint.summary import split, summarise, summarise_vectors
from planted import world


def rows_of(counts=(40, 24), d=32, seed=0):
    return world(seed, 1, len(counts), d).rows(0, counts, np.random.default_rng(seed))


def sent(x, y, classes=2, seed=0, **options):
    return summarise(x, y, classes, seed=0, rng=np.random.default_rng(seed), **options)


def test_it_holds_the_means_of_two_halves_of_each_class():
    """Oracle: NumPy, on the halves that the same generator draws."""
    x, y = rows_of()
    own = read([sent(x, y)])
    half = split(y, np.random.default_rng(0))
    for h in (0, 1):
        for c in (0, 1):
            rows = x[(y == c) & (half == h)]
            assert own.rows[0, h, c] == len(rows) == (20, 12)[c]
            np.testing.assert_allclose(own.means[0, h, c], rows.mean(axis=0), rtol=1e-3)
    residuals = np.concatenate([x[y == c] - x[y == c].mean(axis=0) for c in (0, 1)])
    np.testing.assert_allclose(own.variance[0], (residuals**2).sum(axis=0) / 62, rtol=2e-3)
    assert own.freedom[0] == 62


def test_the_noise_dimension_is_that_of_the_noise():
    rng = np.random.default_rng(0)
    y = np.arange(400) % 2
    isotropic = sent(rng.standard_normal((400, 32)), y)["facts"][-1]
    assert isotropic == pytest.approx(32, rel=0.1)
    few = rng.standard_normal((400, 4)) @ rng.standard_normal((4, 32))
    assert sent(few, y)["facts"][-1] < 5
    assert sent(few[:2], y[:2])["facts"][-1] == 0  # too few rows to tell


@pytest.mark.parametrize(
    ("d", "classes"), [(16, 2), (384, 2), (768, 2), (768, 6), (1024, 3), (384, 77), (64, 1000)]
)
def test_it_never_exceeds_8_kb_however_it_is_serialised(d, classes):
    rng = np.random.default_rng(0)
    own = sent(rng.standard_normal((2 * classes, d)), np.arange(2 * classes) % classes, classes)
    record = ArrayRecord({name: Array(array) for name, array in own.items()})
    assert len(array_record_to_proto(record).SerializeToString()) <= 8192
    assert len(save(dict(own))) <= 8192


def test_the_same_generator_gives_the_same_bits_and_another_other_halves():
    x, y = rows_of()
    one, again, other = sent(x, y), sent(x, y), sent(x, y, seed=1)
    assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in again.items()}
    assert one["sketch"].tobytes() != other["sketch"].tobytes()


def test_halves_are_stratified():
    for seed in range(20):
        y = np.random.default_rng(seed).integers(0, 3, 31)
        half = split(y, np.random.default_rng(seed))
        for c in range(3):
            sizes = np.bincount(half[y == c], minlength=2)
            assert abs(int(sizes[0]) - int(sizes[1])) <= 1


def test_a_class_without_rows_is_empty_and_a_single_row_has_one_half():
    x, y = rows_of((9, 1))
    own = read([sent(x, y, 3)])
    assert own.rows[0].sum(axis=0).tolist() == [9, 1, 0]
    assert not own.means[0, :, 2].any()
    assert (own.rows[0, :, 1] > 0).sum() == 1
    empty = read([sent(np.zeros((0, 8)), np.zeros(0, np.int64))])
    assert not empty.rows.any()


def test_of_many_classes_some_are_measured_and_each_alone():
    y = np.arange(600) % 300
    x = np.random.default_rng(0).standard_normal((600, 16)) + 10 * (y < 107)[:, None]
    own = read([sent(x, y, 300)])
    cells = own.rows.shape[2]
    assert cells == 107
    kept = measured(300, cells, 0)
    assert len(set(kept.tolist())) == cells
    assert own.rows.sum() == 2 * cells
    want = x[y == kept[5]].mean(axis=0)
    got = (own.rows[0, :, 5, None] * own.means[0, :, 5]).sum(axis=0) / own.rows[0, :, 5].sum()
    np.testing.assert_allclose(got, want, atol=0.01)
    np.testing.assert_array_equal(measured(5, 5, 3), np.arange(5))


def test_noise_is_of_the_size_it_says_and_hides_the_spread():
    x, y = rows_of((400, 100))
    clip, noise = 10.0, 3.0
    plain = read([sent(x, y, clip=clip)])
    gaps = []
    for seed in range(30):
        rng = np.random.default_rng(0)
        blurred = summarise(x, y, 2, seed=0, rng=_Late(rng, seed), clip=clip, noise=noise)
        own = read([blurred])
        gaps.append(own.means[0] - plain.means[0])
        assert np.allclose(own.variance, clip**2 / 32, rtol=1e-2)
        assert np.isnan(own.crowding).all()
        assert (own.rows < plain.rows).all()
    want = noise * 2 * clip / plain.rows[0]
    np.testing.assert_allclose(np.std(gaps, axis=(0, 3)), want, rtol=0.1)
    assert np.abs(np.mean(gaps, axis=(0, 3)) / want).max() < 0.15


class _Late:
    """A generator whose halves are one seed's and whose noise is another's."""

    def __init__(self, halves: np.random.Generator, seed: int) -> None:
        self.permutation, self.integers = halves.permutation, halves.integers
        self.standard_normal = np.random.default_rng([seed, 1]).standard_normal


def test_a_clip_bounds_what_one_row_can_do():
    x, y = rows_of()
    other = x.copy()
    other[3] = 1e4
    one, two = (read([sent(rows, y, clip=2.0)]) for rows in (x, other))
    moved = np.linalg.norm(one.means - two.means, axis=-1)
    assert np.count_nonzero(moved) == 1
    assert moved.max() <= 2 * 2.0 / 20 * 1.01


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"noise": 1.0}, "without a clip"),
        ({"noise": -1.0, "clip": 1.0}, "out of range"),
        ({"clip": 0.0}, "out of range"),
    ],
)
def test_options_that_protect_nothing_are_refused(options, match):
    with pytest.raises(AggregationError, match=match):
        sent(*rows_of(), **options)


def test_features_and_labels_that_do_not_fit_are_refused():
    x, y = rows_of()
    for bad_x, bad_y, match in (
        (x[:-1], y, "don't fit"),
        (np.where(x > 3, np.nan, x), y, "don't fit"),
        (x, y + 1, "outside"),
        (x * 1e6, y, "too large"),
    ):
        with pytest.raises(AggregationError, match=match):
            sent(bad_x, bad_y)


def test_vectors_are_told_by_direction():
    g = np.random.default_rng(0).standard_normal((2, 300)) * 1e-7
    one, other = (read([summarise_vectors(k * g, (5, 6))]) for k in (1, 1e5))
    np.testing.assert_allclose(one.means, other.means, rtol=2e-3, atol=1e-3)
    whole, halves = vectors([summarise_vectors(g, (5, 6))])
    want = (5 * g[0] + 6 * g[1]) / np.linalg.norm(5 * g[0] + 6 * g[1])
    np.testing.assert_allclose(whole[0] / np.linalg.norm(whole[0]), want, atol=1e-3)
    assert halves[0].shape == (1, 300)
    with pytest.raises(AggregationError, match="no direction"):
        summarise_vectors(np.zeros((2, 3)), (1, 1))


def test_pooling_prints_is_the_print_of_all_rows():
    x, y = rows_of((30, 30))
    parts = read([sent(x[k::3], y[k::3]) for k in range(3)])
    parts.join(0, 1)
    parts.join(0, 2)
    whole = (parts.rows[0][..., None] * parts.means[0]).sum(axis=0) / 30
    for c in (0, 1):
        np.testing.assert_allclose(whole[c], x[y == c].mean(axis=0), rtol=1e-3)
    assert parts.rows[0].sum() == 60
