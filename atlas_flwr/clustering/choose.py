"""The choice of a number of clusters: by silhouette, against clients that have no clusters."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np

from atlas_flwr.clustering import null
from atlas_flwr.clustering.partition import (
    Float,
    Labels,
    Method,
    cuts,
    distances,
    distinct,
    silhouette,
)
from atlas_flwr.errors import AggregationError
from atlas_flwr.seeding import rng_for, seed_for


@dataclass(frozen=True)
class Choice:
    """How the number of clusters was chosen in one label space.

    Attributes:
        space: The label space, as the caller names it.
        members: Its clients, by their position.
        k: The clusters found among them.
        scores: Silhouettes by number of clusters; of one cluster there is none.
        threshold: What the best silhouette had to exceed; None where nothing was tested.
        p_value: How often clients without clusters score as well; None where nothing was tested.
        reliability: The share of the variance between clients that is not noise, by their halves.
        why: One sentence for the record.
    """

    space: Hashable
    members: tuple[int, ...]
    k: int
    scores: Mapping[int, float] = field(default_factory=dict)
    threshold: float | None = None
    p_value: float | None = None
    reliability: float | None = None
    why: str = ""

    def among(self, members: Sequence[int], space: Hashable, *, named: bool) -> Self:
        """Return the choice as that of one label space among several.

        Args:
            members: The space's clients, by their position.
            space: The label space.
            named: Whether its sentence names it: spaces were told apart.
        """
        why = self.why
        if named:
            why = f"Of clients with {space} labels, {why[:1].lower()}{why[1:]}"
        return replace(self, space=space, members=tuple(members), why=why)


@dataclass(frozen=True)
class Group:
    """The clients of one label space, to be clustered; arguments as in ``cluster``."""

    similarity: Float
    halves: Float | None
    method: Method
    seed: int
    level: float | None
    most: int
    draws: int

    def given(self, k: int) -> tuple[Labels, Choice]:
        """Cut into k clusters, untested."""
        n = len(self.similarity)
        if not 1 <= k <= n:
            raise AggregationError(f"{n} clients of one label space can't form {k} clusters")
        if k in (1, n):
            plain = np.arange(n) if k == n else np.zeros(n, np.int64)
            return plain, Choice(0, (), k, why=f"{k} clusters were asked for.")
        values, axes = null.centred_axes(self.similarity)
        points = axes * np.sqrt(values)
        if (different := distinct(distances(points))) < k:
            raise AggregationError(f"{different} different fingerprint(s) can't form {k} clusters")
        labels, scores = self._scored(points, range(k, k + 1))
        return labels[k], Choice(0, (), k, scores, why=f"{k} clusters were asked for.")

    def chosen(self) -> tuple[Labels, Choice]:
        """Cut into the number of clusters that the data show."""
        n = len(self.similarity)
        one = np.zeros(n, np.int64)
        if n < 3:
            return one, Choice(0, (), 1, why=f"{n} client(s) can't show clusters: one cluster.")
        reliability, doubt = None, 0.0
        if self.halves is not None:
            reliability, doubt = null.excess(self.halves, self.draws, self._rng("halves"))
        if self.level is not None and doubt > self.level:
            why = f"Clients differ no more than halves of one client do (p = {doubt:.3g}):"
            choice = Choice(0, (), 1, {}, None, doubt, reliability, f"{why} one cluster.")
            return one, choice
        values, axes = null.centred_axes(self.similarity)
        floor = None if self.halves is None else null.half_noise(self.halves)
        values = null.denoised(values, floor)
        points = axes * np.sqrt(values)
        ks = range(2, min(n - 1, self.most, distinct(distances(points))) + 1)
        if not ks:
            why = "All fingerprints are alike: one cluster."
            return one, Choice(0, (), 1, reliability=reliability, why=why)
        labels, scores = self._scored(points, ks)
        best = max(scores, key=lambda k: scores[k])  # of equals the fewest
        threshold, p = self._tested(values, scores[best])
        found = threshold is None or scores[best] > threshold
        why = _why(scores[best], best, threshold, found)
        choice = Choice(0, (), best if found else 1, scores, threshold, p, reliability, why)
        return (labels[best] if found else one), choice

    def _scored(self, points: Float, ks: range) -> tuple[dict[int, Labels], dict[int, float]]:
        d = distances(points)
        labels = dict(zip(ks, cuts(points, d, ks, self.method, self._seed), strict=True))
        return labels, {k: silhouette(d, own) for k, own in labels.items()}

    def _tested(self, values: Float, score: float) -> tuple[float | None, float | None]:
        """Return the threshold and the p-value of the best silhouette."""
        if self.level is None:
            return None, None
        ks = range(2, min(len(values), self.most) + 1)
        draws = null.rotations(values, self.draws, self._rng("rotations"))
        best = np.sort([max(self._scored(points, ks)[1].values()) for points in draws])[::-1]
        beyond = int(np.floor(self.level * (self.draws + 1) + 1e-9))  # draws that may be as good
        p = (1 + np.count_nonzero(best >= score)) / (1 + self.draws)
        return float(best[beyond - 1]), float(p)

    @property
    def _seed(self) -> int:
        return seed_for(self.seed, "clustering")

    def _rng(self, role: str) -> np.random.Generator:
        return rng_for(self.seed, f"clustering.{role}")


def _why(score: float, k: int, threshold: float | None, found: bool) -> str:
    """Return the choice in one sentence."""
    if threshold is None:
        return f"{k} clusters have the best silhouette, {score:.2f}; untested."
    if found:
        return f"{k} clusters: silhouette {score:.2f}, without clusters at most {threshold:.2f}."
    reach = f"clients without clusters reach {threshold:.2f}"
    return f"One cluster: the best silhouette, {score:.2f} at {k}, is no more than {reach}."
