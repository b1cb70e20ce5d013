"""Which clients train one LoRA expert together: by their B, module by module (FedLEASE)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from atlas_flwr.clustering.partition import Float, cuts, distinct, silhouette
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Tensors

_ROUNDING = 1e-12  # what is left of 1 − 1


@dataclass(frozen=True)
class Allocation:
    """Which expert each client trains.

    Attributes:
        labels: One expert a client, from 0 in the order in which experts first appear.
        scores: Silhouettes by number of experts; of one expert there is none.
        why: One sentence for the record.
    """

    labels: tuple[int, ...]
    scores: Mapping[int, float] = field(default_factory=dict)
    why: str = ""

    @property
    def experts(self) -> int:
        """The number of experts."""
        return len(set(self.labels))


def distances(factors: Sequence[Tensors]) -> Float:
    """Return ``d(k, l) = mean over modules of 1 − cos(B_k, B_l)``, shape ``(n, n)``.

    The B of each module is flattened; every module counts the same, whatever its size or norm.
    A zero B, of who learnt nothing, is at distance 1 from all but another zero.

    Args:
        factors: Each client's B by module, of the same modules and shapes.

    Raises:
        AggregationError: Modules or shapes differ, or a value is not finite.
    """
    n = len(factors)
    total = np.zeros((n, n))
    for module in factors[0] if n else ():
        units = np.stack([_unit(own, module, factors[0]) for own in factors])
        zero = ~units.any(axis=1)
        total += np.clip(1 - units @ units.T, 0.0, 2.0) * ~np.logical_and.outer(zero, zero)
    mean = total / max(len(factors[0]) if n else 1, 1)
    mean = (mean + mean.T) / 2
    np.fill_diagonal(mean, 0.0)
    return np.where(mean < _ROUNDING, 0.0, mean)


def allocate(d: Float, most: int) -> Allocation:
    """Return the clients' experts: average linkage, as many experts as the best silhouette says.

    The numbers 2 to ``most`` are tried, of equally good ones the smallest is taken; one expert is
    never tried, as published, but it is what fewer than three clients, or clients that are all
    alike, or ``most = 1`` get.

    Args:
        d: Distances between the clients, ``(n, n)``, symmetric with a zero diagonal.
        most: Experts at most, at least 1.
    """
    n = len(d)
    ks = range(2, min(n - 1, most, distinct(d)) + 1)
    if not ks:
        return Allocation((0,) * n, why=f"{n} client(s), {most} expert(s) at most: one expert.")
    # Average linkage reads distances alone: there are no coordinates here.
    labels = dict(zip(ks, cuts(d, d, ks, "agglomerative", 0), strict=True))
    scores = {k: silhouette(d, own) for k, own in labels.items()}
    best = max(scores, key=lambda k: scores[k])
    number: dict[int, int] = {}
    ordered = tuple(number.setdefault(int(label), len(number)) for label in labels[best])
    why = f"{best} experts have the best silhouette of B, {scores[best]:.2f}, of 2 to {ks[-1]}."
    return Allocation(ordered, scores, why)


def nearest(new: Tensors, factors: Sequence[Tensors], labels: Sequence[int]) -> int:
    """Return the expert whose clients' B are nearest on average, the linkage that built them.

    Args:
        new: A late client's B by module.
        factors: The B of those who have an expert, at least one.
        labels: Their experts.

    Raises:
        AggregationError: As ``distances``.
    """
    d = distances([*factors, new])[-1, :-1]
    own = np.asarray(labels)
    return min(sorted(set(labels)), key=lambda label: float(d[own == label].mean()))


def _unit(own: Tensors, module: str, like: Tensors) -> Float:
    """Return a client's flattened B of one module at length 1; zero stays zero."""
    if odd := sorted(own.keys() ^ like.keys()):
        raise AggregationError(f"{odd[0]}: not every client sent this B")
    b = np.asarray(own[module], np.float64)
    if b.shape != like[module].shape:
        raise AggregationError(f"{module}: B {b.shape} differs from {like[module].shape}")
    if not np.isfinite(b).all():
        raise AggregationError(f"{module}: B holds values that are not finite")
    size = float(np.linalg.norm(b))
    return b.ravel() / size if size > 0 else np.zeros(b.size)
