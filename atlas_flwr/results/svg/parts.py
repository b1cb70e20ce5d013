"""What charts of the report are made of: elements, markers, legends, round numbers on an axis.

Colours are CSS variables, so they follow dark and light.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 420, 250
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
        bands: Stretches of ``(x, low, high)`` that are shaded, those that overlap darker.
        ring: Points are circled, without a line.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str = "ink"
    dash: int = 0
    shape: int = 0
    labels: Sequence[str] = field(default=())
    bands: Sequence[Sequence[tuple[float, float, float]]] = field(default=())
    ring: bool = False

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


def decimals(marks: Sequence[float]) -> int:
    """Return how many decimals the numbers of an axis need.

    >>> decimals([0.0, 5e-05]), decimals([0, 100])
    (5, 0)
    """
    written = (f"{mark:.10f}".rstrip("0").partition(".")[2] for mark in marks)
    return max(map(len, written), default=0)


def wrap(title: str, parts: Sequence[str], size: tuple[float, float] = (WIDTH, HEIGHT)) -> str:
    """Return the whole picture; one wider than the others is never drawn larger than its text."""
    wide, high = size
    style = f' style="max-width:{wide:.0f}px;min-width:{wide:.0f}px"' if wide > WIDTH else ""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high:.0f}"{style}'
    return f'{head} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'


def tag(name: str, text: str = "", *, inner: str = "", **attributes: float | str) -> str:
    """Return one element, everything escaped but ``inner``; ``text_anchor`` is ``text-anchor``."""
    written = "".join(
        f" {key.rstrip('_').replace('_', '-')}="
        f'"{escape(f"{value:.1f}" if isinstance(value, float) else str(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{escape(text)}{inner}</{name}>"


def marker(series: Series, index: int, x: float, y: float) -> str:
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
        return tag("circle", cx=x, cy=y, r=3.6, style=style, class_="dot", inner=title)
    return tag("path", d=outlines[shape], style=style, class_="dot", inner=title)


def ring(series: Series, index: int, x: float, y: float) -> str:
    """Return a circle around a point, with its label."""
    style = f"fill:none;stroke:var(--{series.colour});stroke-width:2"
    title = f"<title>{escape(series.label(index))}</title>"
    return tag("circle", cx=x, cy=y, r=7, style=style, inner=title)


def dash(index: int) -> dict[str, str]:
    """Return the attribute of a dash pattern."""
    pattern = DASHES[index % len(DASHES)]
    return {"stroke_dasharray": pattern} if pattern else {}


def legend_mark(series: Series, kind: str) -> str:
    """Return the small picture beside a name in a legend: a ``"line"``, ``"dot"`` or ``"bar"``."""
    colour = f"var(--{series.colour})"
    if series.ring:
        return mark(ring(Series("", [(0, 0)], series.colour, labels=[series.name]), 0, 13.0, 6.0))
    if kind == "bar":
        inner = tag("rect", x=7, y=0, width=12, height=12, rx=3, style=f"fill:{colour}")
    else:
        dot = Series(series.name, [(0, 0)], series.colour, 0, series.shape, [series.name])
        inner = marker(dot, 0, 13.0, 6.0)
    if kind == "line":
        style = f"stroke:{colour};stroke-width:2.2"
        pattern = dash(series.dash)
        inner = tag("line", x1=0, x2=26, y1=6, y2=6, style=style, **pattern) + inner
    return mark(inner)


def mark(inner: str) -> str:
    """Return a legend's small picture, 26 × 12 units, around what is drawn in it."""
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 26 12" aria-hidden="true">'
    return f"{head}{inner}</svg>"
