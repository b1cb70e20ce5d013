"""The run's pictures as PNG files: accuracy, loss, merges, clients, bytes, memory by round."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from atlas_flwr.results.insights import insights
from atlas_flwr.results.merges import merge_figures
from atlas_flwr.results.plots_lines import DASHES, caption, draw_lines, finish, line, shown_label
from atlas_flwr.results.plots_maps import (
    INK,
    MARKERS,
    QUIET,
    draw_columns,
    draw_heat_map,
    draw_scatter,
    size_of,
)
from atlas_flwr.results.series import (
    PALETTE,
    client_accuracies,
    cumulative_mb,
    curve,
    kind_name,
    kinds_moved,
    peak_memory,
    tasks_of,
    thinned,
)
from atlas_flwr.results.shapes import Columns, HeatMap, LineFigure, Picture
from atlas_flwr.results.steps import spread_figures
from atlas_flwr.results.store import RunResult

STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e4e7eb",
    "text.color": INK,
    "text.parse_math": False,  # a '$' in a name is a '$'
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
}


def write_plots(run: RunResult, folder: Path) -> list[Path]:
    """Draw all pictures of a run into a folder and return their paths.

    Works for one round, one client and missing values; a picture without a value says so, and
    those of merges are left out where there is none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Axes, RunResult], None]] = {
        "accuracy": draw_accuracy,
        "loss": draw_loss,
        "clients": draw_clients,
        "bytes": draw_bytes,
        "memory": draw_memory,
    }
    paths = [picture(folder / f"{name}.png", draw, run) for name, draw in pictures.items()]
    shown = [*merge_figures(run.rounds), *spread_figures(run), *insights(run)]
    return [*paths, *(paint(found, folder, run) for found in shown)]


def paint(shown: Picture, folder: Path, run: RunResult) -> Path:
    """Draw a picture into its PNG file: what the page's chart of that title shows."""
    path = folder / f"{shown.name}.png"
    if isinstance(shown, LineFigure):
        return picture(path, partial(draw_lines, shown), run)

    def draw(axes: Axes, _run: RunResult) -> None:
        if isinstance(shown, HeatMap):
            draw_heat_map(shown, axes)
        elif isinstance(shown, Columns):
            draw_columns(shown, axes)
        else:
            draw_scatter(shown, axes)
        named = isinstance(shown, HeatMap) and any(g.name for g in shown.column_groups)
        axes.set_title(shown.title, pad=22 if named else 12)
        caption(axes, shown.caption)

    return picture(path, draw, run, size_of(shown))


def picture(
    path: Path,
    draw: Callable[[Axes, RunResult], None],
    run: RunResult,
    size: tuple[float, float] = (7.5, 4.5),
) -> Path:
    """Draw one pair of axes into a PNG file, its size in inches, at 160 dots per inch."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout=layout())
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        draw(axes, run)
        if not axes.has_data():
            axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center")
        save(figure, path)
    return path


def layout() -> ConstrainedLayoutEngine:
    """Return a layout that leaves air around titles and legends (inches)."""
    return ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG without the date, so that the same run gives the same file."""
    figure.savefig(path, dpi=160, metadata={"Software": None})


def draw_accuracy(axes: Axes, run: RunResult) -> None:
    """Accuracy by round on the clients' own validation slices: overall, per task, worst client."""
    _lines(axes, run, "accuracy")
    worst = curve(run.rounds, "worst_client_accuracy")
    line(axes, worst, "worst client", QUIET, "v", DASHES[2], width=1.5)
    axes.set_ylabel("accuracy")
    finish(axes, "Accuracy by round, clients' own validation rows")


def draw_loss(axes: Axes, run: RunResult) -> None:
    """Evaluation loss by round, overall and per task, with the training loss."""
    _lines(axes, run, "loss")
    line(axes, curve(run.rounds, "train_loss"), "training", QUIET, "v", DASHES[2], width=1.5)
    axes.set_ylabel("loss")
    finish(axes, "Loss by round, clients' own validation rows")


