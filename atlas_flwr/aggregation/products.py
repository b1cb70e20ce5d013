"""Exact algebra of low-rank products ``P = s B A``, without ever forming a dense matrix.

Factors are canonicalised before anything is added: the scale goes into A, so adapters of different
rank and scale mix. ``[B_1 … B_m] · [p_1 s_1 A_1; …; p_m s_m A_m] = Σ p_k s_k B_k A_k`` exactly
(stacking, Wang et al. 2024, FLoRA); two thin QRs and the SVD of a small core give the SVD of that
product (as in FLoRIST, 2025). Everything is float64 inside. (B, A) and (B G, G⁻¹ A) are the same
model for each invertible G, and what is computed here is the same for both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack  # type: ignore[import-untyped]

from atlas_flwr.aggregation.dense import dense_svd, singular_values
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Array, LoraFactors

Float = NDArray[np.float64]
EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Svd:
    """The thin singular value decomposition ``P = U diag(s) Vᵀ`` of a product.

    Attributes:
        u: Left singular vectors, shape ``(d_out, k)``, orthonormal columns.
        s: Singular values, shape ``(k,)``, descending.
        vt: Right singular vectors, shape ``(k, d_in)``, orthonormal rows.
    """

    u: Float
    s: Float
    vt: Float

    @property
    def numerical_rank(self) -> int:
        """The number of singular values above ``max(d_out, d_in) · eps · σ₁``, 0 for P = 0."""
        tolerance = max(self.u.shape[0], self.vt.shape[1]) * EPS * self.s[0]
        return int(np.count_nonzero(self.s > tolerance))


def shape_of(factors: LoraFactors) -> tuple[int, int]:
    """Return the product's shape, ``(d_out, d_in)``."""
    return int(factors.b.shape[0]), int(factors.a.shape[-1])


def stack(terms: Sequence[tuple[float, LoraFactors]]) -> LoraFactors:
    """Return ``Σ p_k s_k B_k A_k`` as one pair of factors of rank ``Σ r_k`` and scale 1.

    Weights and scales enter A alone: on both factors they would be squared.

    Args:
        terms: Pairs ``(p_k, factors)``; ranks and scales are free, ``(d_out, d_in)`` is not.

    Raises:
        AggregationError: There is no term, or the products' shapes differ.
    """
    if not terms:
        raise AggregationError("the sum of no product has no shape")
    shape = shape_of(terms[0][1])
    for _, factors in terms:
        if shape_of(factors) != shape:
            raise AggregationError(f"a product's shape {shape_of(factors)} differs from {shape}")
    a = [p * f.scale * f.a.astype(np.float64) for p, f in terms]
    return LoraFactors(
        a=np.concatenate(a),
        b=np.concatenate([f.b.astype(np.float64) for _, f in terms], axis=1),
        scale=1.0,
    )


def difference(p: LoraFactors, q: LoraFactors) -> LoraFactors:
    """Return ``P − Q`` by ``stack``: rank ``r_p + r_q``, scale 1, errors as there."""
    return stack([(1.0, p), (-1.0, q)])


def svd(factors: LoraFactors) -> Svd:
    """Return the thin SVD of the product, ``k = min(R, d_out, d_in)`` triples.

    Signs are fixed (the entry of largest magnitude in each column of U is positive), so equal
    products give equal bases, up to rotations among repeated singular values.

    Raises:
        AggregationError: The product holds values that are not finite.
    """
    left, right = _Qr(factors.b), _Qr(factors.a.T)
    u, s, vt = dense_svd(_core(left, right, factors.scale))
    u, vt = left.times(u), right.times(vt.T).T
    peaks = u[np.abs(u).argmax(axis=0), np.arange(u.shape[1])]
    signs = np.where(peaks < 0, -1.0, 1.0)
    return Svd(u * signs, s, vt * signs[:, None])


def spectrum(factors: LoraFactors) -> Float:
    """Return ``svd(factors).s`` alone, which costs less; errors as there."""
    return singular_values(_triangles(factors))


def norm(factors: LoraFactors) -> float:
    """Return the Frobenius norm ``‖s B A‖_F`` by QR.

    Where the product cancels (a difference of equals) what is left is about 1e-16 of the factors'
    norms; Gram matrices, which square the condition, would leave 1e-8. Errors as in ``svd``.
    """
    return float(np.linalg.norm(_triangles(factors)))


