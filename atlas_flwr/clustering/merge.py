"""Clusters by merging clients as long as a test finds no difference between them.

Every client starts alone. Of all pairs that the test can't tell apart, the pair that is surest to
be close is joined, its rows pooled, and measured again: noise shrinks as clusters grow, so what
single clients can't show, clusters can. What is left when all pairs differ are the clusters: one,
if nothing differs.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm  # type: ignore[import-untyped]

from atlas_flwr.clustering.choose import Choice
from atlas_flwr.clustering.partition import Labels
from atlas_flwr.clustering.spaces import Clustering, each_space
from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.distance import distances, of_space
from atlas_flwr.fingerprint.pairs import Shared, compare, compare_one, score
from atlas_flwr.fingerprint.prints import Prints, read
from atlas_flwr.fingerprint.sketch import Float
from atlas_flwr.types import Tensors

LEAST = 0.01
FEW = 8

_SURE = 2.0  # errors added to an effect before the smallest is taken
_NO_BOUND = 1e300  # where nothing can be compared: last of all


@dataclass(frozen=True)
class Merging(Choice):
    """How the clients of one label space were merged.

    ``scores`` are the z between the two clusters that would be joined next, by number of clusters,
    and ``threshold`` what it must exceed for them to stay apart.

    Attributes:
        z: Between single clients, one row a client.
        reliabilities: Of each client (``distance.Distances``); None where it can't be told.
        marked: Clients, by position, with fewer than 8 rows in some class: they are placed by the
            parts they have.
        steps: The pairs joined, in order, each by one member's position.
    """

    z: tuple[tuple[float, ...], ...] = ()
    reliabilities: tuple[float | None, ...] = ()
    marked: tuple[int, ...] = ()
    steps: tuple[tuple[int, int], ...] = ()


def merge_test(
    prints: Sequence[Tensors],
    spaces: Sequence[Hashable] | None = None,
    k: int | None = None,
    *,
    threshold: float | None = None,
    least: float = LEAST,
    counted: bool = True,
) -> Clustering:
    """Cluster clients by their fingerprints; each label space apart, in as many as differ.

    Args:
        prints: One fingerprint a client (``fingerprint.summary``).
        spaces: Label space of each; clients of different spaces are never joined. None: one.
        k: Clusters in each label space; None lets the test stop.
        threshold: Clusters further apart than this z are different. None: ``threshold_for`` the
            space's number of clients.
        least: Clusters closer than this are one however sure their difference is: real clients of
            one task are never exactly alike. In squared deviations inside classes, the mean over
            features; 0.01 is a difference of a tenth of a deviation in each.
        counted: Whether the fingerprints tell rows. Under noise they tell what their means are
            worth, and nobody is marked for having few.

    Raises:
        AggregationError: Fingerprints of one space don't fit each other, lengths differ, or a space
            has fewer clients than k.
    """
    apart = distances(prints, spaces)

    def one(at: list[int]) -> tuple[Sequence[int], Merging]:
        limit = threshold_for(len(at)) if threshold is None else threshold
        tree = _Tree(read([prints[index] for index in at]), limit, least)
        found, choice = tree.cut(k)
        known = [float(value) for value in apart.reliability[at]]
        told = [value for value in known if not np.isnan(value)]
        return found.tolist(), replace(
            choice,
            z=tuple(tuple(map(float, row)) for row in apart.z[np.ix_(at, at)]),
            reliability=float(np.mean(told)) if told else None,
            reliabilities=tuple(None if np.isnan(value) else value for value in known),
            marked=tuple(at[index] for index in tree.few()) if counted else (),
            steps=tuple((at[first], at[second]) for first, second in choice.steps),
        )

    return each_space(len(prints), spaces, one)


def threshold_for(n: int) -> float:
    """Return the z that clusters of n clients of one task exceed in at most one draw of a hundred.

    z is about standard normal for two clients of one task. For clusters it grows with their number,
    for they were joined by how close they seemed: ``3 + 0.7 ln n`` bounds the 99th percentile of
    the largest z on the way to one cluster, by simulation (normal data, 4 to 100 clients of 64
    rows: 3.6 at 4, 4.2 at 12, 5.1 at 30 and 60).
    """
    return 3.0 + 0.7 * math.log(max(n, 1))


class _Tree:
    """The merges of one label space, first to last."""

    def __init__(self, prints: Prints, threshold: float, least: float) -> None:
        self._single = prints
        self._prints = prints.take(range(len(prints)))
        self._alive = list(range(len(prints)))
        self._threshold, self._least = threshold, least
        self._shared = Shared.of(prints)
        self._effect, self._error, self._how = compare(prints, self._shared)
        self._z = score(self._effect, self._error)

    def few(self) -> list[int]:
        """Return the clients with fewer than ``FEW`` rows in some class."""
        rows = self._single.rows.sum(axis=1).min(axis=1)
        return [int(index) for index in np.flatnonzero(rows < FEW - 0.5)]

    def cut(self, k: int | None) -> tuple[Labels, Merging]:
        """Merge to the end, and cut where the test stopped or at k clusters."""
        n = len(self._single)
        if k is not None and not 1 <= k <= n:
            raise AggregationError(f"{n} clients of one label space can't form {k} clusters")
        labels = np.arange(n)
        cuts, scores, stop = {n: labels}, {}, 1
        steps: list[tuple[int, int]] = []
        while (left := len(self._alive)) > 1:
            one, other, z, different = self._next()
            scores[left] = z
            stop = max(stop, left) if different else stop
            steps.append((one, other))
            self._join(one, other)
            labels = np.where(labels == other, one, labels)
            cuts[left - 1] = labels
        size = stop if k is None else k
        found = np.unique(cuts[size], return_inverse=True)[1].astype(np.int64)
        why = self._why(size, scores) if k is None else f"{k} clusters were asked for."
        p = float(norm.sf(scores[size])) if size in scores else None
        limit = self._threshold if k is None else None
        choice = Merging(0, (), size, scores, limit, p, why=why, steps=tuple(steps[: n - size]))
        return found, choice

    def _next(self) -> tuple[int, int, float, bool]:
        """Return the pair to join next, its z, and whether the test finds them different."""
        pair = self._pair()
        one, other = pair or self._closest()
        return one, other, float(self._z[one, other]), pair is None

    def _pair(self) -> tuple[int, int] | None:
        """Return the pair of clusters that is surest to be close, None if all are different."""
        one, other = self._pairs()
        z, effect, error = (m[one, other] for m in (self._z, self._effect, self._error))
        alike = _alike(z, effect, self._threshold, self._least)
        if not alike.any():
            return None
        bound = np.where(np.isfinite(error), effect + _SURE * error, _NO_BOUND)
        best = int(np.argmin(np.where(alike, bound, np.inf)))
        return int(one[best]), int(other[best])

    def _closest(self) -> tuple[int, int]:
        """Return the pair of smallest z, for the record's sake: it is different."""
        one, other = self._pairs()
        best = int(np.argmin(self._z[one, other]))
        return int(one[best]), int(other[best])

    def _pairs(self) -> tuple[Labels, Labels]:
        alive = np.array(self._alive)
        one, other = np.triu_indices(len(alive), 1)
        return alive[one], alive[other]

    def _join(self, one: int, other: int) -> None:
        """Pool two clusters and compare the result with the others."""
        self._prints.join(one, other)
        self._alive.remove(other)
        rest = np.array([index for index in self._alive if index != one], np.int64)
        row = compare_one(self._prints, one, rest, self._shared)
        for matrix, values in zip(
            (self._effect, self._error, self._how, self._z), (*row, score(*row[:2])), strict=True
        ):
            matrix[one, rest] = matrix[rest, one] = values

    def _why(self, size: int, scores: dict[int, float]) -> str:
        n = len(self._single)
        if n == 1:
            return "One client: one cluster."
        if size == 1:
            most = max(scores.values())
            if most > self._threshold:
                return f"One cluster: what differs (z = {most:.1f}) is less than {self._least:g}."
            return f"One cluster: the largest z, {most:.1f}, is no more than {self._threshold:.1f}."
        least = scores[size]
        return (
            f"{size} clusters: the closest two differ by z = {least:.1f} > {self._threshold:.1f}."
        )