def draw_clients(axes: Axes, run: RunResult) -> None:
    """Each client's accuracy by round, and at the end on its task's whole evaluation set."""
    tasks, last = tasks_of(run), max((r["round"] for r in run.rounds), default=0)
    rounds = thinned([r["round"] for r in run.rounds])
    every = rounds[-1] - rounds[-2] if len(rounds) > 1 else 1
    step = 0.6 * every / max(len(tasks), 1)
    for index, task in enumerate(tasks):
        shift = (index - (len(tasks) - 1) / 2) * step
        color, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
        own = [
            (x, y) for x, _, y in client_accuracies(run.clients, task, "evaluate") if x in rounds
        ]
        final = [(last + every, y) for _, _, y in client_accuracies(run.clients, task, "final")]
        points = own + final
        for x in sorted({x for x, _ in points}):
            column = [y for at, y in points if at == x]
            axes.vlines(x + shift, min(column), max(column), color=color, alpha=0.35, lw=3)
        if points:
            axes.scatter(
                [x + shift for x, _ in points],
                [y for _, y in points],
                s=28,
                color=color,
                marker=marker,
                edgecolors="white",
                linewidths=0.5,
                label=shown_label(task),
                zorder=3,
            )
    axes.set_ylabel("accuracy")
    finish(axes, "Accuracy of each client: own rows, at the end the whole set")
    if (run.clients["phase"] == "final").any():
        axes.axvline(last + every / 2, color=QUIET, lw=1, ls=DASHES[2])
        axes.set_xticks([*rounds, last + every])
        axes.xaxis.set_major_formatter(FuncFormatter(_round_or_end(last, every)))


def draw_bytes(axes: Axes, run: RunResult) -> None:
    """MB so far by kind: client to server above the axis, server to client below."""
    rounds = [r["round"] for r in run.rounds]
    for direction, sign in (("up", 1), ("down", -1)):
        stacks = cumulative_mb(run.rounds, direction)
        floor = [0.0] * len(rounds)
        for index, kind in enumerate(kinds_moved(run.rounds)):
            heights = stacks.get(kind, [0.0] * len(rounds))
            axes.bar(
                rounds,
                [sign * height for height in heights],
                bottom=[sign * base for base in floor],
                width=0.72,
                color=PALETTE[index % len(PALETTE)],
                label=kind_name(run.rounds, kind) if sign > 0 else None,
            )
            floor = [base + height for base, height in zip(floor, heights, strict=True)]
    axes.axhline(0, color=INK, lw=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
    for height, text, side in (
        (0.97, "up, to the server", "top"),
        (0.03, "down, to clients", "bottom"),
    ):
        axes.text(0.02, height, text, va=side, color=QUIET, transform=axes.transAxes)
    axes.set_ylabel("MB so far")
    finish(axes, "Bytes moved, cumulative, by kind")


def draw_memory(axes: Axes, run: RunResult) -> None:
    """The highest peak a client measured, by phase and round, from 0: small steps stay small."""
    phases = peak_memory(run.clients)
    for index, (phase, points) in enumerate(phases.items()):
        line(axes, points, phase, PALETTE[index], MARKERS[index], DASHES[index % len(DASHES)])
    axes.set_ylabel("peak memory (MB)")
    if phases:
        axes.set_ylim(0, 1.15 * max(y for points in phases.values() for _, y in points))
    finish(axes, "Peak memory of a client, by phase")


def _lines(axes: Axes, run: RunResult, key: str) -> None:
    tasks = tasks_of(run)
    for index, task in enumerate(tasks if len(tasks) > 1 else ()):
        look = (PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)])
        line(
            axes,
            curve(run.rounds, key, task),
            task,
            *look,
            DASHES[(1 + index // len(PALETTE)) % len(DASHES)],
        )
    line(axes, curve(run.rounds, key), "all clients", INK, "o", "-", width=2.8)


def _round_or_end(last: int, every: int) -> Callable[[float, int], str]:
    """Return a tick formatter that calls the column after the last round "end"."""
    return lambda value, _: (
        "end" if value == last + every else f"{value:g}" if value <= last else ""
    )
