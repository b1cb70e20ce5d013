"""Charts as inline SVG for the report: colours are CSS variables, so they follow dark and light.

Every chart is 420 × 250 units with text of 12: readable on a phone's width and in two columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from html import escape
from itertools import pairwise
from typing import Any

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 14, 26
CROWD = 24  # points beyond which markers hide their line
DASHES = ("", "7 3", "2 3", "7 3 2 3")


@dataclass(frozen=True)
class Series:
    """One line or set of points.

    Attributes:
        name: What the legend says.
        points: ``(x, y)``, at most a few hundred.
        colour: A CSS variable's name without dashes: ``"ink"``, ``"quiet"``, ``"s0"``…``"s6"``.
        dash: Index of the dash pattern.
        shape: Index of the marker's shape.
        labels: What each point says when pointed at; made from the numbers when left out.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = "ink"
    dash: int = 0
    shape: int = 0
    labels: Sequence[str] = field(default=())

    def label(self, index: int) -> str:
        """Return what a point says when pointed at."""
        if self.labels:
            return self.labels[index]
        x, y = self.points[index]
        return f"{self.name}, round {x:g}: {y:.4g}"


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round numbers that cover the range, about ``count`` steps of 1, 2 or 5 × 10ⁿ.

    >>> ticks(0.53, 0.92)
    [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    """
    if not high > low:
        pad = abs(low) * 0.1 or 0.5
        low, high = low - pad, high + pad
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(step * i, 12) for i in range(first, last + 1)]


def line_chart(title: str, series: Sequence[Series], zero: bool = False) -> str:
    """Return lines with markers over rounds; of nothing, a chart that says so.

    Args:
        title: For screen readers.
        series: The lines, the last one on top.
        zero: The vertical axis starts at 0.
    """
    ys = [y for s in series for _, y in s.points]
    frame = _frame([x for s in series for x, _ in s.points], [*ys, *([0.0] if zero else [])])
    drawn = [_line(s, frame) for s in series] if ys else []
    return _svg(title, frame, drawn)


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
            parts.append(_tag("line", x1=at, x2=at, y1=top, y2=bottom, style=style))
        parts += [
            _marker(group, i, frame.x(x + shift), frame.y(y))
            for i, (x, y) in enumerate(group.points)
        ]
    if end is not None and parts:
        at = frame.x(end) - (frame.x(1) - frame.x(0)) * _spacing(frame.rounds) / 2
        parts.append(_tag("line", x1=at, x2=at, y1=TOP, y2=HEIGHT - BOTTOM, class_="fence"))
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
        parts.append(_tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=zero, y2=zero, class_="axis"))
        for y, text in ((TOP + 10, "up, to the server"), (HEIGHT - BOTTOM - 6, "down, to clients")):
            parts.append(_tag("text", text, x=LEFT + 6, y=y, class_="note"))
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

    def x(self, value: float) -> float:
        first, last = min(self.rounds) - self.pad, max(self.rounds) + self.pad
        return LEFT + (value - first) / (last - first) * (WIDTH - LEFT - RIGHT)

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
        return _wrap(title, [_tag("text", "nothing was measured", **middle)])
    below = []

    digits = max((len(f"{mark:g}".partition(".")[2]) for mark in frame.marks), default=0)
    for mark in frame.marks:
        y = frame.y(mark)
        below.append(_tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        below.append(
            _tag(
                "text",
                f"{abs(mark) if frame.mirrored else mark:,.{digits}f}",
                x=LEFT - 7,
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
            below.append(_tag("text", "end" if x == end else f"{x:g}", **at))
    at = {"x": LEFT - 7, "y": HEIGHT - BOTTOM + 18, "text_anchor": "end"}
    below.append(_tag("text", "round", **at))
    return _wrap(title, [*below, *parts])


def _wrap(title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    return f'{head} aria-label="{escape(title)}">{"".join(parts)}</svg>'


def _line(series: Series, frame: _Frame) -> str:
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in series.points)
    width = 2.8 if series.colour == "ink" else 1.8
    style = f"stroke:var(--{series.colour});stroke-width:{width}"
    line = _tag("polyline", points=path, style=style, class_="line", **_dash(series.dash))
    if len(series.points) > CROWD:
        return line
    return line + "".join(
        _marker(series, i, frame.x(x), frame.y(y)) for i, (x, y) in enumerate(series.points)
    )


def _dash(index: int) -> dict[str, str]:
    dash = DASHES[index % len(DASHES)]
    return {"stroke_dasharray": dash} if dash else {}


def _marker(series: Series, index: int, x: float, y: float) -> str:
    """Return a circle, square, triangle or diamond with its label."""
    shape, style = series.shape % 4, f"fill:var(--{series.colour})"
    title = f"<title>{escape(series.label(index))}</title>"
    outlines = (
        "",
        f"M{x - 3.2:.1f} {y - 3.2:.1f}h6.4v6.4h-6.4z",
        f"M{x:.1f} {y - 4.2:.1f}l4 7h-8z",
        f"M{x:.1f} {y - 4.4:.1f}l4.4 4.4l-4.4 4.4l-4.4 -4.4z",
    )
    if shape == 0:
        return _tag("circle", cx=x, cy=y, r=3.6, style=style, class_="dot", inner=title)
    return _tag("path", d=outlines[shape], style=style, class_="dot", inner=title)


def _bar(x: float, edges: Sequence[float], width: float, series: Series, index: int) -> str:
    size: dict[str, Any] = {"x": x, "y": edges[0], "width": width, "height": edges[1] - edges[0]}
    title = f"<title>{escape(series.label(index))}</title>"
    return _tag("rect", style=f"fill:var(--{series.colour})", inner=title, **size)


def _tag(name: str, text: str = "", *, inner: str = "", **attributes: float | str) -> str:
    """Return one element, everything escaped but ``inner``; ``text_anchor`` is ``text-anchor``."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}="
        f'"{escape(f"{value:.1f}" if isinstance(value, float) else str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{escape(text)}{inner}</{name}>"


def legend_mark(series: Series, kind: str) -> str:
    """Return the small picture beside a name in a legend: a ``"line"``, ``"dot"`` or ``"bar"``."""
    colour = f"var(--{series.colour})"
    if kind == "bar":
        inner = _tag("rect", x=7, y=0, width=12, height=12, rx=3, style=f"fill:{colour}")
    else:
        dot = Series(series.name, [(0, 0)], series.colour, 0, series.shape, [series.name])
        inner = _marker(dot, 0, 13.0, 6.0)
    if kind == "line":
        style = f"stroke:{colour};stroke-width:2.2"
        dash = _dash(series.dash)
        inner = _tag("line", x1=0, x2=26, y1=6, y2=6, style=style, **dash) + inner
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 26 12" aria-hidden="true">'
    return f"{head}{inner}</svg>"