def rounding(factors: LoraFactors) -> float:
    """Return a bound on what rounding alone leaves of a product that cancels, as a Frobenius norm.

    ``max(d_out, d_in) · eps · |s| Σ_j ‖b_j‖ ‖a_j‖`` over the rank-one terms: a product of two
    opposite clients is no larger, and no update means anything below it.
    """
    a = np.linalg.norm(factors.a.astype(np.float64), axis=1)
    b = np.linalg.norm(factors.b.astype(np.float64), axis=0)
    return max(shape_of(factors)) * EPS * abs(factors.scale) * float(a @ b)


def gram_norm(factors: LoraFactors) -> float:
    """Return ``‖s B A‖_F = |s| √tr(BᵀB · AAᵀ)`` from two r × r matrices.

    Cheaper than ``norm`` and as good for factors that don't cancel; a cancelling product has a
    floor of about 1e-8 of the factors' norms. HetLoRA's weights (Cho et al. 2024) are these.
    """
    a, b = factors.a.astype(np.float64), factors.b.astype(np.float64)
    squared = float(np.sum((b.T @ b) * (a @ a.T)))
    return abs(factors.scale) * math.sqrt(max(squared, 0.0))  # rounding may leave −1e-17


def compress(factors: LoraFactors, rank: int | None = None) -> tuple[LoraFactors, float]:
    """Return balanced factors of the product at its numerical rank, or at most at ``rank``.

    ``B = U √Σ`` and ``A = √Σ Vᵀ`` at scale 1: of all pairs with this product the one of least
    ``‖B‖² + ‖A‖²``. The cut is the best (Eckart–Young). A product that is nothing but rounding
    (``rounding``), e.g. of factors that cancel, becomes one direction of zeros.

    Args:
        factors: Any factors.
        rank: The largest rank to keep, at least 1; None keeps all directions.

    Returns:
        The factors, and the part of the Frobenius norm cut, ``√(Σ_{i>rank} σ_i²) / √(Σ σ_i²)``.
        Directions below the numerical rank or ``rounding`` are none: without a ``rank`` the loss
        is 0.

    Raises:
        AggregationError: ``rank`` is below 1, or the product holds values that are not finite.
    """
    if rank is not None and rank < 1:
        raise AggregationError(f"a rank is at least 1, got {rank}")
    full = svd(factors)
    live = min(full.numerical_rank, int(np.count_nonzero(full.s > rounding(factors))))
    kept = live if rank is None else min(rank, live)
    lost = 0.0
    if kept < live:
        lost = float(np.linalg.norm(full.s[kept:live]) / np.linalg.norm(full.s[:live]))
    kept = max(kept, 1)
    root = np.sqrt(full.s[:kept] if live else np.zeros(1))
    return LoraFactors(root[:, None] * full.vt[:kept], full.u[:, :kept] * root, 1.0), lost


class _Qr:
    """A thin QR whose Q stays Householder reflectors: to apply them is cheaper than to form Q."""

    def __init__(self, matrix: Array) -> None:
        h = np.array(matrix, np.float64, order="F")
        h, self._tau, *_ = lapack.dgeqrf(h, lwork=64 * h.shape[1], overwrite_a=True)
        self._reflectors = h[:, : min(h.shape)]
        self.r: Float = np.triu(h[: min(h.shape)])  # (min(rows, columns), columns)

    def times(self, x: Float) -> Float:
        """Return ``Q x``."""
        y: Float = np.zeros((len(self._reflectors), x.shape[1]), order="F")
        y[: len(x)] = x
        work = 64 * x.shape[1] + 65 * 64  # LAPACK's block and its triangle; with less it crawls
        y, *_ = lapack.dormqr("L", "N", self._reflectors, self._tau, y, work, overwrite_c=True)
        return y


def _triangles(factors: LoraFactors) -> Float:
    """Return the core of a product whose bases are not needed."""
    return _core(_Qr(factors.b), _Qr(factors.a.T), factors.scale)


def _core(left: _Qr, right: _Qr, scale: float) -> Float:
    """Return ``s R_B R_Aᵀ``, which has the product's singular values."""
    with np.errstate(over="ignore", invalid="ignore"):  # refused below, by name
        core: Float = scale * (left.r @ right.r.T)
    if not np.isfinite(core).all():
        raise AggregationError("a product holds values that are not finite")
    return core
