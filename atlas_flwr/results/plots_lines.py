"""Lines on Matplotlib's axes, and what all pictures by round end with."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import AutoLocator, MaxNLocator

from atlas_flwr.results.plots_maps import COLOURS, MARKERS, QUIET
from atlas_flwr.results.shapes import LineFigure
from atlas_flwr.results.store import RunResult

CROWD = 24  # points beyond which markers hide their line
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))


def draw_lines(figure: LineFigure, axes: Axes, run: RunResult) -> None:
    """Lines, their bands and circled points: what the page's chart of that title shows."""
    if figure.zero:
        axes.axhline(0, color=QUIET, lw=1)
    named = set()
    for s in figure.series:
        label = s.name if figure.named and s.name not in named else ""
        named.add(s.name)
        marker, dash = MARKERS[s.shape % len(MARKERS)], DASHES[s.dash % len(DASHES)]
        for band in s.bands:
            x, low, high = zip(*band, strict=True)
            axes.fill_between(x, low, high, color=COLOURS[s.colour], alpha=0.16, lw=0)
        if s.ring:
            look: dict[str, Any] = {"ms": 13, "mfc": "none", "mec": COLOURS[s.colour], "ls": ""}
            axes.plot(*zip(*s.points, strict=True), "o", label=label, **look)
            continue
        width = 2.8 if s.colour == "ink" else 2.0
        line(axes, s.points, label, COLOURS[s.colour], marker, dash, width=width)
    axes.set_ylabel(figure.unit)
    by_round = figure.axis == "round"
    finish(axes, figure.title + (" by round" if by_round and "round" not in figure.title else ""))
    if not by_round:
        axes.set_xlabel(figure.axis)
        axes.xaxis.set_major_locator(AutoLocator())
    caption(axes, figure.caption)


def caption(axes: Axes, text: str) -> None:
    """Write a caption below the axes."""
    figure = axes.get_figure(root=True)
    wide = round(92 * figure.get_figwidth() / 7.5) if figure else 92
    axes.figure.supxlabel(fill(text, wide), fontsize=9.5, color=QUIET)


def line(
    axes: Axes,
    points: Sequence[tuple[float, float]],
    label: str,
    color: str,
    marker: str,
    dash: object,
    *,
    width: float = 2.0,
) -> None:
    """Draw one line, its markers where they don't hide it; of no points, nothing."""
    if points:
        x, y = zip(*points, strict=True)
        shape = marker if len(points) <= CROWD else None
        style: dict[str, Any] = {"color": color, "marker": shape, "linestyle": dash}
        axes.plot(x, y, label=shown_label(label), linewidth=width, **style)


def shown_label(label: str) -> str:
    """Return a label the legend shows: Matplotlib leaves out those that start with '_'."""
    return f"\u200b{label}" if label.startswith("_") else label


def finish(axes: Axes, title: str) -> None:
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
        # Long enough that dashes can be told apart.
        long = 3.6 if axes.get_lines() else 2.0
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=long)
