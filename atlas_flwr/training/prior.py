"""Logits that know how often each class occurs, so that a model need not learn it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

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


def _log_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.log((counts + 0.5) / (counts + 0.5).sum())
    return shares
