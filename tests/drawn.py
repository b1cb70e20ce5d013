"""Clients' factors drawn from a seed, and how close a mean of them must come to its oracle."""

from __future__ import annotations

import numpy as np

from atlas_flwr.types import LoraFactors

DO, DI = 7, 5


def client(rank: int, seed: int, scale: float = 2.0) -> LoraFactors:
    """One module's factors of a client."""
    rng = np.random.default_rng([seed, rank])
    return LoraFactors(rng.standard_normal((rank, DI)), rng.standard_normal((DO, rank)), scale)


def close(ours: np.ndarray, oracle: np.ndarray) -> None:
    """Assert that two arrays agree but for float64's rounding."""
    np.testing.assert_allclose(ours, oracle, rtol=1e-11, atol=1e-12)