def _alike(z: Float, effect: Float, threshold: float, least: float) -> NDArray[np.bool_]:
    """Tell which pairs the test can't tell apart, or finds too close to matter."""
    return (z <= threshold) | (effect <= least)


def place(
    new: Tensors,
    prints: Sequence[Tensors],
    labels: Sequence[int],
    *,
    space: Hashable = 0,
    spaces: Sequence[Hashable] | None = None,
    threshold: float | None = None,
    least: float = LEAST,
) -> int:
    """Return the cluster of a client that came later: the closest, each measured as a whole.

    By the rule of ``merge_test``: of the clusters that the test can't tell it from, or that are too
    close to matter, the one that is surest to be close; of clusters that all differ, the one of the
    smallest z.

    Args:
        new: Its fingerprint.
        prints: The fingerprints that were clustered.
        labels: Their clusters.
        space: Its label space.
        spaces: Their label spaces; only clusters of its own are considered. None: all are one.
        threshold: A client further than this z from every cluster is one of its own. None: never.
        least: Unless it is closer than this to one, as in ``merge_test``.

    Returns:
        A label; a new one, the highest plus 1, where no cluster will do.

    Raises:
        AggregationError: Fingerprints don't fit each other, or lengths differ.
    """
    at = of_space(space, spaces, prints, labels)
    fresh = max(labels, default=-1) + 1
    if not at:
        return fresh
    pooled = read([new, *(prints[index] for index in at)])
    shared = Shared.of(pooled)
    first: dict[int, int] = {}
    for position, index in enumerate(at, 1):
        if (kept := first.setdefault(labels[index], position)) != position:
            pooled.join(kept, position)
    known = list(first)
    effect, error, _ = compare_one(pooled, 0, np.array(list(first.values())), shared)
    z = score(effect, error)
    limit = threshold_for(len(at)) if threshold is None else threshold
    alike = _alike(z, effect, limit, least)
    if not alike.any():
        return known[int(np.argmin(z))] if threshold is None else fresh
    return known[int(np.argmin(np.where(alike, effect + _SURE * error, np.inf)))]
