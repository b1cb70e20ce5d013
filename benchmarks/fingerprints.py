"""``python -m benchmarks.fingerprints``: which fingerprints and clusterings find the tasks.

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
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import adjusted_rand_score

from benchmarks.fingerprint_methods import METHODS, OF_TWO, TRUNK, found_by
from benchmarks.task_clients import (
    GLUE,
    SETTINGS,
    Features,
    Setting,
    deal,
    features_of,
    keep,
    kept,
)
from benchmarks.trunk_prints import Trunk

ENOUGH = 8


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


def judge(
    setting: Setting,
    method: str,
    features: Features,
    seeds: Sequence[int],
    trunk: Callable[[], Trunk],
) -> Result:
    """Cluster one draw a seed and compare with the tasks, which the method never sees."""
    found: list[tuple[float, float, int]] = []
    spent = 0.0
    for seed in seeds:
        clients = deal(setting, features, seed)
        start = time.perf_counter()
        labels = np.array(found_by(method, clients, seed, trunk))
        spent += time.perf_counter() - start
        tasks = np.array([c.task for c in clients])
        enough = np.array(
            [np.bincount(c.labels, minlength=c.classes).min() >= ENOUGH for c in clients]
        )
        some = adjusted_rand_score(tasks[enough], labels[enough]) if enough.any() else np.nan
        found.append((adjusted_rand_score(tasks, labels), some, len(set(labels.tolist()))))
    ari, ari_enough, k = (list(values) for values in zip(*found, strict=True))
    told = [value for value in ari_enough if not np.isnan(value)] or [np.nan]
    return Result(setting, method, ari, told, k, spent / len(seeds))


def gathered(
    names: Sequence[str], args: argparse.Namespace, parser: argparse.ArgumentParser
) -> Features:
    """Return the features of these tasks: those that were kept, and those computed now."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(1)
    features = kept(names, args.features) if args.features else {}
    missing = [name for name in names if name not in features]
    needed = set(names if set(args.method or ()) & set(TRUNK) else missing)
    if args.glue is None and needed & set(GLUE):
        parser.error("--glue, or --features with what it wrote earlier, is needed")
    if missing:
        new = features_of(missing, args.glue and args.glue.resolve(), args.rows)
        if args.features:
            keep(new, args.features)
        features |= new
    return features


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write it as CSV."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fingerprints", description=__doc__)
    parser.add_argument("--glue", type=Path, help="folder with <task>/{train,validation}.parquet")
    parser.add_argument("--features", type=Path, help="folder that keeps the features")
    parser.add_argument("--rows", type=int, default=2400, help="training rows of each task")
    parser.add_argument("--seeds", type=int, default=5)
    names = [*METHODS, *TRUNK]
    told = "repeatable; default: all but those of the trunk, which take minutes a draw"
    parser.add_argument("--method", action="append", choices=names, help=told)
    known = list(dict.fromkeys(s.name for s in SETTINGS))
    parser.add_argument("--setting", action="append", choices=known, help="repeatable")
    parser.add_argument("--rows-each", type=int, help="only settings of so many rows a client")
    parser.add_argument("--out", type=Path, help="CSV file; default: under benchmarks/out")
    args = parser.parse_args(argv)
    settings = [s for s in SETTINGS if not args.setting or s.name in args.setting]
    if args.rows_each:
        settings = [s for s in settings if s.rows == args.rows_each]
    sources = list(dict.fromkeys(name for s in settings for name in s.sources))
    features = gathered(sources, args, parser)
    trunk = cache(lambda: Trunk.open(sources, args.glue, args.rows))
    out = args.out or Path(__file__).parent / "out" / "fingerprints.csv"
    out.parent.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, object]] = []
    with out.open("w", newline="", encoding="utf-8") as file:
        writer: csv.DictWriter[str] | None = None
        for setting in settings:
            for method in args.method or METHODS:
                if setting.classes > 2 and method in OF_TWO:
                    continue
                row = judge(setting, method, features, range(args.seeds), trunk).row
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
