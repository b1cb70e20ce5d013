"""How much a client's rows tell of what separates the classes: weights that know label mixes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from atlas_flwr.errors import AggregationError


def informative_rows(counts: Sequence[int]) -> float:
    """Return how many rows of even classes tell as much as rows of this label mix.

    ``n (1 − Σ π_c²) / (1 − 1/C)``. Where logits know the mix and not yet the text, a row's Fisher
    information on them is ``diag(π) − π πᵀ``, and this is its trace over that of even classes. Of
    two classes it is ``4 n₀ n₁ / n``: the variance of a difference of two class means goes by its
    inverse. With SGD updates shrink by themselves where rows tell little; AdamW, whose steps have
    one length, hides it, and a mean weighted by rows counts a client of one class in full. Ours.

    Args:
        counts: Rows of each class, shape ``(C,)``, C ≥ 2.

    Returns:
        Above 0, at most the rows and half a one a class: π counts that much beside the rows, as in
        ``training.prior``, so that a client of one class keeps a little weight.

    Raises:
        AggregationError: There are fewer than two classes, or a count is negative.
    """
    own = np.asarray(counts, np.float64)
    if own.ndim != 1 or len(own) < 2 or (own < 0).any():
        raise AggregationError(f"rows of each class must be two or more counts, got {list(counts)}")
    own = own + 0.5
    share = own / own.sum()
    return float(own.sum() * (1 - share @ share) / (1 - 1 / len(own)))
