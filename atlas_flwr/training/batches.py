"""Batches of rows of similar length, and what a table of tokenised rows must offer."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

# Few enough that a small shard still mixes: sorted as a whole, its batches would hardly change.
MEGA_BATCHES = 8


class TokenTable(Protocol):
    """Rows tokenised once; only the rows asked for are padded."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """Class of each row."""
        ...

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Number of tokens of each row."""
        ...

    def __len__(self) -> int: ...

    def batch(self, indices: NDArray[np.int64], pad_token_id: int) -> dict[str, NDArray[np.int64]]:
        """Return right-padded int64 arrays: input_ids, attention_mask, labels (token_type_ids)."""
        ...


def bucketed(
    lengths: NDArray[np.int32],
    batch_size: int,
    rng: np.random.Generator,
    mega: int = MEGA_BATCHES,
) -> list[NDArray[np.int64]]:
    """Return one epoch of batches whose rows have similar lengths, in random order.

    Rows are shuffled, sorted by length inside runs of ``mega`` batches, cut, and the batches
    shuffled. Every row occurs exactly once; the last batch of each run may be short.

    Args:
        lengths: Tokens of each row, shape ``(n,)``.
        batch_size: Rows of one batch.
        rng: Source of all randomness.
        mega: Batches sorted together; 1 gives plain random batches.

    Returns:
        Positions into ``lengths``; empty for no rows.
    """
    order = rng.permutation(len(lengths))
    span = batch_size * mega
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), span):
        run = order[start : start + span]
        run = run[np.argsort(lengths[run], kind="stable")]
        batches += [run[i : i + batch_size] for i in range(0, len(run), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def by_length(lengths: NDArray[np.int32], batch_size: int) -> list[NDArray[np.int64]]:
    """Return batches sorted by length, longest first, every row once: the cheapest padding.

    Longest first, so that memory that is too small shows at once.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
