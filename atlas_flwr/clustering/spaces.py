"""Clients of different label spaces are never joined: each space is clustered by itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from atlas_flwr.clustering.choose import Choice
from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.distance import by_space


@dataclass(frozen=True)
class Clustering:
    """Which cluster each client is in.

    Attributes:
        labels: One label a client, from 0 in the order in which clusters first appear.
        choices: How each label space was clustered, in the order in which spaces first appear.
    """

    labels: tuple[int, ...]
    choices: tuple[Choice, ...]

    @property
    def k(self) -> int:
        """The number of clusters, over all label spaces."""
        return len(set(self.labels))

    @property
    def why(self) -> str:
        """One sentence a label space."""
        return " ".join(choice.why for choice in self.choices)


def each_space(
    n: int,
    spaces: Sequence[Hashable] | None,
    one: Callable[[list[int]], tuple[Sequence[int], Choice]],
) -> Clustering:
    """Cluster each label space by itself.

    Args:
        n: Clients.
        spaces: Label space of each client. None: all are of one.
        one: Clusters the clients at some positions, all of one space: their labels, from 0 to
            ``k − 1`` in any order, and how they were chosen.

    Raises:
        AggregationError: There is no client, or there are not as many spaces, or ``one`` refused.
    """
    if not n:
        raise AggregationError("no fingerprints to cluster")
    labels, choices, before = [0] * n, list[Choice](), 0
    for space, at in by_space(n, spaces).items():
        found, choice = one(at)
        for index, label in zip(at, found, strict=True):
            labels[index] = before + int(label)
        choices.append(choice.among(at, space, named=spaces is not None))
        before += choice.k
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return Clustering(tuple(number[label] for label in labels), tuple(choices))
