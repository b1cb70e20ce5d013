"""Heat maps, clients in columns and scatters as inline SVG for the report.

They keep the text size of the other charts; what is too wide for a column of the page is wider
than 420 units, and the page lets it be moved sideways.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from markupsafe import Markup

from atlas_flwr.results.scatter import Scatter
from atlas_flwr.results.series import PALETTE
from atlas_flwr.results.shapes import Columns, Group, HeatMap, starts
from atlas_flwr.results.svg.parts import WIDTH, Series, decimals, mark, marker, tag, ticks, wrap

CHAR = 6.4  # width of a character of the charts' text
LEAST, MOST = 15.0, 40.0  # width of a cell
WIDEST = 1000.0  # the page's width
CROWD = 24  # rows beyond which they are lower


def heat_map(figure: HeatMap) -> str:
    """Return the cells with their numbers, the borders of groups, and all names."""
    left, above, right, below = _margins(figure)
    wide = _width(figure, left + right)
    tall = 24.0 if len(figure.rows) <= CROWD else 17.0
    high = wide if figure.sides[0] == figure.sides[1] else min(wide, tall)
    across, down = left + len(figure.columns) * wide + right, len(figure.rows) * high
    size = (max(WIDTH, across), above + down + below)
    parts = []
    for i, j, cells in figure.gaps() if figure.grey else ():
        place: dict[str, Any] = {"x": left + j * wide, "y": above + i * high}
        parts.append(tag("rect", width=cells * wide, height=high, class_="gap", **place))
    for i in range(len(figure.rows) if figure.itself else 0):
        parts.append(_struck(left + i * wide, above + i * high, (wide, high)))
    fits = figure.numbered and figure.longest * CHAR + 3 <= wide and high >= LEAST
    for i, row in enumerate(figure.values):
        for j, value in enumerate(row):
            box = (left + j * wide, above + i * high, wide, high)
            parts.append(_cell(figure, (i, j), box, fits and value is not None))
    corner, cell = (left, above), (wide, high)
    parts += _names(figure, corner, cell)
    parts += _borders(figure, corner, cell)
    return wrap(figure.title, parts, size)


def _width(figure: HeatMap, margins: float) -> float:
    """Return a cell's width: what fills a column of the page, or lets numbers be read."""
    count = max(len(figure.columns), 1)
    fill, text = (WIDTH - margins) / count, figure.longest * CHAR + 7
    if fill >= min(text, LEAST + 4):
        return min(fill, MOST)
    return max(text, LEAST) if margins + count * text <= WIDEST else LEAST


def columns_chart(figure: Columns) -> str:
    """Return clients in the columns of their clusters, each a marker and its number."""
    places, width, height = figure.places()
    cell, line, top = 38.0, 22.0, 44.0
    size = (max(WIDTH, width * cell + 10), top + height * line + 6)
    left = (size[0] - width * cell) / 2
    parts = [tag("text", "cluster", x=4, y=14)]
    for (middle, at), head, dots in zip(places, figure.heads, figure.dots, strict=True):
        centre: dict[str, Any] = {"x": left + (middle + 0.5) * cell, "text_anchor": "middle"}
        parts.append(tag("text", head, y=32, class_="name", **centre))
        for (column, row), dot in zip(at, dots, strict=True):
            x, y = left + column * cell + 9, top + row * line + 10
            look = Series("", [(0, 0)], _colour(dot.kind), 0, dot.kind, [dot.label])
            parts.append(marker(look, 0, x, y))
            parts.append(tag("text", dot.name, x=x + 8, y=y + 4, class_="name"))
    edges = [left + (places[i][1][0][0] - 0.5) * cell for i in range(1, len(places))]
    parts += [tag("line", x1=x, x2=x, y1=20, y2=size[1], class_="grid") for x in edges]
    return wrap(figure.title, parts, size)


def scatter_chart(figure: Scatter) -> str:
    """Return points on two axes from 0 to one end, and the line where both are the same."""
    marks = ticks(0.0, figure.top)
    left, top, side = 90.0, 24.0, 250.0
    right, bottom = left + side, top + side

    def across(value: float) -> float:
        return left + value / figure.top * side

    def up(value: float) -> float:
        return bottom - value / figure.top * side

    parts, digits = [], decimals(marks)
    for value in marks:
        x, y, text = across(value), up(value), f"{value:,.{digits}f}"
        parts.append(tag("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", text, x=left - 7, y=y + 4, text_anchor="end"))
        parts.append(tag("text", text, x=x, y=bottom + 16, text_anchor="middle"))
    ends: dict[str, Any] = {"x1": left, "x2": right, "y1": bottom, "y2": top}
    parts.append(tag("line", class_="fence", **ends))
    parts.append(tag("text", figure.axes[0], x=right, y=bottom + 34, text_anchor="end"))
    parts.append(tag("text", figure.axes[1], x=left - 48, y=12))
    for group, at in zip(figure.groups, figure.places(), strict=True):
        parts += [marker(group, i, across(x), up(y)) for i, (x, y) in enumerate(at)]
    return wrap(figure.title, parts, (WIDTH, bottom + 40))


