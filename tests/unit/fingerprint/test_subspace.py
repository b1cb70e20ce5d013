"""Subspaces of rows and the angles between them, against SciPy and planted directions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import subspace_angles

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.subspace import angles, apart, apart_from, subspace, width_for
from atlas_flwr.types import Array, Tensors

D = 20


def columns(seed: int, count: int, d: int = D) -> Array:
    return np.random.default_rng(seed).standard_normal((d, count))


def rows_in(basis: Array, n: int, seed: int, noise: float = 0.0) -> Array:
    """Rows in the span of columns, the earlier ones with more of the variance."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((n, basis.shape[1])) * np.geomspace(3, 1, basis.shape[1])
    return weights @ basis.T + noise * rng.standard_normal((n, len(basis)))


def of(features: Array, classes: int = 1, p: int = 3, labels: Array | None = None) -> Tensors:
    own = np.zeros(len(features), np.int64) if labels is None else labels
    return subspace(features, own, classes, p, seed=0)


@pytest.mark.parametrize(("p", "q"), [(1, 1), (3, 3), (2, 5), (5, 2), (12, 12)])
def test_angles_are_scipys(p: int, q: int) -> None:
    one, other = columns(1, p), columns(2, q)
    # Where planes share directions SciPy's zeros are good to √eps on some processors.
    atol = 1e-12 if p + q <= D else 1e-7
    np.testing.assert_allclose(angles(one, other), subspace_angles(one, other)[::-1], atol=atol)


def test_angles_are_exact_near_zero_and_near_ninety() -> None:
    basis = np.eye(D)[:, :2]
    tilted = basis.copy()
    tilted[5, 0] = 1e-9
    np.testing.assert_allclose(angles(basis, tilted), [0.0, 1e-9], atol=1e-15)
    np.testing.assert_allclose(angles(basis, np.eye(D)[:, 2:4]), np.pi / 2)


def test_angles_are_of_the_spaces_and_not_of_their_bases() -> None:
    one, other, mix = columns(1, 3), columns(2, 3), columns(3, 3, 3)
    turn, _ = np.linalg.qr(columns(4, D))
    want = angles(one, other)
    for left, right in ((one @ mix, other), (one, -other[:, ::-1]), (turn @ one, turn @ other)):
        np.testing.assert_allclose(angles(left, right), want, atol=1e-9)


def test_the_subspace_is_of_the_leading_left_singular_vectors() -> None:
    x = rows_in(columns(1, 8), 60, 2, 0.1) + 1.0
    got = of(x, p=4)["basis"]
    assert got.dtype == np.float16
    assert got.shape == (1, D, 4)
    want = np.linalg.svd(x.T)[0][:, :4]
    assert np.degrees(subspace_angles(got[0].astype(float), want)).max() < 0.1


def test_the_order_of_rows_and_rotations_of_all_features_change_nothing_but_rounding() -> None:
    worlds = [rows_in(columns(s, 3), 50, s, 0.3) for s in (1, 2, 3)]
    turn, _ = np.linalg.qr(columns(9, D))
    rng = np.random.default_rng(0)
    plain = apart([of(x) for x in worlds])
    for changed in ([rng.permutation(x) for x in worlds], [x @ turn for x in worlds]):
        np.testing.assert_allclose(apart([of(x) for x in changed]), plain, atol=0.3)


def test_classes_have_their_own_directions() -> None:
    x = np.vstack([rows_in(columns(1, 2), 30, 1), rows_in(columns(2, 2), 30, 2)])
    y = np.repeat([0, 1], 30)
    basis = of(x, 2, 2, y)["basis"]
    for c in (0, 1):
        np.testing.assert_allclose(angles(basis[c], columns(c + 1, 2)), 0, atol=2e-3)
    exchanged = of(x, 2, 2, 1 - y)
    assert apart([of(x, 2, 2, y), exchanged])[0, 1] > 45
    assert apart([of(x, 1, 2, y), of(x, 1, 2, 1 - y)])[0, 1] == pytest.approx(0, abs=1e-9)


