"""Heat maps, clients in columns and scatters on Matplotlib's axes: what the page's charts show."""

from __future__ import annotations

from itertools import pairwise
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.legend_handler import HandlerTuple
from matplotlib.patches import Patch
from matplotlib.transforms import IdentityTransform, ScaledTranslation

from atlas_flwr.results.scatter import Scatter
from atlas_flwr.results.series import HEAT, PALETTE
from atlas_flwr.results.shapes import Columns, HeatMap, starts

INK, QUIET, RULE = "#1f2328", "#8a9099", "#e4e7eb"
MARKERS = "os^DvP"
GREY = "#d0d3d7"
COLOURS = {"ink": INK, "quiet": QUIET} | {f"s{i}": c for i, c in enumerate(PALETTE)}
LEAST, MOST = 0.24, 15.0  # of a cell, and of a picture whose cells have numbers; inches
SQUARE = 0.38  # the least of a cell of a square, where there are few; inches
CHAR = 0.085  # width of a character in inches, at 9 points


def size_of(figure: HeatMap | Columns | Scatter) -> tuple[float, float]:
    """Return the picture's width and height in inches: cells stay large enough to read."""
    if isinstance(figure, HeatMap):
        names = CHAR * max(len(name) for name in figure.columns)
        wide = 3.2 + len(figure.columns) * (CHAR * figure.longest + 0.06)
        if wide > MOST:
            wide = 3.2 + len(figure.columns) * LEAST
        if figure.sides[0] == figure.sides[1]:
            side = _side(figure) * len(figure.columns)
            return max(7.5, side + 4.0), side + 1.9
        return max(7.5, wide), max(3.6, 1.8 + names + 0.22 * len(figure.rows))
    if isinstance(figure, Columns):
        _, width, height = figure.places()
        return max(7.5, 2.5 + 0.5 * width), max(3.0, 1.8 + 0.32 * height)
    return 7.5, 5.0


def _side(figure: HeatMap) -> float:
    """Return the side of a square's cell, in inches: numbers fit if the whole does."""
    count = len(figure.columns)
    text = CHAR * figure.longest + 0.06
    return max(text if count * text <= MOST else LEAST, min(SQUARE, 4.0 / count))


def draw_heat_map(figure: HeatMap, axes: Axes) -> None:
    """Draw the shades, the numbers that fit, the borders of groups, and all names."""
    shades = np.array(
        [[_blend(figure, value) for value in row] for row in figure.shaded], dtype=np.float64
    )
    if figure.itself:
        shades[np.diag_indices(len(shades))] = 1.0
    square = figure.sides[0] == figure.sides[1]
    axes.imshow(shades, aspect="equal" if square else "auto", interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xticks(range(len(figure.columns)), figure.columns)
    axes.set_yticks(range(len(figure.rows)), figure.rows)
    axes.tick_params(length=0, labelsize=9)
    if max(len(name) for name in figure.columns) > 2:
        axes.tick_params(axis="x", rotation=90)
    axes.set_ylabel(figure.sides[0])
    axes.set_xlabel(figure.sides[1])
    for i in range(len(figure.rows) if figure.itself else 0):
        axes.plot([i - 0.5, i + 0.5], [i - 0.5, i + 0.5], color=QUIET, lw=0.8)
    _numbers(figure, axes)
    _borders(figure, axes)
    _legend(figure, axes)


def _legend(figure: HeatMap, axes: Axes) -> None:
    """Name the shades, right of the names of groups; the centre is half of either side."""
    handles = list[Patch | tuple[Patch, ...]]()
    for _, value in figure.key:
        faces = [_blend(figure, each) for each in figure.scale.halves(value)]
        handles.append(tuple(Patch(facecolor=face, edgecolor=QUIET) for face in faces))
    names = [text for text, _ in figure.key]
    if figure.itself:
        handles.append(Patch(facecolor="white", edgecolor=QUIET, hatch="\\\\"))
        names.append("itself")
    room = 0.15 + CHAR * max((len(group.name) for group in figure.row_groups), default=0)
    canvas = axes.get_figure(root=True)
    shift = ScaledTranslation(room, 0, canvas.dpi_scale_trans) if canvas else IdentityTransform()
    axes.legend(
        handles,
        names,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        bbox_transform=axes.transAxes + shift,
        borderaxespad=0.0,
        title=fill(figure.legend, 24),
        alignment="left",
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.0)},
    )


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
            near: dict[str, Any] = {"xytext": (8, 0), "textcoords": "offset points"}
            axes.annotate(dot.name, (x, y), va="center", fontsize=9, **near)
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
    for group, at in zip(figure.groups, figure.places(), strict=True):
        x, y = zip(*at, strict=True)
        marker = MARKERS[group.shape % len(MARKERS)]
        axes.scatter(x, y, s=34, color=COLOURS[group.colour], marker=marker, label=group.name)
    axes.axline((0, 0), slope=1, color=QUIET, lw=1.5, ls="--")
    ends = (0.0, figure.top)
    axes.set(xlim=ends, ylim=ends, xlabel=figure.axes[0], ylabel=figure.axes[1], aspect="equal")
    if len(figure.groups) > 1:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))


def _numbers(figure: HeatMap, axes: Axes) -> None:
    """Write the numbers where a cell holds the longest of them."""
    square = figure.sides[0] == figure.sides[1]
    room = _side(figure) if square else (size_of(figure)[0] - 2.6) / len(figure.columns)
    if not figure.numbered or figure.longest * CHAR + 0.04 > room:
        return
    for i, row in enumerate(figure.values):
        for j, value in enumerate(row):
            if value is not None:
                shade = figure.shaded[i][j] or 0.0
                color = "white" if figure.scale.strong(shade) else INK
                at: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 9}
                axes.text(j, i, figure.text(value), color=color, **at)


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
    """Return a number's colour on white; for none white, or grey where one is missing."""
    if value is None:
        return to_rgb(GREY if figure.grey else "white")
    name, share = figure.scale.shade(value)
    red, green, blue = (1 - share + share * part for part in to_rgb(HEAT[int(name[1:])]))
    return red, green, blue
