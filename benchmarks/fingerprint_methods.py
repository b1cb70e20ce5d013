"""The ways to find who has the same task that ``benchmarks.fingerprints`` compares."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from atlas_flwr.clustering.cluster import cluster
from atlas_flwr.clustering.compared import by_angles, by_silhouette
from atlas_flwr.clustering.merge import merge_test
from atlas_flwr.fingerprint.features import Kind
from atlas_flwr.fingerprint.subspace import subspace
from atlas_flwr.fingerprint.summary import summarise
from atlas_flwr.types import Array, Tensors
from benchmarks.task_clients import Client
from benchmarks.trunk_prints import Trunk

TUNED = 195.0  # degrees: between most pairs of one task and most of two, which nobody knows before
Labels = Sequence[int]
Find = Callable[[Sequence[Client], int], Labels]


def class_means(clients: Sequence[Client], seed: int) -> list[Tensors]:
    """Return the fingerprints that travel."""
    drawn = [np.random.default_rng([seed, index]) for index in range(len(clients))]
    pairs = zip(clients, drawn, strict=True)
    return [summarise(c.features, c.labels, c.classes, seed=seed, rng=rng) for c, rng in pairs]


def embeddings(clients: Sequence[Client], seed: int) -> list[Tensors]:
    """Return fingerprints without classes."""
    plain = [replace(c, labels=np.zeros_like(c.labels), classes=1) for c in clients]
    return class_means(plain, seed)


def part(prints: Sequence[Tensors], signs: tuple[float, float]) -> list[Tensors]:
    """Return the even ``(½, ½)`` or odd ``(−½, ½)`` part of class means, as one cell.

    A client without one of the classes has the other's mean as its even part and no odd part.
    """
    found: list[Tensors] = []
    for own in prints:
        rows = own["facts"][:-1].reshape(2, 2).astype(float)
        means = own["sketch"][:-1].reshape(2, 2, -1).astype(float)
        there = (rows > 0).all(axis=0)
        weights = np.where(there, signs, 0.0) if there.all() or min(signs) > 0 else np.zeros(2)
        weights = weights / max(np.abs(weights).sum(), 1e-300)
        with np.errstate(divide="ignore", invalid="ignore"):
            worth = 1 / np.where(weights != 0, weights**2 / rows, 0.0).sum(axis=1)
        worth = np.where(np.isfinite(worth), worth, 0.0)
        sketch = np.vstack([np.einsum("c,hcp->hp", weights, means), own["sketch"][-1:]])
        facts = np.append(worth, own["facts"][-1])
        found.append({"sketch": sketch, "facts": facts})
    return found


def subspaces(clients: Sequence[Client], seed: int, *, each: bool = False) -> list[Tensors]:
    """Return what ``embedding_cluster`` compares: three directions of all rows or each class."""
    return [subspace(c.features, c.labels, c.classes if each else 1, seed=seed) for c in clients]


def head_gradient(clients: Sequence[Client], seed: int) -> Labels:
    """Cluster the mean gradient of a fresh head, ``mean((p − y) xᵀ)`` at p = 1 / classes."""
    halves: tuple[list[Array], list[Array]] = [], []
    for index, c in enumerate(clients):
        order = np.random.default_rng([seed, index]).permutation(len(c.labels))
        for h in (0, 1):
            at = order[h::2]
            error = 1 / c.classes - np.eye(c.classes)[c.labels[at]]
            halves[h].append((error.T @ c.features[at] / len(at)).ravel())
    one, other = (np.stack(half) for half in halves)
    return cluster((one + other) / 2, halves=(one, other), seed=seed).labels


CLUSTERINGS: dict[str, Callable[[Sequence[Tensors], int], Labels]] = {
    "merge test": lambda prints, _: merge_test(prints).labels,
    "silhouette": lambda prints, seed: by_silhouette(prints, seed=seed).labels,
}
KINDS: dict[str, Kind] = {"mean gradient": "mean_gradient", "RMS gradient": "rms_gradient"}

METHODS: dict[str, Find] = {
    "class means, merge test": lambda c, s: merge_test(class_means(c, s)).labels,
    "even part, merge test": lambda c, s: merge_test(part(class_means(c, s), (0.5, 0.5))).labels,
    "odd part, merge test": lambda c, s: merge_test(part(class_means(c, s), (-0.5, 0.5))).labels,
    "class means, silhouette": lambda c, s: by_silhouette(class_means(c, s), seed=s).labels,
    "class means, k-means": lambda c, s: (
        by_silhouette(class_means(c, s), method="kmeans", seed=s).labels
    ),
    "embedding, merge test": lambda c, s: merge_test(embeddings(c, s)).labels,
    "embedding, silhouette": lambda c, s: by_silhouette(embeddings(c, s), seed=s).labels,
    "subspace, silhouette": lambda c, s: by_angles(subspaces(c, s), seed=s).labels,
    "subspace, smallest angle, silhouette": lambda c, s: (
        by_angles(subspaces(c, s), measure="smallest", seed=s).labels
    ),
    f"subspace, {TUNED:g} degrees": lambda c, s: by_angles(subspaces(c, s), threshold=TUNED).labels,
    "class subspaces, silhouette": lambda c, s: (
        by_angles(subspaces(c, s, each=True), seed=s).labels
    ),
    "class subspaces, smallest angle, silhouette": lambda c, s: (
        by_angles(subspaces(c, s, each=True), measure="smallest", seed=s).labels
    ),
    "mean gradient of the head, silhouette": head_gradient,
}
"""What needs no more than features of rows."""

OF_TWO = ("even part, merge test", "odd part, merge test")  # classes

TRUNK: dict[str, tuple[Kind, Callable[[Sequence[Tensors], int], Labels]]] = {
    f"{name} of the trunk, {how}": (kind, found)
    for name, kind in KINDS.items()
    for how, found in CLUSTERINGS.items()
}
"""What takes gradients of the model: minutes a draw, where the others take a second."""


def found_by(
    method: str, clients: Sequence[Client], seed: int, trunk: Callable[[], Trunk]
) -> Labels:
    """Return the clients' clusters.

    Args:
        method: Its name in ``METHODS`` or ``TRUNK``.
        clients: One draw.
        seed: Of the draw.
        trunk: Opens the model and its tables, where the method needs them.
    """
    if method in METHODS:
        return METHODS[method](clients, seed)
    kind, cluster_by = TRUNK[method]
    return cluster_by(trunk().prints(kind, clients, seed), seed)
