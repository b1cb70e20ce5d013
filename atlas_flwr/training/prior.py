"""Logits that know how often each class occurs, so that a model need not learn it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import logsumexp  # type: ignore[import-untyped]

from atlas_flwr.errors import AtlasError


def log_prior(
    labels: NDArray[np.int64], num_labels: int, strength: float, pooled: Sequence[int] = ()
) -> NDArray[np.float32] | None:
    """Return ``τ log (π_c / ρ_c)`` of some rows, to be added to logits: logit adjustment.

    Trained under ``softmax(f + τ log π)``, f itself is the classifier of even classes (τ = 1:
    Menon et al., ICLR 2021; Ren et al., NeurIPS 2020), so clients of different label mixes
    learn one f; with a client's own ``τ log π`` added it fits that client's mix again. Beside a
    pooled mix ρ, f is the classifier of that mix instead (τ = 1; ours).

    Args:
        labels: Classes of the rows, shape ``(n,)``.
        num_labels: Classes C of the task.
        strength: τ, not below 0.
        pooled: Rows of each class that ρ is made of; none: ρ = 1, even classes.

    Returns:
        Shape ``(C,)``, π counting half a row of each class beside the rows, for one may be absent;
        and so does ρ; None at τ = 0.

    Raises:
        AtlasError: ``pooled`` is of another number of classes.
    """
    if not strength:
        return None
    prior = _log_shares(np.bincount(labels, minlength=num_labels))
    if pooled:
        if len(pooled) != num_labels:
            raise AtlasError(f"a pooled mix of {len(pooled)} classes, the task has {num_labels}")
        prior -= _log_shares(np.asarray(pooled))
    return (strength * prior).astype(np.float32)


def fitted_offset(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    around: NDArray[np.floating[Any]] | None,
) -> NDArray[np.float32]:
    """Return the offset of the logits under which some rows' labels are most likely.

    ``argmin_o Σ_i CE(z_i + o, y_i) + ½ ‖o − o₀‖²``: the bias of bias-corrected calibration
    (Alexandari, Kundaje and Shrikumar, ICML 2020, whose temperature stays 1 here, for a model is
    too sure of the rows it was trained on), with a prior of deviation 1 around ``o₀``, so that a
    few rows don't take it far. A mean of models leans to some class; log shares alone leave that.

    Args:
        logits: z, shape ``(n, C)``, n ≥ 1, finite.
        labels: y, shape ``(n,)``.
        around: o₀, shape ``(C,)``; None: zeros.

    Returns:
        o, shape ``(C,)``.

    Raises:
        AtlasError: The search for the minimum, which is unique, failed.
    """
    z = np.asarray(logits, np.float64)
    centre = np.zeros(z.shape[1]) if around is None else np.asarray(around, np.float64)
    counts = np.bincount(labels, minlength=z.shape[1]).astype(np.float64)

    def loss(offset: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        moved, apart = z + offset, offset - centre
        norms = logsumexp(moved, axis=1, keepdims=True)
        likely = float((norms.sum() - moved[np.arange(len(z)), labels].sum()) + apart @ apart / 2)
        return likely, np.exp(moved - norms).sum(axis=0) - counts + apart

    found = minimize(loss, centre, jac=True, method="L-BFGS-B", options={"gtol": 1e-6 * len(z)})
    if not (found.success and np.isfinite(found.x).all()):
        raise AtlasError(f"offset: no minimum was found ({found.message})")
    offset: NDArray[np.float32] = found.x.astype(np.float32)
    return offset


def _log_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.log((counts + 0.5) / (counts + 0.5).sum())
    return shares
