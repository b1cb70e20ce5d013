"""Logits that know how often each class occurs, so that a model need not learn it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log_prior(
    labels: NDArray[np.int64], num_labels: int, strength: float
) -> NDArray[np.float32] | None:
    """Return ``τ log π_c`` of some rows, to be added to logits: logit adjustment.

    Trained under ``softmax(f + τ log π)``, f itself is the classifier of even classes (τ = 1:
    Menon et al., ICLR 2021; Ren et al., NeurIPS 2020), so clients of different label mixes
    learn one f; with a client's own ``τ log π`` added it fits that client's mix again.

    Args:
        labels: Classes of the rows, shape ``(n,)``.
        num_labels: Classes C of the task.
        strength: τ, not below 0.

    Returns:
        Shape ``(C,)``, π counting half a row of each class beside the rows, for one may be absent;
        None at τ = 0.
    """
    if not strength:
        return None
    counts = np.bincount(labels, minlength=num_labels) + 0.5
    prior: NDArray[np.float64] = strength * np.log(counts / counts.sum())
    return prior.astype(np.float32)
