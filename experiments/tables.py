"""The tables of docs/atlas.md, from the committed rows: ``python -m experiments.tables``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from atlas_flwr.results.suites.rows import SuiteRun, read_suites

ROWS = Path(__file__).parent / "results" / "atlas_glue_tuned.csv"
NAMES = {
    "local_only": "`local_only`, the floor",
    "local_only_adjusted": "`local_only`, adjusted",
    "fedit": "`fedit`, heads per task",
    "fedit_adjusted": "`fedit`, adjusted",
    "cluster_fedavg": "`cluster_fedavg`",
    "cluster_fedavg_adjusted": "`cluster_fedavg`, adjusted",
    "cluster_fedavg_smallest_adjusted": "`cluster_fedavg` of rank 4, adjusted",
    "ifca": "`ifca`, told the number of tasks",
    "ifca_adjusted": "`ifca`, adjusted",
    "fl_tac": "`fl_tac`, told the number of tasks",
    "fl_tac_adjusted": "`fl_tac`, adjusted",
    "fedlease": "`fedlease`",
    "fedlease_adjusted": "`fedlease`, adjusted",
    "mira": "`mira`",
    "mira_adjusted": "`mira`, adjusted",
    "atlas_half_step": "`atlas`, η = 0.5",
    "atlas": "`atlas`",
    "atlas_own_heads": "`atlas`, η = 1, `head-eta` = 0",
    "atlas_half_step_adjusted": "`atlas`, η = 0.5, adjusted",
    "atlas_adjusted": "`atlas`, adjusted",
    "atlas_adjusted_to_cluster": "`atlas`, adjusted to the cluster",
    "atlas_cluster_mean": "`atlas_cluster_mean`, η = 1",
    "atlas_cluster_mean_adjusted": "`atlas_cluster_mean`, η = 1, adjusted",
    "atlas_cluster_mean_adjusted_to_cluster": "`atlas_cluster_mean`, adjusted to the cluster",
    "centralised": "`centralised`, one model a task, the ceiling",
}
COLUMNS = {
    "accuracy": "accuracy",
    "worst_client_accuracy": "worst client",
    "own_accuracy": "own slices",
    "worst_own_accuracy": "worst own slice",
    "own_loss": "loss on own slices",
}
TASKS = ("cola", "mrpc", "qnli", "sst2")


def table(setting: str, seeds: Sequence[int]) -> str:
    """Return a Markdown table of the labels that have all these seeds: means over them.

    Args:
        setting: The suite's setting.
        seeds: Their seeds; in brackets the accuracy of each, where there are several.
    """
    runs = [run for run in read_suites([ROWS]) if run.setting == setting]
    heads = ["", "rate", *COLUMNS.values(), *(f"{task} (MCC)" for task in TASKS), "MB up"]
    lines = [heads, ["---"] * len(heads)]
    for label, name in NAMES.items():
        own = {run.seed: run for run in runs if run.label == label}
        if set(seeds) <= own.keys():
            lines.append([name, *_cells([own[seed] for seed in seeds])])
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def _cells(runs: Sequence[SuiteRun]) -> list[str]:
    rate = f"{_mean(runs, 'learning_rate'):.0e}".replace("e-0", "e-")
    told = [f"{_mean(runs, key):.{2 if key == 'own_loss' else 3}f}" for key in COLUMNS]
    if len(runs) > 1:
        each = (f"{_mean([run], 'accuracy'):.3f}" for run in runs)
        told[0] += f" ({', '.join(each)})"
    tasks = [f"{_mean(runs, f'accuracy_{t}'):.3f} ({_mean(runs, f'mcc_{t}'):z.2f})" for t in TASKS]
    return [rate, *told, *tasks, f"{_mean(runs, 'bytes_up') / 1e6:.1f}"]


def _mean(runs: Sequence[SuiteRun], key: str) -> float:
    return fmean(float(run.values[key]) for run in runs)


def tables() -> list[str]:
    """Return the tables in the page's order."""
    return [
        table("iid", range(42, 48)),
        table("iid", (42, 43)),
        table("dirichlet", (42, 43, 44)),
        table("dirichlet", (42,)),
    ]


if __name__ == "__main__":
    print("\n".join(tables()))
