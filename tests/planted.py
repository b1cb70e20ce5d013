"""Clients with planted tasks: rows of Gaussian features around the means of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from atlas_flwr.fingerprint.summary import summarise
from atlas_flwr.types import Array, Tensors


@dataclass(frozen=True)
class World:
    """Where the classes of each task lie, and the noise around them.

    Noise is correlated: a few directions hold most of it, as in the features of a real encoder.
    """

    means: Array  # (tasks, classes, d)
    mixing: Array  # (d, d): noise is a standard normal row times this

    @property
    def variance(self) -> Array:
        return (self.mixing**2).sum(axis=0)

    def rows(self, task: int, counts: Sequence[int], rng: np.random.Generator):
        labels = np.repeat(np.arange(len(counts)), counts)
        noise = rng.standard_normal((len(labels), len(self.mixing))) @ self.mixing
        return self.means[task, labels] + noise, labels


def world(
    seed: int = 0,
    tasks: int = 4,
    classes: int = 2,
    d: int = 64,
    *,
    apart: float = 0.35,
    between: float = 0.15,
) -> World:
    """Return tasks whose means differ by ``apart`` deviations a feature, classes by ``between``."""
    rng = np.random.default_rng(seed)
    spectrum = 1.0 / np.sqrt(1.0 + np.arange(d) / 4)
    turn, _ = np.linalg.qr(rng.standard_normal((d, d)))
    mixing = spectrum[:, None] * turn * rng.uniform(0.5, 2.0, d)
    spread = np.sqrt((mixing**2).sum(axis=0))
    domain = apart / np.sqrt(2) * rng.standard_normal((tasks, 1, d))
    odd = between / np.sqrt(2) * rng.standard_normal((tasks, classes, d))
    return World(3.0 + spread * (domain + odd), mixing)


def flipped(plain: World, task: int) -> World:
    """Return the world with one more task: the texts of another, its two labels exchanged."""
    return World(np.concatenate([plain.means, plain.means[task : task + 1, ::-1]]), plain.mixing)


def prints_of(
    plain: World, clients: Sequence[tuple[int, Sequence[int]]], seed: int = 0, **options: object
) -> list[Tensors]:
    """Return the fingerprint of each ``(task, rows of each class)``."""
    rng = np.random.default_rng([seed, 7])
    found = []
    for task, counts in clients:
        x, y = plain.rows(task, counts, rng)
        found.append(summarise(x, y, len(counts), seed=0, rng=rng, **options))
    return found


def skewed(
    tasks: Sequence[int], each: int, rows: int, alpha: float, seed: int, classes: int = 2
) -> list[tuple[int, list[int]]]:
    """Return clients whose label mixes are draws of a Dirichlet distribution."""
    rng = np.random.default_rng([seed, 3])
    return [
        (task, rng.multinomial(rows, rng.dirichlet([alpha] * classes)).tolist())
        for task in tasks
        for _ in range(each)
    ]
