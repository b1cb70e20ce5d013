"""The run's pictures as PNG files: accuracy, loss, merges, clients, bytes, memory by round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from atlas_flwr.results.series import (
    PALETTE,
    MergeFigure,
    client_accuracies,
    cumulative_mb,
    curve,
    kinds_moved,
    merge_figures,
    peak_memory,
    tasks_of,
    thinned,
)
from atlas_flwr.results.store import RunResult

CROWD = 24  # points beyond which markers hide their line
INK, QUIET = "#1f2328", "#8a9099"
MARKERS, DASHES = "os^DvP", ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))
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
    for figure in merge_figures(run.rounds):
        pictures[figure.name] = partial(draw_merge, figure)
    return [picture(folder / f"{name}.png", draw, run) for name, draw in pictures.items()]


def picture(path: Path, draw: Callable[[Axes, RunResult], None], run: RunResult) -> Path:
    """Draw one pair of axes into a PNG file of 7.5 × 4.5 inches at 160 dots per inch."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 4.5), layout=layout())
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
    _line(axes, worst, "worst client", QUIET, "v", DASHES[2], width=1.5)
    axes.set_ylabel("accuracy")
    _finish(axes, "Accuracy by round, clients' own validation rows")


def draw_loss(axes: Axes, run: RunResult) -> None:
    """Evaluation loss by round, overall and per task, with the training loss."""
    _lines(axes, run, "loss")
    _line(axes, curve(run.rounds, "train_loss"), "training", QUIET, "v", DASHES[2], width=1.5)
    axes.set_ylabel("loss")
    _finish(axes, "Loss by round, clients' own validation rows")


def draw_clients(axes: Axes, run: RunResult) -> None:
    """Each client's accuracy by round, and at the end on its task's full validation set."""
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
    _finish(axes, "Accuracy of each client: own rows, at the end the full set")
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
                label=kind if sign > 0 else None,
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
    _finish(axes, "Bytes moved, cumulative, by kind")


def draw_memory(axes: Axes, run: RunResult) -> None:
    """The highest peak a client measured, by phase and round."""
    phases = peak_memory(run.clients)
    for index, (phase, points) in enumerate(phases.items()):
        _line(axes, points, phase, PALETTE[index], MARKERS[index], DASHES[index % len(DASHES)])
    axes.set_ylabel("peak memory (MB)")
    axes.margins(y=0.25)
    _finish(axes, "Peak memory of a client, by phase")


def draw_merge(figure: MergeFigure, axes: Axes, run: RunResult) -> None:
    """Errors of the merges by round: what the page's chart of that title shows."""
    colours = {"ink": INK, "quiet": QUIET} | {f"s{i}": c for i, c in enumerate(PALETTE)}
    axes.axhline(0, color=QUIET, lw=1)
    named = set()
    for s in figure.series:
        label = s.name if figure.named and s.name not in named else ""
        named.add(s.name)
        marker, dash = MARKERS[s.shape % len(MARKERS)], DASHES[s.dash % len(DASHES)]
        width = 2.8 if s.colour == "ink" else 2.0
        _line(axes, s.points, label, colours[s.colour], marker, dash, width=width)
    axes.set_ylabel(figure.unit)
    _finish(axes, f"{figure.title} by round")
    axes.figure.supxlabel(fill(figure.caption, 92), fontsize=9.5, color=QUIET)


def _lines(axes: Axes, run: RunResult, key: str) -> None:
    tasks = tasks_of(run)
    for index, task in enumerate(tasks if len(tasks) > 1 else ()):
        look = (PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)])
        _line(
            axes,
            curve(run.rounds, key, task),
            task,
            *look,
            DASHES[(1 + index // len(PALETTE)) % len(DASHES)],
        )
    _line(axes, curve(run.rounds, key), "all clients", INK, "o", "-", width=2.8)


def _line(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    label: str,
    color: str,
    marker: str,
    dash: object,
    *,
    width: float = 2.0,
) -> None:
    if points:
        x, y = zip(*points, strict=True)
        shape = marker if len(points) <= CROWD else None
        style: dict[str, Any] = {"color": color, "marker": shape, "linestyle": dash}
        axes.plot(x, y, label=shown_label(label), linewidth=width, **style)


def shown_label(label: str) -> str:
    """Return a label the legend shows: Matplotlib leaves out those that start with '_'."""
    return f"\u200b{label}" if label.startswith("_") else label


def _finish(axes: Axes, title: str) -> None:
    """Title, whole rounds on the x axis, and a legend beside the plot where it hides nothing."""
    axes.set_title(title)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    low, high = axes.get_xlim()
    if high - low < 1:  # one round: no fractions of a round around it
        middle = (low + high) / 2
        axes.set_xlim(middle - 1, middle + 1)
    labels: Sequence[object] = axes.get_legend_handles_labels()[1]
    if labels:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _round_or_end(last: int, every: int) -> Callable[[float, int], str]:
    """Return a tick formatter that calls the column after the last round "end"."""
    return lambda value, _: (
        "end" if value == last + every else f"{value:g}" if value <= last else ""
    )
