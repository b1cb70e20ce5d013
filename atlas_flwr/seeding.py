"""Randomness is an argument: independent generators derived from one seed.

Same seed, role, round and partition give the same stream on every machine; changing any one of
them gives an unrelated stream. Nothing here touches a global generator.
"""

from __future__ import annotations

import hashlib

import numpy as np


def seed_for(seed: int, role: str, round_: int = 0, partition: int = 0) -> int:
    """Return a 63-bit seed for generators that take an integer (torch).

    Args:
        seed: The run's seed.
        role: What the stream is for, e.g. ``"batches"``; roles never share a stream.
        round_: Round number, 0 for what is drawn once.
        partition: Client partition, 0 for what the server draws.
    """
    return int(rng_for(seed, role, round_, partition).integers(0, 2**63 - 1))


def rng_for(seed: int, role: str, round_: int = 0, partition: int = 0) -> np.random.Generator:
    """Return an independent generator for ``(seed, role, round, partition)``.

    Args:
        seed: The run's seed, not negative.
        role: What the stream is for.
        round_: Round number, 0 for what is drawn once.
        partition: Client partition, 0 for what the server draws.
    """
    role_number = int.from_bytes(hashlib.sha256(role.encode()).digest()[:8], "big")
    return np.random.default_rng(np.random.SeedSequence([seed, role_number, round_, partition]))
