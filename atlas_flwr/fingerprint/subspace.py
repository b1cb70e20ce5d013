"""A client's rows as the subspace they mostly lie in, and the angles between two such subspaces.

What PACFL compares clients by (Vahidian et al., AAAI 2023): the leading left singular vectors of
the matrix whose columns are the rows. The paper takes raw pixels, this takes features of a frozen
model, uncentred as there, so the first vector is close to the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.sketch import LIMIT, Float, project
from atlas_flwr.types import Array, Tensors

Measure = Literal["sum", "smallest"]
MEASURES: tuple[Measure, ...] = get_args(Measure)
DIMENSIONS = 3

_OVERHEAD = 200  # the name, header and shape of one array
_NUMBER = 2  # bytes of an fp16 number
_ROUNDING = 0.01  # what halves of precision may do to a unit vector


def subspace(
    features: Array,
    labels: Array,
    classes: int,
    p: int = DIMENSIONS,
    *,
    seed: int,
    limit: int = LIMIT,
) -> Tensors:
    """Return the leading directions of a client's rows, one set a class: ``basis``, float16.

    Shape ``(classes, width, p)``, columns orthonormal; columns of zeros where a class has fewer
    than p independent rows. One class for all rows is the paper's algorithm 1 and needs no labels;
    a set for each class is what the authors' program does. The order of the rows changes no more
    than rounding.

    Args:
        features: One row of features each, ``(n, d)``.
        labels: Their classes, ``(n,)``, in ``[0, classes)``; not read if there is one.
        classes: Sets of directions.
        p: Directions of each.
        seed: The run's, the same on every client: it draws the projection (``sketch.project``) of
            rows that are too wide for the limit. Angles of projected rows are approximate.
        limit: Bytes, serialised: 768 features and p = 3 take 4.8 kB.

    Raises:
        AggregationError: Features are none or not finite, labels don't fit, or the limit holds
            fewer than 2 p numbers of a direction.
    """
    x, y = np.asarray(features, np.float64), np.asarray(labels)
    if x.ndim != 2 or not len(x) or y.shape != x.shape[:1] or not np.isfinite(x).all():
        raise AggregationError(f"fingerprint: features {x.shape} and labels {y.shape} don't fit")
    if classes > 1 and not (y.min() >= 0 and y.max() < classes):
        raise AggregationError(f"fingerprint: a label is outside [0, {classes})")
    x = project(x, width_for(x.shape[1], classes, p, limit), seed)
    basis = np.zeros((classes, x.shape[1], p))
    for c in range(classes):
        leading = _leading(x if classes == 1 else x[y == c], p)
        basis[c, :, : leading.shape[1]] = leading
    return {"basis": basis.astype(np.float16)}


def width_for(features: int, classes: int, p: int, limit: int = LIMIT) -> int:
    """Return how many numbers of each direction the limit holds, at most ``features``.

    Raises:
        AggregationError: They are fewer than 2 p: angles would say nothing.
    """
    width = min(features, (limit - _OVERHEAD) // max(_NUMBER * p * classes, 1))
    if p < 1 or classes < 1 or width < min(2 * p, features):
        raise AggregationError(f"fingerprint: {limit} bytes hold no {p} directions x {classes}")
    return width


def _leading(x: Float, p: int) -> Float:
    """Return the leading right singular vectors of rows as columns, ``(width, at most p)``."""
    if not len(x):
        return np.zeros((x.shape[1], 0))
    _, values, vt = np.linalg.svd(x, full_matrices=False)
    kept = min(p, int(np.count_nonzero(values > max(values[0] * 1e-9, 1e-300))))
    leading: Float = vt[:kept].T
    largest = np.argmax(np.abs(leading), axis=0)
    return leading * np.where(leading[largest, np.arange(kept)] < 0, -1.0, 1.0)


def angles(one: Array, other: Array) -> Float:
    """Return the principal angles between two column spaces in radians, ascending.

    As ``scipy.linalg.subspace_angles`` (which descends): by cosines and by sines, for neither alone
    is exact for all angles (Knyazev and Argentati 2002).

    Args:
        one: Columns that are independent, ``(d, p)``, p ≥ 1.
        other: The same, ``(d, q)``.

    Returns:
        Shape ``(min(p, q),)``.
    """
    left, right = (np.linalg.qr(np.asarray(m, np.float64))[0] for m in (one, other))
    if left.shape[1] < right.shape[1]:
        left, right = right, left
    inner = left.T @ right
    cosines = np.linalg.svd(inner, compute_uv=False)
    sines = np.linalg.svd(right - left @ inner, compute_uv=False)[::-1]
    found: Float = np.arctan2(sines, cosines)
    return found


def apart(prints: Sequence[Tensors], measure: Measure = "sum") -> Float:
    """Return how far clients are apart in degrees, ``(n, n)``, symmetric, zero on the diagonal.

    The mean, over the classes that both have, of the sum of the p principal angles or of the
    smallest one. The paper sums the angles between the j-th vectors of both, which change with a
    vector's sign and turn freely where two singular values are close; principal angles are a
    property of the subspaces alone. Where one has fewer than p directions, the angles there are
    count p over their number. Clients that share no class are compared by all they have.

    Args:
        prints: ``subspace`` of each client.
        measure: ``"sum"`` of the angles, in [0, 90 p]; or the ``"smallest"``, in [0, 90].

    Raises:
        AggregationError: The measure is unknown, or a basis is missing, of another shape than the
            first or not of unit vectors.
    """
    found = np.zeros((len(prints), len(prints)))
    for index in range(1, len(prints)):
        row = apart_from(prints[index], prints[:index], measure)
        found[index, :index] = found[:index, index] = row
    return found


def apart_from(own: Tensors, others: Sequence[Tensors], measure: Measure = "sum") -> Float:
    """Return how far one client is from others in degrees, ``(n,)``; as ``apart``."""
    if measure not in MEASURES:
        raise AggregationError(f"no angle is named '{measure}', known: {', '.join(MEASURES)}")
    one = _read(own, own)
    p = own["basis"].shape[2]
    return np.array([_between(one, _read(other, own), measure, p) for other in others])


def _between(one: list[Float], other: list[Float], measure: Measure, p: int) -> float:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a.shape[1] and b.shape[1]]
    pairs = pairs or [(_spanned(one), _spanned(other))]
    each = [np.degrees(angles(a, b)) for a, b in pairs]
    return float(np.mean([own[0] if measure == "smallest" else own.mean() * p for own in each]))


def _spanned(each: list[Float]) -> Float:
    """Return an orthonormal basis of all classes' directions, which need not be independent."""
    u, values, _ = np.linalg.svd(np.hstack(each), full_matrices=False)
    spanned: Float = u[:, values > _ROUNDING * values[0]]
    return spanned


def _read(own: Tensors, like: Tensors) -> list[Float]:
    """Return the directions of each class of one client, those of zeros left out."""
    basis = own.get("basis")
    if basis is None or basis.ndim != 3 or basis.shape != like["basis"].shape:
        raise AggregationError("a fingerprint has no basis of the others' shape")
    each = np.asarray(basis, np.float64)
    norms = np.linalg.norm(each, axis=1)
    unit = (norms == 0) | (np.abs(norms - 1) < _ROUNDING)  # NaN is neither
    if not (unit.all() and norms.any()):
        raise AggregationError("a fingerprint's basis is not of unit vectors")
    return [m[:, size > 0] for m, size in zip(each, norms, strict=True)]
