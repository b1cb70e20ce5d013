"""Pictures as data: what the page and the PNG files both draw. Pure, so that numbers can be tested.

A colour is a name, ``"ink"``, ``"quiet"`` or ``"s0"``…``"s6"``; pages and files know what it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from atlas_flwr.results.svg_parts import Series

Cells = Sequence[Sequence[float | None]]
FAINT = 0.07  # the weakest shade that is still seen


@dataclass(frozen=True)
class LineFigure:
    """Lines by round or by another number, as both the page and the PNG file draw them.

    Attributes:
        name: The PNG file's, without suffix.
        title: The heading.
        caption: One sentence for each kind of line.
        unit: What the vertical axis counts.
        series: A line without its gaps: pieces of one line share name and look.
        axis: What the horizontal axis counts.
        zero: The vertical axis starts at 0.
    """

    name: str
    title: str
    caption: str
    unit: str
    series: Sequence[Series]
    axis: str = "round"
    zero: bool = True

    @property
    def named(self) -> bool:
        """Whether the lines need their names: one bold line is what the title says."""
        return any(s.colour != "ink" for s in self.series)


@dataclass(frozen=True)
class Scale:
    """How a number becomes a shade.

    Attributes:
        low: The smallest number.
        high: The largest.
        centre: Where one colour gives way to the other, the centre itself in the first; ``None``:
            there is one colour, faint at ``low``.
        colours: Up to the centre and above it; with no centre the first is used.
    """

    low: float
    high: float
    centre: float | None = None
    colours: tuple[str, str] = ("s0", "s1")

    def shade(self, value: float) -> tuple[str, float]:
        """Return the colour and its strength from `FAINT` to 1.

        With a centre the strength goes with the root of the distance from it: a few far numbers
        would bleach all others.

        >>> Scale(0, 4).shade(4.0), Scale(-1, 8, 0).shade(2.0)[0]
        (('s0', 1.0), 's1')
        """
        if self.centre is None:
            colour, share = self.colours[0], _share(value - self.low, self.high - self.low)
        else:
            above = value > self.centre
            end = self.high if above else self.low
            colour = self.colours[above]
            share = math.sqrt(_share(abs(value - self.centre), abs(end - self.centre)))
        return colour, FAINT + (1 - FAINT) * share


@dataclass(frozen=True)
class Group:
    """Neighbouring rows or columns that belong together; a border is drawn around them."""

    name: str
    count: int


@dataclass(frozen=True)
class HeatMap:
    """A number for each row and column, as a shade and, where there is room, as text.

    Attributes:
        name: The PNG file's, without suffix.
        title: The heading.
        caption: What the numbers are.
        rows: Names of the rows, top to bottom; ``columns`` left to right.
        values: One sequence a row; ``None`` is left empty.
        scale: Numbers to shades.
        key: ``(text, number)`` for the legend, ``None`` for an empty cell.
        what: What a cell is called when pointed at.
        row_groups: Groups of rows, top to bottom; empty or all of them. ``column_groups`` as well.
        digits: Decimals of the text in a cell.
        sides: What rows and columns are, such as ``("client", "module")``.
        shades: What the scale (and ``key``) is about where that is not ``values`` themselves.
    """

    name: str
    title: str
    caption: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Cells
    scale: Scale
    key: Sequence[tuple[str, float | None]]
    what: str
    row_groups: Sequence[Group] = ()
    column_groups: Sequence[Group] = ()
    digits: int = 0
    sides: tuple[str, str] = ("client", "client")
    shades: Cells | None = None

    @property
    def shaded(self) -> Cells:
        """The numbers that become shades."""
        return self.values if self.shades is None else self.shades

    def text(self, value: float) -> str:
        """Return a cell's number as it is written into it."""
        return f"{round(value, self.digits) + 0.0:.{self.digits}f}"  # + 0.0: never "-0"

    def label(self, row: int, column: int) -> str:
        """Return what a cell says when pointed at."""
        value = self.values[row][column]
        said = "not known" if value is None else f"{value:.4g}"
        one, other = self.sides
        return f"{one} {self.rows[row]}, {other} {self.columns[column]}: {self.what} {said}"

    @property
    def numbered(self) -> bool:
        """Whether numbers in cells tell more than that there is one."""
        return len({v for row in self.values for v in row if v is not None}) > 1

    @property
    def longest(self) -> int:
        """The most characters of a cell's text."""
        texts = (self.text(v) for row in self.values for v in row if v is not None)
        return max((len(text) for text in texts), default=0)


@dataclass(frozen=True)
class Dot:
    """One thing in a column: its short name, the look of its kind, and what it says."""

    name: str
    kind: int
    label: str


@dataclass(frozen=True)
class Columns:
    """Things in columns, such as clients in clusters; kinds differ by colour and shape.

    Attributes:
        name: The PNG file's, without suffix.
        title: The heading.
        caption: What the columns and the kinds are.
        heads: A heading for each column.
        dots: The things in each column.
        kinds: Names of the kinds, for the legend.
    """

    name: str
    title: str
    caption: str
    heads: Sequence[str]
    dots: Sequence[Sequence[Dot]]
    kinds: Sequence[str]

    def places(self, most: int = 11) -> tuple[list[tuple[float, list[tuple[int, int]]]], int, int]:
        """Return each column's middle and its dots' places, all in cells, then width and height.

        Columns are wrapped into several so that the whole is about ``most`` wide, if it can be.
        """
        sizes = [max(len(column), 1) for column in self.dots]
        height = next((h for h in range(4, 17) if sum(_wide(n, h) + 1 for n in sizes) <= most), 16)
        found, left = list[tuple[float, list[tuple[int, int]]]](), 0
        for column, size in zip(self.dots, sizes, strict=True):
            wide = _wide(size, height)
            at = [(left + i % wide, i // wide) for i in range(len(column))]
            found.append((left + (wide - 1) / 2, at))
            left += wide + 1
        rows = max((y + 1 for _, at in found for _, y in at), default=1)
        return found, max(left - 1, 1), rows


@dataclass(frozen=True)
class Scatter:
    """Points against the line on which both numbers are the same.

    Attributes:
        name: The PNG file's, without suffix.
        title: The heading.
        caption: What the numbers are, and their ratio.
        axes: What the horizontal and the vertical axis count.
        groups: Points by group, each point with its label.
    """

    name: str
    title: str
    caption: str
    axes: tuple[str, str]
    groups: Sequence[Series] = field(default=())


Picture = LineFigure | HeatMap | Columns | Scatter


def starts(groups: Iterable[Group]) -> list[int]:
    """Return where each group begins, and the end.

    >>> starts([Group("a", 2), Group("b", 3)])
    [0, 2, 5]
    """
    found = [0]
    for group in groups:
        found.append(found[-1] + group.count)
    return found


def _wide(size: int, height: int) -> int:
    return -(-size // height)


def _share(part: float, whole: float) -> float:
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else 1.0
