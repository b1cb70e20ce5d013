"""The tables of README and docs/atlas.md, from committed rows: ``python -m experiments.tables``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev

from atlas_flwr.results.suites.rows import SuiteRun, read_suites

RESULTS = Path(__file__).parent / "results"
ROWS = RESULTS / "atlas_glue_gpu.csv"
ON_A_CPU = RESULTS / "atlas_glue_tuned.csv"
NAMES = {
    "local_only": "`local_only`, the floor",
    "atlas_no_laplacian": "`atlas_no_laplacian`, η = 0",
    "local_only_adjusted": "`local_only`, adjusted",
    "fedit": "`fedit`, heads per task",
    "fedit_adjusted": "`fedit`, adjusted",
    "cluster_fedavg": "`cluster_fedavg`",
    "cluster_fedavg_adjusted": "`cluster_fedavg`, adjusted",
    "cluster_fedavg_fitted": "`cluster_fedavg`, adjusted, offsets fitted",
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
    "atlas_informed": "`atlas`, adjusted, `weights` = information",
    "atlas_fitted": "`atlas`, adjusted, offsets fitted",
    "atlas_feedback": "`atlas`, error feedback",
    "atlas_ffa": "`atlas`, variant `ffa`",
    "atlas_held_back": "`atlas`, a fifth of the rows held back",
    "embedding_cluster": "`embedding_cluster`",
    "atlas_cluster_mean": "`atlas_cluster_mean`, η = 1",
    "atlas_cluster_mean_adjusted": "`atlas_cluster_mean`, η = 1, adjusted",
    "atlas_cluster_mean_adjusted_to_cluster": "`atlas_cluster_mean`, adjusted to the cluster",
    "atlas_one_cluster": "`atlas_one_cluster`",
    "atlas_one_cluster_mean": "`atlas_one_cluster`, η = 1",
    "random_cluster": "`random_cluster`",
    "random_cluster_mean": "`random_cluster`, η = 1",
    "atlas_uniform_rank": "`atlas_uniform_rank`",
    "atlas_random_ranks": "`atlas`, random ranks",
    "atlas_reversed_ranks": "`atlas`, reversed ranks",
    "atlas_auto": "`atlas`, η = auto",
    "cluster_fedavg_half": "`cluster_fedavg`, half of the clients",
    "atlas_half_follow": "`atlas`, half, `absent` = follow",
    "atlas_half_pull": "`atlas`, half, pull",
    "atlas_half_wait": "`atlas`, half, wait",
    "centralised": "`centralised`, the ceiling",
}
COLUMNS = {
    "accuracy": "accuracy",
    "worst_client_accuracy": "worst client",
    "own_accuracy": "own",
    "worst_own_accuracy": "worst own",
    "own_loss": "own loss",
}
TASKS = {"cola": "CoLA", "mrpc": "MRPC", "qnli": "QNLI", "sst2": "SST-2"}


def table(setting: str, seeds: Sequence[int], but: Sequence[int] = ()) -> str:
    """Return a Markdown table of the labels that have all these seeds: means over them.

    Args:
        setting: The suite's setting.
        seeds: Their seeds; where there are several, accuracy is told with its sample deviation.
        but: Leave out who has all of these seeds, ATLAS apart: another table has them.
    """
    return _rows([*COLUMNS.values(), "MB up"], setting, seeds, but, _scores)


def by_task(setting: str, seeds: Sequence[int], but: Sequence[int] = ()) -> str:
    """Return the same runs task by task: accuracy, with Matthews' correlation in brackets."""
    return _rows([*TASKS.values(), "MRPC, F1", "rate"], setting, seeds, but, _tasks)


OWN_SLICES = (
    *("local_only", "cluster_fedavg_adjusted", "cluster_fedavg_fitted"),
    *("atlas_adjusted", "atlas_fitted", "atlas_informed"),
)
"""What is compared on a CPU: offsets of own slices, and what clients count for."""


