"""How far clients are apart, and how much of what they differ by is no noise."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.pairs import HOW, How, Shared, compare, score
from atlas_flwr.fingerprint.prints import Prints, read
from atlas_flwr.fingerprint.sketch import Float
from atlas_flwr.types import Tensors


@dataclass(frozen=True)
class Distances:
    """How far clients are apart; all symmetric, ``(n, n)``, zero on the diagonal.

    Attributes:
        z: ``effect / error``: about standard normal for clients of one task; where overall means
            are compared besides, the larger of two such. Infinite for clients of different label
            spaces.
        effect: Squared distance of class means in deviations inside the classes, the mean over
            features; unbiased, so it can be negative.
        error: Its standard deviation for clients of one task; infinite where nothing can be
            compared.
        how: What was compared: ``"classes"`` that both have; overall ``"means"`` where they share
            none, or too few rows of those they share, with what two label mixes of one task can
            differ by taken off; ``"nothing"`` where one has no two rows; ``"spaces"`` where the
            label spaces differ.
        reliability: The share of the variance between clients that is not noise, of each client,
            ``(n,)``: its halves' deviations from the others, correlated and stepped up to the whole
            (Spearman and Brown). NaN where it can't be told.
    """

    z: Float
    effect: Float
    error: Float
    how: tuple[tuple[How, ...], ...]
    reliability: Float


def distances(prints: Sequence[Tensors], spaces: Sequence[Hashable] | None = None) -> Distances:
    """Compare clients by their fingerprints.

    Args:
        prints: One fingerprint a client.
        spaces: Label space of each; None: one. Clients of different spaces are never compared.

    Raises:
        AggregationError: Fingerprints of one space don't fit each other, or the lengths differ.
    """
    n = len(prints)
    z, effect, error = (np.full((n, n), np.inf) for _ in range(3))
    how, reliability = np.full((n, n), HOW.index("spaces")), np.full(n, np.nan)
    for at in by_space(n, spaces).values():
        own = read([prints[index] for index in at])
        inside = np.ix_(at, at)
        effect[inside], error[inside], how[inside] = compare(own, Shared.of(own))
        z[inside] = score(effect[inside], error[inside])
        reliability[at] = reliabilities(own)
    for matrix in (z, effect, error):
        np.fill_diagonal(matrix, 0.0)
    return Distances(
        z, effect, error, tuple(tuple(HOW[i] for i in row) for row in how), reliability
    )


def by_space(n: int, spaces: Sequence[Hashable] | None) -> dict[Hashable, list[int]]:
    """Return the positions of each label space's clients, spaces in order of appearance."""
    where = list(spaces) if spaces is not None else [0] * n
    if len(where) != n:
        raise AggregationError(f"{len(where)} label spaces for {n} clients")
    at: dict[Hashable, list[int]] = {}
    for index, space in enumerate(where):
        at.setdefault(space, []).append(index)
    return at


def of_space(
    space: Hashable,
    spaces: Sequence[Hashable] | None,
    prints: Sequence[Tensors],
    labels: Sequence[int],
) -> list[int]:
    """Return the positions of those of one label space; without ``spaces`` all are of it.

    Raises:
        AggregationError: There are not as many fingerprints, labels and spaces.
    """
    where = list(spaces) if spaces is not None else [space] * len(labels)
    if not len(prints) == len(labels) == len(where):
        raise AggregationError(f"{len(prints)} fingerprints for {len(labels)} labels")
    return [index for index, own in enumerate(where) if own == space]


def reliabilities(prints: Prints) -> Float:
    """Return ``Distances.reliability`` of the clients of one label space."""
    n = len(prints)
    shared = Shared.of(prints)
    white = np.sqrt(shared.white(shared.variance[None], np.ones(1)))[0]
    found = np.full(n, np.nan)
    rows = prints.rows.sum(axis=1)
    sums = np.einsum("nhc,nhcp->ncp", prints.rows, prints.means)
    for index in range(n):
        rest = rows.sum(axis=0) - rows[index]
        both = (prints.rows[index] > 0).all(axis=0) & (rest > 0)
        if not both.any():
            continue
        centre = (sums.sum(axis=0) - sums[index])[both] / rest[both, None]
        gap = (prints.means[index][:, both] - centre) * white * np.sqrt(rows[index, both])[:, None]
        one, other = (half.ravel() for half in gap)
        size = np.linalg.norm(one) * np.linalg.norm(other)
        rho = float(np.maximum(one @ other / size, 0.0)) if size > 0 else 0.0
        found[index] = 2 * rho / (1 + rho)
    return found
