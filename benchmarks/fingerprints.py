"""``python -m benchmarks.fingerprints``: which fingerprints and clusterings find the tasks of GLUE.

Clients are dealt rows of real tasks; nothing is trained. Features are the mean last hidden state of
the seeded model, computed once (``--features`` keeps them). The number of clusters is not given.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import adjusted_rand_score

from atlas_flwr.clustering.cluster import cluster
from atlas_flwr.clustering.compared import by_angles, by_silhouette
from atlas_flwr.clustering.merge import merge_test
from atlas_flwr.fingerprint.subspace import subspace
from atlas_flwr.fingerprint.summary import summarise
from atlas_flwr.types import Array, Tensors
from benchmarks.task_clients import (
    SETTINGS,
    TASKS,
    Client,
    Features,
    Setting,
    deal,
    features_of,
    keep,
    kept,
)

ENOUGH = 8
TUNED = 195.0  # degrees: between most pairs of one task and most of two, which nobody knows before
Labels = Sequence[int]


# ------------------------------------------------------------------ methods


def class_means(clients: Sequence[Client], seed: int) -> list[Tensors]:
    """Return the fingerprints that travel."""
    drawn = [np.random.default_rng([seed, index]) for index in range(len(clients))]
    pairs = zip(clients, drawn, strict=True)
    return [summarise(c.features, c.labels, 2, seed=seed, rng=rng) for c, rng in pairs]


def embeddings(clients: Sequence[Client], seed: int) -> list[Tensors]:
    """Return fingerprints without classes."""
    plain = [Client(c.task, c.features, np.zeros_like(c.labels)) for c in clients]
    drawn = [np.random.default_rng([seed, index]) for index in range(len(clients))]
    pairs = zip(plain, drawn, strict=True)
    return [summarise(c.features, c.labels, 1, seed=seed, rng=rng) for c, rng in pairs]


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


def subspaces(clients: Sequence[Client], seed: int, classes: int = 1) -> list[Tensors]:
    """Return what ``embedding_cluster`` compares: three directions of all rows or each class."""
    return [subspace(c.features, c.labels, classes, seed=seed) for c in clients]


def head_gradient(clients: Sequence[Client], seed: int) -> Labels:
    """Cluster the mean gradient of a fresh head, ``mean((p − y) x)`` at p = ½."""
    halves: tuple[list[Array], list[Array]] = [], []
    for index, c in enumerate(clients):
        order = np.random.default_rng([seed, index]).permutation(len(c.labels))
        for h in (0, 1):
            at = order[h::2]
            halves[h].append((0.5 - c.labels[at]) @ c.features[at] / len(at))
    one, other = (np.stack(half) for half in halves)
    return cluster((one + other) / 2, halves=(one, other), seed=seed).labels


METHODS: dict[str, Callable[[Sequence[Client], int], Labels]] = {
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
    "class subspaces, silhouette": lambda c, s: by_angles(subspaces(c, s, 2), seed=s).labels,
    "class subspaces, smallest angle, silhouette": lambda c, s: (
        by_angles(subspaces(c, s, 2), measure="smallest", seed=s).labels
    ),
    "mean gradient of the head, silhouette": head_gradient,
}


# ------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Result:
    """One method in one setting: a number for each seed."""

    setting: Setting
    method: str
    ari: list[float]
    ari_enough: list[float]
    k: list[int]
    seconds: float

    @property
    def row(self) -> dict[str, object]:
        """Return one line of the table; `enough`: clients with 8 rows of each class alone."""
        s, true = self.setting, len(set(self.setting.tasks))
        return {
            "setting": s.name,
            "clients": s.each * len(s.tasks),
            "rows": s.rows,
            "alpha": "inf" if s.alpha is None else s.alpha,
            "method": self.method,
            "seeds": len(self.ari),
            "ari_mean": round(float(np.mean(self.ari)), 3),
            "ari_min": round(min(self.ari), 3),
            "ari_mean_enough": round(float(np.mean(self.ari_enough)), 3),
            "ari_min_enough": round(min(self.ari_enough), 3),
            "tasks": true,
            "k_mean": round(float(np.mean(self.k)), 2),
            "k_right": round(float(np.mean(np.array(self.k) == true)), 3),
            "seconds": round(self.seconds, 3),
        }


def judge(setting: Setting, method: str, features: Features, seeds: Sequence[int]) -> Result:
    """Cluster one draw a seed and compare with the tasks, which the method never sees."""
    found: list[tuple[float, float, int]] = []
    spent = 0.0
    for seed in seeds:
        clients = deal(setting, features, seed)
        start = time.perf_counter()
        labels = np.array(METHODS[method](clients, seed))
        spent += time.perf_counter() - start
        tasks = np.array([c.task for c in clients])
        enough = np.array([np.bincount(c.labels, minlength=2).min() >= ENOUGH for c in clients])
        some = adjusted_rand_score(tasks[enough], labels[enough]) if enough.any() else np.nan
        found.append((adjusted_rand_score(tasks, labels), some, len(set(labels.tolist()))))
    ari, ari_enough, k = (list(values) for values in zip(*found, strict=True))
    told = [value for value in ari_enough if not np.isnan(value)] or [np.nan]
    return Result(setting, method, ari, told, k, spent / len(seeds))


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it as CSV."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fingerprints", description=__doc__)
    parser.add_argument("--glue", type=Path, help="folder with <task>/{train,validation}.parquet")
    parser.add_argument("--features", type=Path, help="folder that keeps the features")
    parser.add_argument("--rows", type=int, default=2400, help="training rows of each task")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--method", action="append", choices=list(METHODS), help="repeatable")
    parser.add_argument("--out", type=Path, help="CSV file; default: under benchmarks/out")
    args = parser.parse_args(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    if args.features and (args.features / f"{TASKS[-1]}.npz").is_file():
        features = kept(args.features)
    elif args.glue:
        features = features_of(args.glue.resolve(), args.rows)
        if args.features:
            keep(features, args.features)
    else:
        parser.error("--glue, or --features with what it wrote earlier, is needed")
    out = args.out or Path(__file__).parent / "out" / "fingerprints.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, object]] = []
    with out.open("w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] | None = None
        for setting in SETTINGS:
            for method in args.method or METHODS:
                row = judge(setting, method, features, range(args.seeds)).row
                writer = writer or csv.DictWriter(file, list(row))
                if not results:
                    writer.writeheader()
                writer.writerow(row)
                file.flush()
                results.append(row)
    show(results)
    return 0


def show(rows: Sequence[dict[str, object]]) -> None:
    """Print the table: mean and lowest ARI, clusters found against tasks."""
    columns = ("ari_mean", "ari_min", "ari_mean_enough", "ari_min_enough", "k_mean", "k_right")
    shown = Table(title="ARI against the tasks, the number of clusters not given")
    for heading in ("setting", "method", *columns):
        shown.add_column(heading)
    for row in rows:
        where = f"{row['setting']}, {row['clients']} x {row['rows']}, alpha {row['alpha']}"
        shown.add_row(where, str(row["method"]), *(str(row[c]) for c in columns))
    Console(width=160).print(shown)


if __name__ == "__main__":
    sys.exit(main())