def heat_key(figure: HeatMap) -> list[tuple[str, Markup]]:
    """Return the legend: each text with its shade."""
    found = []
    box: dict[str, Any] = {"x": 7, "y": 0, "width": 12, "height": 12, "class_": "cell"}
    for text, value in figure.key:
        halves = figure.scale.halves(value)
        wide = 12 // len(halves)
        inner = "".join(
            tag("rect", style=_fill(figure, each), **(box | {"x": 7 + i * wide, "width": wide}))
            for i, each in enumerate(halves)
        )
        if value is None and figure.grey:
            inner = tag("rect", **(box | {"class_": "cell gap"}))
        found.append((text, Markup(mark(inner))))
    if figure.itself:
        inner = tag("rect", style="fill:none", **box)
        found.append(("itself", Markup(mark(inner + _struck(7, 0, (12, 12))))))
    return found


def _cell(
    figure: HeatMap, at: tuple[int, int], box: tuple[float, float, float, float], named: bool
) -> str:
    """Return one cell with its label, and its number if it fits."""
    value, (x, y, wide, high) = figure.values[at[0]][at[1]], box
    if value is None:
        return ""
    title = f"<title>{escape(figure.label(*at))}</title>"
    size: dict[str, Any] = {"x": x, "y": y, "width": wide, "height": high}
    drawn = tag(
        "rect", style=_fill(figure, figure.shaded[at[0]][at[1]]), class_="cell", inner=title, **size
    )
    if not named:
        return drawn
    middle: dict[str, Any] = {"x": x + wide / 2, "y": y + high / 2 + 4, "text_anchor": "middle"}
    strong = figure.scale.strong(figure.shaded[at[0]][at[1]] or 0.0)
    look = "number strong" if strong else "number"
    return drawn + tag("text", figure.text(value), class_=look, **middle)


def _fill(figure: HeatMap, value: float | None) -> str:
    if value is None:
        return "fill:none"
    colour, strength = figure.scale.shade(value)
    return f"fill:var(--{colour.replace('s', 'h')});fill-opacity:{strength:.3f}"


def _struck(x: float, y: float, size: tuple[float, float]) -> str:
    """Return the line through a cell of the diagonal."""
    return tag("line", x1=x, y1=y, x2=x + size[0], y2=y + size[1], style="stroke:var(--quiet)")


def _margins(figure: HeatMap) -> tuple[float, float, float, float]:
    """Return the room for names left of, above, right of and below the cells."""
    left = 12 + CHAR * max(4, *(len(name) for name in figure.rows))
    groups = [len(group.name) for group in figure.row_groups]
    right = 12 + CHAR * max(groups, default=0)
    longest = max((len(name) for name in figure.columns), default=0)
    below = 12 + max(CHAR * longest, 10)  # names may have to be turned
    above = 20 if any(group.name for group in figure.column_groups) else 8
    return left, above, right, below


def _turned(figure: HeatMap, wide: float) -> bool:
    """Whether names of columns are written upwards: they would touch side by side."""
    return CHAR * max((len(name) for name in figure.columns), default=0) + 4 > wide


def _names(figure: HeatMap, corner: tuple[float, float], cell: tuple[float, float]) -> list[str]:
    """Return the names of rows and columns."""
    (left, top), (wide, high) = corner, cell
    bottom = top + len(figure.rows) * high
    parts = []
    for i, name in enumerate(figure.rows):
        y = top + (i + 0.5) * high + 4
        parts.append(tag("text", name, x=left - 6, y=y, text_anchor="end"))
    for j, name in enumerate(figure.columns):
        x = left + (j + 0.5) * wide
        if _turned(figure, wide):
            turn = f"rotate(-90 {x + 4:.1f} {bottom + 6:.1f})"
            place: dict[str, Any] = {"x": x + 4, "y": bottom + 6, "text_anchor": "end"}
            parts.append(tag("text", name, transform=turn, **place))
        else:
            parts.append(tag("text", name, x=x, y=bottom + 15, text_anchor="middle"))
    return parts


def _borders(figure: HeatMap, corner: tuple[float, float], cell: tuple[float, float]) -> list[str]:
    """Return lines between groups, their names, and the frame."""
    (left, top), (wide, high) = corner, cell
    across, down = len(figure.columns) * wide, len(figure.rows) * high
    ends: dict[str, Any] = {"x": left, "y": top, "width": across, "height": down}
    parts = [tag("rect", class_="border", **ends)]
    for i, group in zip(starts(figure.row_groups), figure.row_groups, strict=False):
        y = top + i * high
        parts.append(tag("line", x1=left, x2=left + across, y1=y, y2=y, class_="border"))
        middle = y + group.count * high / 2 + 4
        parts.append(tag("text", group.name, x=left + across + 6, y=middle, class_="name"))
    for j, group in zip(starts(figure.column_groups), figure.column_groups, strict=False):
        x = left + j * wide
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=top + down, class_="border"))
        if figure.column_groups != figure.row_groups:
            parts.append(_head(group, x, top, wide))
    return parts


def _head(group: Group, x: float, top: float, wide: float) -> str:
    """Return a group's name above its columns, as much of it as fits."""
    room = group.count * wide
    words = [group.name, group.name.rpartition(" ")[2], ""]
    text = next(word for word in words if len(word) * CHAR <= room or not word)
    return tag("text", text, x=x + room / 2, y=top - 6, text_anchor="middle", class_="name")


def _colour(index: int) -> str:
    return f"s{index % len(PALETTE)}"


def kinds_key(names: Sequence[str]) -> list[Series]:
    """Return a legend's looks for the kinds of a chart in columns."""
    return [Series(name, [(0, 0)], _colour(i), 0, i) for i, name in enumerate(names)]
