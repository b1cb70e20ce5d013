"""What an honest fingerprint looks like: shapes, number types, and what its numbers can be.

The server draws no conclusions from a fingerprint that fails here; it is refused as its client's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint import sketch, subspace
from atlas_flwr.types import Array, Scalar, Tensors

Shapes = dict[str, tuple[tuple[int, ...], str]]
_NORM = 0.01  # half precision, of unit vectors
_TAIL = 6.0  # deviations by which a norm of Gaussian noise passes its mean once in 10⁹ draws
_COUNT = 1e-6  # single precision, of counts


@dataclass(frozen=True)
class Asked:
    """What a client was asked for.

    Attributes:
        options: The job's: ``kind``, ``clip``, ``noise``; of subspaces ``dimensions`` and
            ``class-wise``.
        classes: Labels of its task.
        features: Width of the model's hidden states; 0: not known.
    """

    options: Mapping[str, Scalar]
    classes: int
    features: int = 0

    @property
    def kind(self) -> str:
        """What the client measures."""
        return str(self.options["kind"])


def shapes(asked: Asked, told: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Return shape and dtype of each array of an honest fingerprint.

    Where the width is not known (features of an unknown model, gradients of an unknown number of
    weights) it is the one told, if a fingerprint can have that width.

    Args:
        asked: What was asked for.
        told: Shapes that the client told, by name.

    Raises:
        AggregationError: No honest fingerprint has the width that was told.
    """
    if asked.kind == "subspace":
        return _basis(asked, told)
    classes = asked.classes if asked.kind == "class_means" else 1
    gradients = asked.kind in ("mean_gradient", "rms_gradient")
    known = 0 if gradients else asked.features
    given = told.get("sketch", ())
    cells, width = sketch.layout(known or max((*given[1:], 1)), classes)
    if not known and given != (2 * cells + 1, width):
        raise AggregationError(f"sketch: no fingerprint of {classes} classes has shape {given}")
    rows = 2 * cells + 1
    return {"sketch": ((rows, width), "float16"), "facts": ((rows,), "float32")}


def _basis(asked: Asked, told: Mapping[str, tuple[int, ...]]) -> Shapes:
    p = int(asked.options["dimensions"])
    sets = asked.classes if asked.options["class-wise"] else 1
    given = told.get("basis", ())
    width = subspace.width_for(asked.features or max((*given[1:2], 1)), sets, p)
    if not asked.features and given != (sets, width, p):
        raise AggregationError(f"basis: no fingerprint of {sets} sets has shape {given}")
    return {"basis": ((sets, width, p), "float16")}


def check(own: Tensors, asked: Asked, rows: int) -> None:
    """Refuse numbers that no rows have.

    Args:
        own: A fingerprint of the right shapes.
        asked: What was asked for.
        rows: Rows the client says it measured.

    Raises:
        AggregationError: A number is not finite, or negative where none can be; the counts of the
            cells don't sum to the rows (under noise, or where not all classes are measured: exceed
            them); a direction is no direction.
    """
    for name, tensor in own.items():
        if not np.isfinite(tensor).all():
            raise AggregationError(f"{name}: holds values that are not finite")
    if asked.kind == "subspace":
        _check_basis(own["basis"])
    else:
        _check_sketch(
            own["sketch"].astype(np.float64), own["facts"].astype(np.float64), asked, rows
        )


def _check_basis(basis: Array) -> None:
    sizes = np.linalg.norm(basis.astype(np.float64), axis=1)
    if not (((sizes == 0) | (np.abs(sizes - 1) < _NORM)).all() and sizes.any()):
        raise AggregationError("basis: directions are not of length 1")


def _check_sketch(rows_of: Array, facts: Array, asked: Asked, rows: int) -> None:
    if (facts < 0).any() or (rows_of[-1] < 0).any():
        raise AggregationError("sketch: counts, dimensions and deviations are not negative")
    counted, noisy = float(facts[:-1].sum()), bool(asked.options.get("noise"))
    some = asked.kind == "class_means" and len(facts) < 2 * asked.classes + 1  # classes left out
    slack = _COUNT * rows
    if counted > rows + slack or (not (noisy or some) and counted < rows - slack):
        raise AggregationError(f"facts: cells of {counted:g} rows, {rows} were measured")
    if facts[-1] and facts[-1] < (least := _fewest_dimensions(facts[:-1])):
        raise AggregationError(
            f"facts: noise of {facts[-1]:g} dimensions, such rows have {least:.3g} or more"
        )
    if clip := float(asked.options.get("clip", 0.0)):
        _check_means(rows_of[:-1], facts[:-1], clip, noisy)
    if noisy:  # what stands in for the rows' own spread is the clip's, and is known to all
        spread = clip / np.sqrt(rows_of.shape[1])
        if facts[-1] or np.abs(rows_of[-1] - spread).max() > _NORM * spread:
            raise AggregationError(f"sketch: a spread that is not {spread:g}, which noise covers")
    if asked.kind in ("mean_gradient", "rms_gradient"):
        whole = np.linalg.norm(rows_of[:2].mean(axis=0)) / np.sqrt(rows_of.shape[1])
        if abs(whole - 1) > _NORM:
            raise AggregationError(f"sketch: the mean of both halves has norm {whole:g}, not 1")


def _check_means(means: Array, worth: Array, clip: float, noisy: bool) -> None:
    """Refuse a mean that is longer than clipped rows and the noise it says it has can make it.

    A mean worth w rows has noise of variance below ``clip² / (w d)`` in each of d numbers
    (``summary``); what is long by saying that it is worth little counts for little, too.
    """
    width = means.shape[1]
    sizes, most = np.linalg.norm(means, axis=1), np.full(len(means), clip)
    if noisy:
        own = worth > 0
        most[own] += clip * (1 + _TAIL / np.sqrt(width)) / np.sqrt(worth[own])
    if (over := sizes > most * (1 + _NORM)).any():
        at = int(np.argmax(over))
        why = f"the clip is {clip:g}" + (f": at most {most[at]:g} with its noise" if noisy else "")
        raise AggregationError(f"sketch: a mean of norm {sizes[at]:g}, {why}")


def _fewest_dimensions(counts: Array) -> float:
    """Return the least ``(tr S)² / tr S²`` that ``summary`` can tell of rows, counted by cell.

    The squares of its residuals sum to ``F tr S``, F their freedom, so that the products of two
    halves' sum to ``(F tr S)² / 4`` at most. Infinite where it can tell nothing.
    """
    halves = counts.reshape(2, -1)
    pairs = float(np.prod(np.maximum(halves - 1, 0.0), axis=0).sum())
    freedom = float(np.maximum(halves.sum(axis=0) - 1, 0.0).sum())
    return 4 * pairs / freedom**2 * (1 - _NORM) if pairs else float("inf")
