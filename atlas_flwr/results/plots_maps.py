"""Heat maps, clients in columns and scatters on Matplotlib's axes: what the page's charts show."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch

from atlas_flwr.results.series import PALETTE
from atlas_flwr.results.shapes import Columns, HeatMap, Scatter, starts

INK, QUIET, RULE = "#1f2328", "#8a9099", "#e4e7eb"
MARKERS = "os^DvP"
COLOURS = {"ink": INK, "quiet": QUIET} | {f"s{i}": c for i, c in enumerate(PALETTE)}
STRONGEST = 0.8  # share of the full colour in the strongest shade: text on it can still be read
LEAST, MOST = 0.24, 15.0  # of a cell, and of a picture whose cells have numbers; inches
CHAR = 0.085  # width of a character in inches, at 9 points


def size_of(figure: HeatMap | Columns | Scatter) -> tuple[float, float]:
    """Return the picture's width and height in inches: cells stay large enough to read."""
    if isinstance(figure, HeatMap):
        names = CHAR * max(len(name) for name in figure.columns)
        wide = 3.2 + len(figure.columns) * (CHAR * figure.longest + 0.06)
        if wide > MOST:
            wide = 3.2 + len(figure.columns) * LEAST
        return max(7.5, wide), max(3.6, 1.8 + names + 0.22 * len(figure.rows))
    if isinstance(figure, Columns):
        _, width, height = figure.places()
        return max(7.5, 2.5 + 0.5 * width), max(3.0, 1.8 + 0.32 * height)
    return 7.5, 5.0


def draw_heat_map(figure: HeatMap, axes: Axes) -> None:
    """Draw the shades, the numbers that fit, the borders of groups, and all names."""
    shades = np.array(
        [[_blend(figure, value) for value in row] for row in figure.shaded], dtype=np.float64
    )
    axes.imshow(shades, aspect="auto", interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xticks(range(len(figure.columns)), figure.columns)
    axes.set_yticks(range(len(figure.rows)), figure.rows)
    axes.tick_params(length=0, labelsize=9)
    if max(len(name) for name in figure.columns) > 2:
        axes.tick_params(axis="x", rotation=90)
    axes.set_ylabel(figure.sides[0])
    axes.set_xlabel(figure.sides[1])
    _numbers(figure, axes)
    _borders(figure, axes)
    handles = [
        Patch(facecolor=_blend(figure, value), edgecolor=QUIET, label=text)
        for text, value in figure.key
    ]
    shift = 1.02 + 0.1 * bool(figure.row_groups)
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(shift, 1.0), title=figure.what,
        alignment="left",
    )  # fmt: skip


def draw_columns(figure: Columns, axes: Axes) -> None:
    """Draw each client's marker and number in the column of its cluster."""
    places, width, height = figure.places()
    for kind, name in enumerate(figure.kinds):
        spots = [
            spot
            for (_, at), dots in zip(places, figure.dots, strict=True)
            for spot, dot in zip(at, dots, strict=True)
            if dot.kind == kind
        ]
        if spots:
            colour, marker = PALETTE[kind % len(PALETTE)], MARKERS[kind % len(MARKERS)]
            xs, ys = zip(*spots, strict=True)
            axes.scatter(xs, ys, s=48, color=colour, marker=marker, label=name)
    for (_, at), dots in zip(places, figure.dots, strict=True):
        for (x, y), dot in zip(at, dots, strict=True):
            axes.text(x + 0.2, y, dot.name, va="center", fontsize=9)
    for (_, left), (_, right) in pairwise(places):
        axes.axvline((max(x for x, _ in left) + right[0][0]) / 2 + 0.15, color=QUIET, lw=1)
    axes.set_xticks([middle for middle, _ in places], figure.heads)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xlim(-0.6, width - 0.2)
    axes.set_ylim(height - 0.4, -0.7)
    axes.set_xlabel("cluster")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0))


def draw_scatter(figure: Scatter, axes: Axes) -> None:
    """Draw the points, and the line on which both numbers are the same."""
    for group in figure.groups:
        x, y = zip(*group.points, strict=True)
        marker = MARKERS[group.shape % len(MARKERS)]
        axes.scatter(x, y, s=40, color=COLOURS[group.colour], marker=marker, label=group.name)
    axes.axline((0, 0), slope=1, color=QUIET, lw=1.5, ls="--")
    values = [v for g in figure.groups for point in g.points for v in point]
    pad = 0.08 * (max(values) - min(values)) or 0.1 * max(values)
    ends = (min(values) - pad, max(values) + pad)
    axes.set(xlim=ends, ylim=ends, xlabel=figure.axes[0], ylabel=figure.axes[1])
    if len(figure.groups) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _numbers(figure: HeatMap, axes: Axes) -> None:
    """Write the numbers where a cell holds the longest of them."""
    room = (size_of(figure)[0] - 2.6) / len(figure.columns)
    if not figure.numbered or figure.longest * CHAR + 0.04 > room:
        return
    for i, row in enumerate(figure.values):
        for j, value in enumerate(row):
            if value is not None:
                axes.text(j, i, figure.text(value), ha="center", va="center", fontsize=9)


def _borders(figure: HeatMap, axes: Axes) -> None:
    """Draw lines between groups and write their names beside them."""
    for edge in starts(figure.row_groups)[1:-1]:
        axes.axhline(edge - 0.5, color=INK, lw=1.2)
    for edge in starts(figure.column_groups)[1:-1]:
        axes.axvline(edge - 0.5, color=INK, lw=1.2)
    right = len(figure.columns) - 0.5
    for start, group in zip(starts(figure.row_groups), figure.row_groups, strict=False):
        y = start + (group.count - 1) / 2
        axes.annotate(
            group.name, (right, y), (5, 0), textcoords="offset points", va="center", fontsize=9
        )
    if figure.column_groups == figure.row_groups:
        return
    for start, group in zip(starts(figure.column_groups), figure.column_groups, strict=False):
        x = start + (group.count - 1) / 2
        wide = group.count * (size_of(figure)[0] - 2.6) / len(figure.columns)
        whole = len(group.name) * CHAR <= wide
        text = group.name if whole else group.name.rpartition(" ")[2]
        axes.annotate(text, (x, -0.5), (0, 4), textcoords="offset points", ha="center", fontsize=9)


def _blend(figure: HeatMap, value: float | None) -> tuple[float, float, float]:
    """Return a number's colour on white; white for none."""
    if value is None:
        return (1.0, 1.0, 1.0)
    name, strength = figure.scale.shade(value)
    share = STRONGEST * strength
    red, green, blue = (1 - share + share * part for part in to_rgb(COLOURS[name]))
    return red, green, blue
