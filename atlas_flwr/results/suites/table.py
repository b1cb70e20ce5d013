"""A suite's finished runs as rows: ``results.csv``, and means over seeds for the terminal."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from atlas_flwr.results.csv_row import device_ranks
from atlas_flwr.results.series import show, show_error
from atlas_flwr.results.store import RunResult

MB = 1e6
_BY_TASK = ("accuracy", "f1", "mcc")  # f1 is label 1's, and no number unless there are two
# Of the last round; a run whose strategy has none leaves the field empty.
ERRORS = ("aggregation_error", "truncation_error", "compression_error", "effective_rank")
_BEFORE = (
    *("setting", "label", "strategy", "seed", "rounds", "learning_rate", "ranks", "precision"),
    *("accuracy", "worst_client_accuracy", "own_accuracy", "worst_own_accuracy"),
    *("loss", "own_loss"),
)
_AFTER = (
    *("bytes_up", "bytes_down", *ERRORS, "seconds", "peak_memory_mb", "status", "commit"),
    *("version", "path"),
)
Row = dict[str, Any]


def suite_row(run: RunResult, setting: str, label: str, path: str) -> Row:
    """Return a run's row: its summary's numbers, unrounded, and where they come from.

    ``accuracy`` is the mean over tasks on the whole evaluation sets, ``accuracy_<task>`` a task's,
    as ``f1_<task>`` and ``mcc_<task>`` are; ``own_accuracy`` is on the clients' own slices;
    ``commit`` ends in ``-dirty`` where the checkout had changes. An absent number is ``None``.

    Args:
        run: The finished run.
        setting: The suite's setting.
        label: The suite's entry.
        path: The run directory, relative to the suite's.
    """
    summary, config = run.summary, run.config
    final = summary["final"]
    last = summary["round_results"][-1] if summary["round_results"] else {}
    commit = run.provenance.get("commit")
    return {
        "setting": setting,
        "label": label,
        "strategy": summary["strategy"],
        "seed": summary["seed"],
        "rounds": summary["rounds_completed"],
        "learning_rate": config["train"]["learning-rate"],
        "ranks": _ranks(config),
        "precision": _precision(run),
        "accuracy": final["accuracy"],
        "worst_client_accuracy": final["worst_client_accuracy"],
        "own_accuracy": final["own"]["accuracy"],
        "worst_own_accuracy": final["own"]["worst_client_accuracy"],
        "loss": final["loss"],
        "own_loss": final["own"]["loss"],
        **{
            f"{metric}_{task}": scores.get(metric)
            for metric in _BY_TASK
            for task, scores in final["by_task"].items()
        },
        "bytes_up": summary["bytes"]["up"],
        "bytes_down": summary["bytes"]["down"],
        **{name: largest(last.get(name)) for name in ERRORS},
        "seconds": summary["seconds"],
        "peak_memory_mb": summary["peak_memory_mb"],
        "status": summary["status"],
        "commit": f"{commit}-dirty" if commit and run.provenance.get("dirty") else commit,
        "version": run.provenance.get("versions", {}).get("atlas-flwr"),
        "path": path,
    }


def largest(value: Any) -> float | None:
    """Return a number, or the largest of a mapping's or a list's; of nothing, ``None``.

    >>> largest({"2": 0.5, "4": 0.1}), largest(0.25), largest({}), largest(None)
    (0.5, 0.25, None, None)
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return max((inner for item in value if (inner := largest(item)) is not None), default=None)
    return None if value is None else float(value)


def suite_csv(rows: Sequence[Row]) -> str:
    """Return ``results.csv``: one line a run, with columns for every task that a run has."""
    plain = {*_BEFORE, *_AFTER}
    tasks = dict.fromkeys(key for row in rows for key in row if key not in plain)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, (*_BEFORE, *tasks, *_AFTER), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def suite_table(rows: Sequence[Row]) -> Table:
    """Return a line for each label of each setting: means over seeds, and the accuracy's spread."""
    caption = (
        "Means over n seeds; ± is the sample standard deviation, where n is 2 or more. worst: the "
        "lowest accuracy of a client; error: the aggregation error of the last round."
    )
    table = Table(caption=caption, caption_justify="left")
    table.add_column("strategy", overflow="fold", min_width=12)
    for name in ("n", "accuracy", "worst", "MB up", "MB down", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row["setting"], {}).setdefault(row["label"], []).append(row)
    for setting, labels in groups.items():
        table.add_section()
        table.add_row(Text(setting, style="bold"))
        for label, runs in labels.items():
            cells = (
                str(len(runs)),
                spread(row["accuracy"] for row in runs),
                show(_mean(row["worst_client_accuracy"] for row in runs), 4),
                *(
                    show(_mean(row[key] / MB for row in runs), 2)
                    for key in ("bytes_up", "bytes_down")
                ),
                show_error(_mean(row["aggregation_error"] for row in runs)),
            )
            table.add_row(Text(label), *cells)
    return table


def spread(values: Iterable[float | None]) -> str:
    """Return mean ± sample standard deviation (n − 1) of the values there are.

    >>> spread([0.5, 0.7]), spread([0.5, None]), spread([])
    ('0.6000 ± 0.1414', '0.5000', '–')
    """
    there = [value for value in values if value is not None]
    mean = show(_mean(there), 4)
    return f"{mean} ± {statistics.stdev(there):.4f}" if len(there) > 1 else mean


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the plain mean of the values there are; of nothing, ``None``."""
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def _precision(run: RunResult) -> str | None:
    """Return the number formats that clients trained in, joined; ``None`` where no row says."""
    told = run.clients.get("precision", ())
    return "+".join(sorted({str(name) for name in told if isinstance(name, str)})) or None


def _ranks(config: Mapping[str, Any]) -> str:
    """Return the ranks dealt in turn, those of devices too; ``full`` without LoRA."""
    if config["model"]["adaptation"] == "full":
        return "full"
    if "devices" in config:
        return ",".join(device_ranks(config))
    rank = config["lora"]["rank"]
    return ",".join(map(str, rank if isinstance(rank, list) else [rank]))
