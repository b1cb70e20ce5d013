"""The run as one page: `write_report` writes a self-contained ``report.html``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from atlas_flwr.results import page, quarantine
from atlas_flwr.results.figures import found_figures, placed, run_figures
from atlas_flwr.results.merges import last_merge
from atlas_flwr.results.origin import (
    SESSIONS,
    commands,
    origin,
    said_on_the_way,
    sessions,
    what_ran,
)
from atlas_flwr.results.plots import write_plots
from atlas_flwr.results.provenance import without_home
from atlas_flwr.results.quarantine import quarantined
from atlas_flwr.results.record import KINDS
from atlas_flwr.results.series import (
    count,
    show,
    show_bytes,
    show_error,
    show_seconds,
    tasks_of,
)
from atlas_flwr.results.store import REPORT, RunResult, read_run
from atlas_flwr.results.writing import atomic_write


@dataclass(frozen=True)
class Table:
    """A table as the page shows it: the first column names the row.

    Attributes:
        columns: Their names.
        rows: Cells as text, one per column.
        text: Names of the columns that hold words, ``long`` of those that may wrap.
        total: The last row is a sum or mean of the others.
        compact: Only as wide as its words.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: frozenset[str] = field(default=frozenset())
    long: frozenset[str] = field(default=frozenset())
    total: bool = False
    compact: bool = False


def publish(path: Path) -> RunResult:
    """Draw ``plots/*.png`` and ``report.html`` into a run directory that has ended.

    Raises:
        ResultError: The directory can't be read back.
    """
    run = read_run(path)
    write_plots(run, path / "plots")
    write_report(run)
    return run


def write_report(run: RunResult) -> Path:
    """Write ``report.html`` into the run's directory and return its path."""
    path = run.path / REPORT
    atomic_write(path, render(page.REPORT, **_content(run)))
    return path


def render(template: str, **content: Any) -> str:
    """Fill a template of `page`; all that is not our own markup is escaped.

    Raises:
        jinja2.UndefinedError: The template names something that was not given.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    # A control character in a name would make the page ill-formed.
    text = environment.from_string(template).render(css=Markup(page.CSS), **content)
    return "".join(c for c in text if c >= " " or c in "\n\t")


def _content(run: RunResult) -> dict[str, Any]:
    why, notes = said_on_the_way(run)
    return {
        "title": run.summary["experiment"],
        "status": run.summary["status"],
        "lead": lead(run),
        "why": why,
        "ran": what_ran(run),
        "facts": _facts(run),
        "figures": placed(run_figures(run)),
        "found": placed(found_figures(run)),
        "tasks": task_table(run.summary["final"]),
        "merge": merge_table(run.rounds),
        "clients": _client_table(run),
        "quarantine": _quarantine(run.clients),
        "failures": _failures(run.clients),
        "kinds": _kind_table(run),
        "notes": notes,
        "commands": commands(run),
        "config": without_home(run.config_text),
        "sessions": Table(SESSIONS, sessions(run), frozenset(SESSIONS), frozenset(SESSIONS[2:])),
        "origin": origin(run),
    }


def lead(run: RunResult) -> str:
    """Return one sentence on what ran."""
    s, clients = run.summary, run.config.get("run", {}).get("clients")
    clients = clients or run.clients["partition"].nunique()
    tasks = tasks_of(run)
    return (
        f"{s['strategy']} on {without_home(str(s['model']))}: "
        f"{count(clients, 'client')}, {count(len(tasks), 'task')} ({', '.join(tasks)}), "
        f"{count(s['rounds_completed'], 'round')}, {s['engine']} engine, seed {s['seed']}."
    )


def _facts(run: RunResult) -> list[dict[str, str]]:
    s = run.summary
    final, moved = s["final"], s["bytes"]
    planned = run.config.get("run", {}).get("rounds", s["rounds_completed"])
    traffic = f"{show_bytes(moved['up'])} up, {show_bytes(moved['down'])} down"
    memory = s["peak_memory_mb"]
    went = f"{s['rounds_completed']} of {count(planned, 'round')}"
    if again := run.provenance.get("resumed"):
        went += f", in {len(again) + 1} sessions"
    return [
        _fact("Final accuracy", show(final["accuracy"]), "mean over tasks, whole evaluation sets"),
        _fact("Worst client", show(final["worst_client_accuracy"]), "on its task's whole set"),
        _fact("Moved", show_bytes(moved["up"] + moved["down"]), traffic),
        _fact("Time", show_seconds(s["seconds"]), went),
        _fact("Peak memory", "–" if memory is None else show_bytes(memory * 1e6), "of one process"),
    ]


def _fact(name: str, value: str, note: str) -> dict[str, str]:
    return {"name": name, "value": value, "note": note}


def task_table(final: Mapping[str, Any]) -> Table:
    """Return each task's final scores and, below, the means over tasks."""
    metrics = ("accuracy", "f1", "macro_f1", "mcc", "loss")
    own = final["own"]
    rows = [
        [
            task,
            *(show(scores[metric]) for metric in metrics),
            show(own["by_task"].get(task, {}).get("accuracy")),
        ]
        for task, scores in final["by_task"].items()
    ]
    if len(rows) > 1:
        overall = ["–" if m not in final else show(final[m]) for m in metrics]
        rows.append(["mean over tasks", *overall, show(own["accuracy"])])
    columns = ("task", "accuracy", "F1", "macro-F1", "MCC", "loss", "own rows")
    return Table(columns, rows, total=len(rows) > 1)


