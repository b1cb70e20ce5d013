"""What the noise on a fingerprint is worth, as (ε, δ), and what it does not cover.

Covered: the **texts** of single rows. Two data sets are neighbours if they differ in the text of
one row, its label and its place kept. That row's feature vector, no longer than ``clip``, is in one
mean of n rows, which moves by at most ``2 · clip / n``; noise of standard deviation
``noise · 2 · clip / n`` is added to every number of that mean. This is the Gaussian mechanism with
multiplier ``noise``; all else of the fingerprint is a function of labels and configuration.

Not covered: how many rows of each class there are, which travels nearly as it is; that a client
takes part; groups of rows that belong to one person (k rows: a multiplier of ``noise / k``);
whatever is sent besides. Fingerprints taken again compose: t of them at one multiplier are one at
``noise / √t``. Without noise, class means say what a client's texts are like, to whoever reads
them: an embedding of a mean of a few rows is close to the rows.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq  # type: ignore[import-untyped]
from scipy.special import log_ndtr  # type: ignore[import-untyped]

from atlas_flwr.errors import AggregationError


def delta(noise: float, epsilon: float) -> float:
    """Return the smallest δ at which the Gaussian mechanism is (ε, δ)-private, exactly.

    ``Φ(1/2σ − εσ) − e^ε Φ(−1/2σ − εσ)`` (Balle and Wang 2018, theorem 8).

    Args:
        noise: The multiplier σ: standard deviation over sensitivity.
        epsilon: Not negative.
    """
    if not (noise > 0 and epsilon >= 0):
        raise AggregationError(f"noise {noise} must be positive and ε {epsilon} not negative")
    one = float(log_ndtr(0.5 / noise - epsilon * noise))
    other = float(log_ndtr(-0.5 / noise - epsilon * noise)) + epsilon
    return max(0.0, math.exp(one) * -math.expm1(min(other - one, 0.0)))


def epsilon(noise: float, at_delta: float) -> float:
    """Return the smallest ε at which the Gaussian mechanism is (ε, δ)-private.

    Args:
        noise: The multiplier; 0 protects nothing and gives infinity.
        at_delta: δ in (0, 1); well below one over the number of rows.
    """
    if not 0 < at_delta < 1 or noise < 0:
        raise AggregationError(f"δ {at_delta} must be in (0, 1) and noise {noise} not negative")
    if noise == 0:
        return math.inf
    if delta(noise, 0.0) <= at_delta:
        return 0.0
    most = 1.0
    while delta(noise, most) > at_delta:
        most *= 2
    return float(brentq(lambda e: delta(noise, e) - at_delta, 0.0, most, xtol=1e-9))
