"""From a mean product back to factors that a client can go on training.

The dead-direction trap: where ``σ_j = 0``, balanced factors have a zero column ``B_j`` *and* a zero
row ``A_j``. The gradients are ``∂L/∂B = s G Aᵀ`` and ``∂L/∂A = s Bᵀ G``, so both vanish in that
direction and it is lost for ever; with P = 0 (round 0) the whole adapter is. Dead directions are
therefore given back LoRA's own start: ``B_j = 0``, which leaves the product as it is, and for
``A_j`` a row of the seeded initial A, of its own norm and orthogonal to the rows that are in use.
"""

from __future__ import annotations

import math

import numpy as np

from atlas_flwr.aggregation.products import EPS, Float, Svd
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Array, LoraFactors


def balanced(svd: Svd, rank: int, scale: float, fresh: Array) -> LoraFactors:
    """Return factors ``B = U √Σ / √s``, ``A = √Σ Vᵀ / √s``: both take the same share of σ.

    Args:
        svd: The product's decomposition, ``k`` triples; k may be below ``rank``.
        rank: The receiver's rank: both factors have exactly it.
        scale: The receiver's scale, positive: ``scale · B @ A`` is the product cut to ``rank``.
        fresh: The seeded initial A, shape ``(≥ rank, d_in)``, no row zero.

    Returns:
        Float64 factors. A dead direction, ``σ_j ≤ max(d_out, d_in) · eps · σ₁`` or ``j > k``, has
        ``B_j = 0`` and for ``A_j`` the j-th fresh row, orthogonalised against the kept rows at its
        own norm, or as it is if those span it. All σ zero gives ``fresh[:rank]`` bit for bit.

    Raises:
        AggregationError: The rank or scale is not positive, or ``fresh`` does not fit.
    """
    live = _live(svd, rank, scale, fresh)
    root = np.sqrt(svd.s[:live] / scale)
    return _assemble(svd.u[:, :live] * root, root[:, None] * svd.vt[:live], rank, scale, fresh)


def unbalanced(svd: Svd, rank: int, scale: float, fresh: Array) -> LoraFactors:
    """Return factors ``B = U Σ / s``, ``A = Vᵀ``, as FlexLoRA publishes (Bai et al. 2024).

    Rows of A have norm 1 (a fresh row of LoRA's about 1/√3) and B carries all of σ, so one
    learning rate acts on them differently than on balanced factors. Where the paper leaves ``A_j =
    v_j`` for σ_j = 0, an arbitrary null vector, a dead direction is refilled as in ``balanced``;
    arguments, return value and errors are the same too.
    """
    live = _live(svd, rank, scale, fresh)
    return _assemble(svd.u[:, :live] * (svd.s[:live] / scale), svd.vt[:live], rank, scale, fresh)


def _live(svd: Svd, rank: int, scale: float, fresh: Array) -> int:
    """Check the receiver and return how many of its directions the product fills."""
    if rank < 1:
        raise AggregationError(f"a rank is at least 1, got {rank}")
    if not (scale > 0 and math.isfinite(scale)):
        raise AggregationError(f"scale must be positive and finite, got {scale}")
    if fresh.ndim != 2 or fresh.shape[0] < rank or fresh.shape[1] != svd.vt.shape[1]:
        raise AggregationError(
            f"fresh rows of shape {fresh.shape} can't fill A {(rank, svd.vt.shape[1])}"
        )
    return min(rank, svd.numerical_rank)


def _assemble(b: Float, a: Float, rank: int, scale: float, fresh: Array) -> LoraFactors:
    """Return the live factors followed by ``rank − live`` refilled directions."""
    dead = _refill(a, fresh[len(a) : rank].astype(np.float64))
    zeros = np.zeros((b.shape[0], rank - b.shape[1]))
    return LoraFactors(np.concatenate([a, dead]), np.concatenate([b, zeros], axis=1), scale)


def _refill(kept: Float, rows: Float) -> Float:
    """Return ``rows`` orthogonal to the kept rows, which are orthogonal, at their own norms."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(norms).all() and (norms > 0).all()):
        raise AggregationError("fresh rows must be finite and not zero")
    if not len(kept):
        return rows
    basis = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    rest = rows
    for _ in range(2):  # the second pass removes what rounding left of the first
        rest = rest - (rest @ basis.T) @ basis
    left = np.linalg.norm(rest, axis=1, keepdims=True)
    spanned = left <= math.sqrt(EPS) * norms
    turned: Float = np.where(spanned, rows, rest * (norms / np.where(spanned, 1.0, left)))
    return turned
