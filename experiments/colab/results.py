"""The notebook's finished experiments: read back, checked to be comparable, and their table."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from atlas_flwr.apps.resume import status_of
from atlas_flwr.errors import ResultError
from atlas_flwr.results.lines import clusters_line
from atlas_flwr.results.ranked import ranks_line
from atlas_flwr.results.store import RunResult, read_run
from atlas_flwr.results.writing import atomic_write
from experiments.real_training import run_directory

TITLES = {
    "exp1_standard_fl": "Standard FL",
    "exp2_lora_fl": "LoRA FL",
    "exp3_hetero_lora": "Hetero LoRA",
    "exp4_atlas": "ATLAS",
    "exp5_multitask": "Multi-task",
}
COLUMNS = (
    *("Experiment", "Task", "Model", "LoRA", "Rounds", "Final Accuracy", "Final Loss"),
    *("Time (min)", "Avg Memory (MB)", "Avg Comm (MB)"),
)
# What has to be equal for curves to share one axis.
LIKE = ("data", "run.clients", "run.rounds", "run.seed", "model.name", "model.max-length")

_KEYS = {"task_name", "model_name", "use_lora", "lora_rank", "num_rounds", "round_results"} | {
    *("final_accuracy", "final_loss", "total_time_minutes"),
}


@dataclass(frozen=True)
class Done:
    """One finished experiment.

    Attributes:
        name: Its file's name, such as ``exp4_atlas``.
        title: How plots call it.
        data: The JSON file.
        run: Its run directory, read back.
    """

    name: str
    title: str
    data: dict[str, Any]
    run: RunResult


def read_done(names: Sequence[str] = tuple(TITLES), out: str | Path = "results") -> list[Done]:
    """Read finished experiments, in order; those without a JSON file are left out.

    Raises:
        ResultError: There is none, one's file is broken or its run is gone, or two can't be
            compared: they differ in tasks, rows, clients, rounds, seed or model.
    """
    found = []
    for name in names:
        if (path := Path(out).expanduser() / f"{name}.json").exists():
            data = _told(path)
            title = TITLES.get(name, name)
            found.append(Done(name, title, data, read_run(run_directory(name, out))))
    if not found:
        raise ResultError(f"{out}: no experiment has ended there; run one first")
    first = found[0]
    for other in found[1:]:
        for key in LIKE:
            here, there = value_of(other.run, key), value_of(first.run, key)
            if here != there:
                raise ResultError(
                    f"{other.name}: {key} is {here}, but {there} in {first.name}; curves share an "
                    "axis only over the same tasks, rows, clients, rounds and seed"
                )
    return found


def _told(path: Path) -> dict[str, Any]:
    """Read an experiment's JSON file.

    Raises:
        ResultError: It is broken; its cell writes it again from the run directory.
    """
    mend = "run its cell again: it is written anew from the run directory"
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: can't be read ({error}); {mend}") from error
    if not isinstance(told, dict) or _KEYS - told.keys():
        raise ResultError(f"{path}: is not an experiment's file; {mend}")
    return told


def value_of(run: RunResult, key: str) -> Any:
    """Return the value of a dotted key of a run's config; None where it is absent."""
    node: Any = run.config
    for step in key.split("."):
        node = node.get(step)
    return node


# ------------------------------------------------------------------ the table


def write_summary(done: Sequence[Done], out: str | Path = "results") -> pd.DataFrame:
    """Write ``summary.csv``, a row for each experiment, and return it.

    Time covers all sessions of a run. Memory is the mean over rounds of the highest peak of a
    client, communication the mean over rounds of all bytes up and down; MB = 10⁶ bytes.
    """
    table = pd.DataFrame([_row(each) for each in done], columns=list(COLUMNS))
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, lineterminator="\n")
    Path(out).mkdir(parents=True, exist_ok=True)
    atomic_write(Path(out) / "summary.csv", buffer.getvalue())
    return table


def _row(each: Done) -> tuple[Any, ...]:
    data, ranks = each.data, each.data["lora_rank"]
    told = ", ".join(map(str, ranks)) if isinstance(ranks, list) else ranks
    rounds = pd.DataFrame(data["round_results"])
    return (
        *(each.title, data["task_name"], data["model_name"]),
        *(f"Yes ({told})" if data["use_lora"] else "No", data["num_rounds"]),
        *(data["final_accuracy"], data["final_loss"], data["total_time_minutes"]),
        *(mean_of(rounds["memory_mb"]), mean_of(rounds["communication_mb"])),
    )


def mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that were measured; of none, None."""
    there = [value for value in values if value is not None and not np.isnan(value)]
    return float(np.mean(there)) if there else None


# ------------------------------------------------------------------ what ATLAS found


def atlas_found(name: str = "exp4_atlas", out: str | Path = "results") -> list[Path]:
    """Print what ATLAS found (clusters, ranks) and return the pictures of it."""
    run = read_run(run_directory(name, out))
    print(clusters_line(run.clusters))
    print(run.clusters["why"])
    rows = run.clients[run.clients["phase"] == "final"]
    for cluster, group in rows.groupby("cluster"):
        who = ", ".join(
            f"client {p} ({t})" for p, t in zip(group.partition, group.task, strict=True)
        )
        print(f"  cluster {cluster}: {who}")
    if run.ranks:
        print(ranks_line(run.ranks))
    pictures = (run.path / "plots" / f"{p}.png" for p in ("similarity", "clusters", "ranks"))
    return [path for path in pictures if path.exists()]


def progress(names: Sequence[str] = tuple(TITLES), out: str | Path = "results") -> None:
    """Print where each experiment stands: finished, interrupted after some rounds, not begun."""
    for name in names:
        folder = run_directory(name, out)
        rounds, told = folder / "rounds.jsonl", "not begun"
        if (folder / "config.toml").exists():
            ended = len(rounds.read_text(encoding="utf-8").splitlines()) if rounds.exists() else 0
            finished = status_of(folder) == "completed"
            told = f"{'finished' if finished else 'interrupted'} after {ended} rounds"
        print(f"{TITLES.get(name, name):<14} {told}")