def test_what_one_lacks_is_left_out() -> None:
    """Clients of other classes; too few rows; and classes that they do not share at all."""
    x, y = rows_in(columns(1, 2), 40, 1), np.arange(40) % 2
    both, first = of(x, 2, 2, y), of(x[y == 0], 2, 2, y[y == 0])
    second = of(x[y == 1], 2, 2, y[y == 1])
    assert not first["basis"][1].any()
    np.testing.assert_allclose(apart([both, first, second]), 0, atol=0.3)  # one plane, all of them
    single = of(x[:1], p=2)  # one row: one direction, counted twice
    assert not single["basis"][0, :, 1].any()
    np.testing.assert_allclose(apart([single, of(x, p=2)]), 0, atol=0.3)
    ends = [of(np.eye(D)[:1], p=2), of(np.eye(D)[1:3], p=2)]
    assert apart(ends)[0, 1] == pytest.approx(180)
    assert apart(ends, "smallest")[0, 1] == pytest.approx(90)


def test_the_sum_and_the_smallest_angle() -> None:
    prints = [of(rows_in(columns(s, 3), 40, s)) for s in range(4)]
    total, least = apart(prints), apart(prints, "smallest")
    for i, j in np.ndindex(4, 4):
        each = np.degrees(
            subspace_angles(
                prints[i]["basis"][0].astype(float), prints[j]["basis"][0].astype(float)
            )
        )
        assert total[i, j] == pytest.approx(each.sum() if i != j else 0, abs=1e-9)
        assert least[i, j] == pytest.approx(each.min() if i != j else 0, abs=1e-9)
    np.testing.assert_array_equal(total, total.T)
    np.testing.assert_allclose(apart_from(prints[0], prints[1:]), total[0, 1:], rtol=1e-12)


@pytest.mark.parametrize(("d", "classes", "p"), [(384, 1, 3), (768, 2, 3), (1024, 1, 5)])
def test_it_fits_eight_kilobytes(d: int, classes: int, p: int) -> None:
    rng = np.random.default_rng(0)
    near = rng.standard_normal((3, d))
    x = [rng.standard_normal((60, 3)) @ near + 0.1 * rng.standard_normal((60, d)) for _ in (0, 1)]
    y = np.arange(60) % classes
    prints = [of(own, classes, p, y) for own in [*x, rng.standard_normal((60, d))]]
    assert all(own["basis"].nbytes <= 8192 - 200 for own in prints)
    assert prints[0]["basis"].shape[1] == width_for(d, classes, p)
    degrees = apart(prints, "smallest")
    assert degrees[0, 1] < 10  # projected or not
    assert degrees[0, 2] > 45


def test_what_is_no_subspace_is_refused() -> None:
    x, y = columns(1, D).T, np.zeros(D, np.int64)
    good = of(x)
    for features, labels, classes, p, limit, match in (
        (x[:0], y[:0], 1, 3, 8192, "don't fit"),
        (x * np.nan, y, 1, 3, 8192, "don't fit"),
        (x, y[1:], 1, 3, 8192, "don't fit"),
        (x, y + 2, 2, 3, 8192, "outside"),
        (x, y, 1, 0, 8192, "hold no"),
        (x, y, 2, 3, 260, "hold no"),
    ):
        with pytest.raises(AggregationError, match=match):
            subspace(features, labels, classes, p, seed=0, limit=limit)
    for bad, match in (
        ({}, "no basis"),
        (of(x[:, 1:]), "no basis"),
        ({"basis": good["basis"] * np.float16(2)}, "unit vectors"),
        ({"basis": good["basis"] * np.float16(0)}, "unit vectors"),
        ({"basis": good["basis"] * np.float16(np.nan)}, "unit vectors"),
    ):
        with pytest.raises(AggregationError, match=match):
            apart([good, bad])
    with pytest.raises(AggregationError, match="known: sum"):
        apart([good, good], "largest")  # type: ignore[arg-type]
