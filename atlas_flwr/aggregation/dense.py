"""The SVD of a small dense matrix, which always comes."""

from __future__ import annotations

import numpy as np
import scipy.linalg  # type: ignore[import-untyped]
from numpy.typing import NDArray

Float = NDArray[np.float64]


def dense_svd(matrix: NDArray[np.floating]) -> tuple[Float, Float, Float]:
    """Return the thin SVD ``(U, σ, Vᵀ)`` of a finite matrix, float64, σ descending.

    LAPACK's divide and conquer (``gesdd``) is the faster one, and gives up on some finite matrices
    of low numerical rank: the residual of a federated round was one. QR iteration (``gesvd``)
    then finds the same factors.
    """
    try:
        u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    except np.linalg.LinAlgError:
        u, s, vt = scipy.linalg.svd(matrix, full_matrices=False, lapack_driver="gesvd")
    return u, s, vt


def singular_values(matrix: NDArray[np.floating]) -> Float:
    """Return ``dense_svd(matrix)``'s σ alone, which costs less."""
    try:
        return np.asarray(np.linalg.svd(matrix, compute_uv=False))
    except np.linalg.LinAlgError:
        return dense_svd(matrix)[1]