def merge_table(rounds: Sequence[Mapping[str, Any]]) -> Table:
    """Return the last round's measures of its merge; without rows if no round has any."""
    rows = [
        [name, show(value) if name == "effective rank" else show_error(value)]
        for name, value in last_merge(rounds).items()
    ]
    return Table(("measure", "last round"), rows, compact=True)


def _client_table(run: RunResult) -> Table:
    rows = []
    for partition, group in run.clients.groupby("partition", sort=True):
        trained = group[group["phase"] == "train"]
        rows.append(
            [
                str(partition),
                str(group["task"].iloc[0]),
                _last(group, "cluster", 0),
                _ranks(group),
                _last(trained, "num_examples", 0),
                _last(group[group["phase"] == "evaluate"], "accuracy"),
                _last(group[group["phase"] == "final"], "accuracy"),
                show_bytes(float(group["bytes_up"].fillna(0).sum())),
                show_bytes(float(group["bytes_down"].fillna(0).sum())),
                show_seconds(float(group["seconds"].sum())),
                _last(
                    group.sort_values("peak_memory_mb", na_position="first"), "peak_memory_mb", 0
                ),
            ]
        )
    columns = ("client", "task", "cluster", "ranks", "rows", "own rows", "whole set")
    more = ("up", "down", "time", "peak MB")
    empty = [i for i in (2, 3) if all(row[i] == "–" for row in rows)]
    keep = [i for i in range(len(columns + more)) if i not in empty]
    kept = [[row[i] for i in keep] for row in rows]
    return Table([(columns + more)[i] for i in keep], kept, frozenset({"task", "ranks"}))


def _last(rows: pd.DataFrame, column: str, digits: int = 3) -> str:
    """Return the last value there is."""
    values = rows[column].dropna()
    return show(float(values.iloc[-1]), digits) if len(values) else "–"


def _ranks(rows: pd.DataFrame) -> str:
    """Return the last ranks, those by module as their range."""
    values = rows["ranks"].dropna()
    if not len(values):
        return "–"
    numbers = [
        int(n) for n in pd.Series([values.iloc[-1]]).str.findall(r"\b(\d+)(?=[,}]|$)").iloc[0]
    ]
    return str(numbers[0]) if len(set(numbers)) == 1 else f"{min(numbers)}–{max(numbers)}"


def _quarantine(clients: pd.DataFrame) -> Table:
    rows = [[*cells, without_home(reason)] for *cells, reason in quarantined(clients)]
    words = frozenset({"task", "phase", "rounds", "reason"})
    return Table(quarantine.COLUMNS, rows, words, frozenset({"reason"}))


def _failures(clients: pd.DataFrame) -> Table:
    """Return what went wrong apart from answers that were refused, which have a table."""
    wrong = (clients["status"] != "ok") | clients["error"].notna()
    rows = clients[wrong & (clients["status"] != "rejected")]
    cells = [
        [*map(str, (r.partition, r.round, r.phase, r.status)), without_home(_said(r.error))]
        for r in rows.itertuples()
    ]
    text = frozenset({"phase", "status", "error"})
    return Table(("client", "round", "phase", "status", "error"), cells, text, frozenset({"error"}))


def _said(error: object) -> str:
    return error if isinstance(error, str) else "–"


def _kind_table(run: RunResult) -> Table:
    moved, rows = run.summary["bytes"], []
    for kind in KINDS:
        total = moved["by_kind"][kind]
        up = sum(r["by_kind_up"].get(kind, 0) for r in run.rounds)
        down = sum(r["by_kind_down"].get(kind, 0) for r in run.rounds)
        if total:
            rows.append([kind, *map(show_bytes, (up, down, total - up - down, total))])
    up, down = (sum(r[f"bytes_{way}"] for r in run.rounds) for way in ("up", "down"))
    total = moved["up"] + moved["down"]
    rows.append(["all", *map(show_bytes, (up, down, total - up - down, total))])
    columns = ("kind", "up, in rounds", "down, in rounds", "outside rounds", "total")
    return Table(columns, rows, total=True)
