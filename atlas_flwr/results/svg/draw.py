"""Charts by round as inline SVG for the report.

Every chart is 420 × 250 units with text of 12: readable on a phone's width and in two columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import pairwise
from typing import Any

from atlas_flwr.results.svg.parts import (
    HEIGHT,
    WIDTH,
    Series,
    dash,
    decimals,
    marker,
    ring,
    tag,
    ticks,
    wrap,
)

LEFT, RIGHT, TOP, BOTTOM = 48, 10, 14, 26
CROWD = 24  # points beyond which markers hide their line


def line_chart(
    title: str, series: Sequence[Series], zero: bool = False, axis: str = "round"
) -> str:
    """Return lines with markers over rounds; of nothing, a chart that says so.

    Args:
        title: For screen readers.
        series: The lines, the last one on top, all above their bands.
        zero: The vertical axis starts at 0.
        axis: What the horizontal axis counts.
    """
    ys = [y for s in series for _, y in s.points]
    edges = [y for s in series for band in s.bands for _, *ends in band for y in ends]
    xs = [x for s in series for x, _ in s.points]
    pad = 0.3 if axis == "round" or not xs else 0.05 * (max(xs) - min(xs)) or 0.3
    frame = _frame(xs, [*ys, *edges, *([0.0] if zero else [])], pad)
    drawn = [_band(s, frame) for s in series] + [_line(s, frame) for s in series] if ys else []
    return _svg(title, replace(frame, axis=axis), drawn)


def strip_chart(title: str, groups: Sequence[Series], end: int | None = None) -> str:
    """Return points by round, groups side by side, with a bar from lowest to highest.

    Args:
        title: For screen readers.
        groups: One per task.
        end: The x that stands for "after the last round", set apart and named "end".
    """
    xs = sorted({x for g in groups for x, _ in g.points})
    frame = _frame(xs, [y for g in groups for _, y in g.points], pad=0.5 * _spacing(xs))
    spread = 0.6 * _spacing(frame.rounds)
    step = spread / max(len(groups), 1)
    parts = []
    for index, group in enumerate(groups):
        shift = (index - (len(groups) - 1) / 2) * step
        for x in sorted({x for x, _ in group.points}):
            column = [y for at, y in group.points if at == x]
            top, bottom, at = frame.y(max(column)), frame.y(min(column)), frame.x(x + shift)
            style = f"stroke:var(--{group.colour});stroke-width:3;opacity:.3"
            parts.append(tag("line", x1=at, x2=at, y1=top, y2=bottom, style=style))
        parts += [
            marker(group, i, frame.x(x + shift), frame.y(y))
            for i, (x, y) in enumerate(group.points)
        ]
    if end is not None and parts:
        at = frame.x(end) - (frame.x(1) - frame.x(0)) * _spacing(frame.rounds) / 2
        parts.append(tag("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, class_="fence"))
    return _svg(title, frame, parts, end)


def mirror_chart(
    title: str,
    rounds: Sequence[int],
    up: Sequence[Series],
    down: Sequence[Series],
) -> str:
    """Return stacked bars by round, ``up`` above the axis and ``down`` below; values ≥ 0."""
    heights = [sum(column) for column in zip(*([y for _, y in s.points] for s in up), strict=True)]
    depths = [sum(column) for column in zip(*([y for _, y in s.points] for s in down), strict=True)]
    frame = _frame(rounds, [0.0, max(heights, default=0.0), -max(depths, default=0.0)], pad=0.5)
    frame = replace(frame, mirrored=True)
    width = min(0.72 * (frame.x(1) - frame.x(0)), 60.0)
    parts = []
    for stack, sign in ((up, 1), (down, -1)):
        floor = [0.0] * len(rounds)
        for s in stack:
            for i, (x, y) in enumerate(s.points):
                edges = sorted((frame.y(sign * floor[i]), frame.y(sign * (floor[i] + y))))
                parts.append(_bar(frame.x(x) - width / 2, edges, width, s, i))
                floor[i] += y
    if parts:
        zero = frame.y(0)
        parts.append(tag("line", x1=frame.left, x2=WIDTH - RIGHT, y1=zero, y2=zero, class_="axis"))
        for y, text in ((TOP + 10, "up, to the server"), (HEIGHT - BOTTOM - 6, "down, to clients")):
            parts.append(tag("text", text, x=frame.left + 6, y=y, class_="note"))
    return _svg(title, frame, parts)


@dataclass(frozen=True)
class _Frame:
    """Where numbers lie on the page; mirrored ones count both ways from zero, without a sign."""

    low: float
    high: float
    marks: Sequence[float]
    rounds: Sequence[float]
    pad: float
    mirrored: bool = False
    axis: str = "round"

    @property
    def left(self) -> float:
        """Where the axis is: room for the longest number beside it."""
        digits = decimals(self.marks)
        return max(LEFT, *(10 + 6.8 * len(f"{mark:,.{digits}f}") for mark in self.marks), 0.0)

    def x(self, value: float) -> float:
        first, last = min(self.rounds) - self.pad, max(self.rounds) + self.pad
        return self.left + (value - first) / (last - first) * (WIDTH - self.left - RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def _frame(xs: Sequence[float], ys: Sequence[float], pad: float = 0.3) -> _Frame:
    marks = ticks(min(ys), max(ys)) if ys else []
    low, high = (marks[0], marks[-1]) if marks else (0.0, 1.0)
    return _Frame(low, high, marks, sorted(set(xs)) or [1], pad)


def _spacing(rounds: Sequence[float]) -> float:
    """Return the smallest distance between two rounds that are drawn."""
    return min((b - a for a, b in pairwise(rounds)), default=1.0)


def _svg(title: str, frame: _Frame, parts: Sequence[str], end: int | None = None) -> str:
    """Return the whole element: grid, numbers and what was drawn."""
    if not parts:
        middle: dict[str, Any] = {
            "x": WIDTH / 2,
            "y": HEIGHT / 2,
            "text_anchor": "middle",
            "class_": "note",
        }
        return wrap(title, [tag("text", "nothing was measured", **middle)])
    below = []

    digits = decimals(frame.marks)
    for mark in frame.marks:
        y = frame.y(mark)
        below.append(tag("line", x1=frame.left, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        below.append(
            tag(
                "text",
                f"{abs(mark) if frame.mirrored else mark:,.{digits}f}",
                x=frame.left - 7,
                y=y + 4,
                text_anchor="end",
            )
        )
    every = max(1, math.ceil(len(frame.rounds) / 10))
    for index, x in enumerate(frame.rounds):
        if x == end or (index % every == 0 and not (end and x + every > end)):
            at: dict[str, Any] = {
                "x": frame.x(x),
                "y": HEIGHT - BOTTOM + 18,
                "text_anchor": "middle",
            }
            below.append(tag("text", "end" if x == end else f"{x:g}", **at))
    at = {"x": frame.left - 7, "y": HEIGHT - BOTTOM + 18, "text_anchor": "end"}
    below.append(tag("text", frame.axis, **at))
    return wrap(title, [*below, *parts])


def _band(series: Series, frame: _Frame) -> str:
    """Return the series' shaded stretches."""
    style = f"fill:var(--{series.colour});opacity:.16"
    drawn = []
    for band in series.bands:
        edge = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
        points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in edge)
        drawn.append(tag("polygon", points=points, style=style))
    return "".join(drawn)


def _line(series: Series, frame: _Frame) -> str:
    if series.ring:
        spots = [(frame.x(x), frame.y(y)) for x, y in series.points]
        return "".join(ring(series, i, *spot) for i, spot in enumerate(spots))
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in series.points)
    width = 2.8 if series.colour == "ink" else 1.8
    style = f"stroke:var(--{series.colour});stroke-width:{width}"
    line = tag("polyline", points=path, style=style, class_="line", **dash(series.dash))
    if len(series.points) > CROWD:
        return line
    return line + "".join(
        marker(series, i, frame.x(x), frame.y(y)) for i, (x, y) in enumerate(series.points)
    )


def _bar(x: float, edges: Sequence[float], width: float, series: Series, index: int) -> str:
    size: dict[str, Any] = {"x": x, "y": edges[0], "width": width, "height": edges[1] - edges[0]}
    title = f"<title>{escape(series.label(index))}</title>"
    return tag("rect", style=f"fill:var(--{series.colour})", inner=title, **size)
