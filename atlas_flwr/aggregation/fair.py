"""LoRA-FAIR: correct the mean of B so that its product comes near the mean product."""

from __future__ import annotations

import numpy as np

from atlas_flwr.aggregation.dense import dense_svd
from atlas_flwr.aggregation.factors import check_factors
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors


def fair(mean: LoraFactors, exact: LoraFactors, lam: float) -> LoraFactors:
    """Return ``(B̄ + ΔB, Ā, s)`` with ``ΔB = E Āᵀ (Ā Āᵀ + λI)⁻¹`` and ``E = P*/s − B̄ Ā``.

    That ΔB minimises ``‖P*/s − (B̄ + ΔB) Ā‖_F² + λ ‖ΔB‖_F²``. λ → ∞ gives the mean factors; λ = 0
    (by the pseudo-inverse, so a rank-deficient Ā will do) the best B for this Ā, whose error is
    the part of P* outside Ā's row space. Nothing of size ``d_out × d_in`` is formed.

    λ is in the units of ``mean``: factors at scale s see λ as factors at scale 1 see ``λ s``; put
    ``mean`` at the clients' scale first for the number the paper quotes.
    Bian et al., ICCV 2025. The paper states a general dissimilarity in place of the squared
    Frobenius norm; the closed form is derived here for the latter, and could not be checked
    against the paper's text.

    Args:
        mean: The mean factors (B̄, Ā, s), Ā of shape ``(r, d_in)``.
        exact: Factors of the mean product P*, of any rank and scale.
        lam: λ, finite and not negative.

    Raises:
        AggregationError: λ is negative or not finite, the two products differ in shape, or
            factors are missing or not finite.
    """
    if not (lam >= 0 and np.isfinite(lam)):
        raise AggregationError(f"lambda must be finite and not negative, got {lam}")
    check_factors("mean", mean)
    check_factors("exact", exact)
    shapes = [(f.b.shape[0], f.a.shape[1]) for f in (mean, exact)]
    if shapes[0] != shapes[1]:
        raise AggregationError(f"shape {shapes[1]} of the exact mean differs from {shapes[0]}")
    a, b = mean.a.astype(np.float64), mean.b.astype(np.float64)
    # Āᵀ (Ā Āᵀ + λI)⁻¹ through Ā's own SVD, which Ā Āᵀ would square the condition of.
    u, s, vt = dense_svd(a)
    kept = s > max(a.shape) * np.finfo(np.float64).eps * s[0]
    gain = np.divide(s, s**2 + lam, out=np.zeros_like(s), where=kept)
    right = (vt.T * gain) @ u.T
    wanted = (exact.scale / mean.scale) * exact.b.astype(np.float64)
    change = wanted @ (exact.a.astype(np.float64) @ right) - b @ (a @ right)
    return LoraFactors(a, b + change, mean.scale)