def own_slices(seeds: Sequence[int] = (42,)) -> str:
    """Return the table of ``OWN_SLICES`` under skewed labels, from the rows of a CPU."""
    runs = [run for run in read_suites([ON_A_CPU]) if run.label in OWN_SLICES]
    heads = [*COLUMNS.values(), "MB up"]
    return _rows(heads, "dirichlet", seeds, (), _scores, runs)


def _rows(
    heads: Sequence[str],
    setting: str,
    seeds: Sequence[int],
    but: Sequence[int],
    cells: Callable[[Sequence[SuiteRun]], list[str]],
    every: Sequence[SuiteRun] | None = None,
) -> str:
    runs = [run for run in every or read_suites([ROWS]) if run.setting == setting]
    lines = [["", *heads], ["---"] * (len(heads) + 1)]
    for label, name in NAMES.items():
        own = {run.seed: run for run in runs if run.label == label}
        elsewhere = bool(but) and set(but) <= own.keys() and label != "atlas"
        if set(seeds) <= own.keys() and not elsewhere:
            lines.append([name, *cells([own[seed] for seed in seeds])])
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def _scores(runs: Sequence[SuiteRun]) -> list[str]:
    told = [f"{_mean(runs, key):.{2 if key == 'own_loss' else 3}f}" for key in COLUMNS]
    if len(runs) > 1:
        told[0] += f"\u00a0±\u00a0{stdev(float(run.values['accuracy']) for run in runs):.3f}"
    return [*told, f"{_mean(runs, 'bytes_up') / 1e6:.1f}"]


def _tasks(runs: Sequence[SuiteRun]) -> list[str]:
    tasks = [f"{_mean(runs, f'accuracy_{t}'):.3f} ({_mean(runs, f'mcc_{t}'):z.2f})" for t in TASKS]
    return [*tasks, f"{_mean(runs, 'f1_mrpc'):.3f}", f"{_mean(runs, 'learning_rate'):g}"]


SUMMARY = {
    "each client alone (`local_only`)": ("local_only", "local_only"),
    "one mean a found cluster (`cluster_fedavg`)": ("cluster_fedavg", "cluster_fedavg_adjusted"),
    "`atlas`": ("atlas", "atlas_adjusted"),
    "all rows in one place (`centralised`)": ("centralised", "centralised"),
}
"""README's lines: what they are called, their labels under even and under skewed labels."""


def summary(seeds: Sequence[int] = range(42, 48)) -> str:
    """Return README's table: accuracy and that of the worst client, means over the seeds."""
    runs = {(run.setting, run.label, run.seed): run for run in read_suites([ROWS])}
    lines = [["", *["even labels", "worst client", "skewed labels", "worst client"]], ["---"] * 5]
    for name, labels in SUMMARY.items():
        cells = [name]
        for setting, label in zip(("iid", "dirichlet"), labels, strict=True):
            own = [runs[setting, label, seed] for seed in seeds]
            cells += [f"{_mean(own, key):.3f}" for key in ("accuracy", "worst_client_accuracy")]
        lines.append(cells)
    return "".join(f"| {' | '.join(line)} |\n".replace("|  |", "| |") for line in lines)


def _mean(runs: Sequence[SuiteRun], key: str) -> float:
    return fmean(float(run.values[key]) for run in runs)


def tables() -> list[str]:
    """Return the tables in the page's order."""
    six, three = range(42, 48), (42, 43, 44)
    return [
        *(table("iid", six), by_task("iid", six)),
        *(table("iid", three), by_task("iid", three)),
        *(table("iid", (42,), three), by_task("iid", (42,), three)),
        *(table("dirichlet", six), by_task("dirichlet", six)),
        *(table("dirichlet", three), by_task("dirichlet", three)),
        own_slices(),
    ]


if __name__ == "__main__":
    print("\n".join([summary(), *tables()]))
