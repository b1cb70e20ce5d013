"""Pictures as data: what the page and the PNG files both draw. Pure, so that numbers can be tested.

A colour is a name, ``"ink"``, ``"quiet"`` or ``"s0"``…``"s6"``; pages and files know what it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from atlas_flwr.results.scatter import Scatter
from atlas_flwr.results.svg.parts import Series

Cells = Sequence[Sequence[float | None]]
FAINT = 0.14  # the weakest shade that is still seen
STRONG = 0.66  # a shade beyond which numbers are written in the page's colour


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
        log: Shades go with the logarithm; ``low`` is positive, and zero as faint as it.
    """

    low: float
    high: float
    centre: float | None = None
    colours: tuple[str, str] = ("s0", "s1")
    log: bool = False

    def shade(self, value: float) -> tuple[str, float]:
        """Return the colour and its strength from `FAINT` to 1.

        With a centre the strength goes with the root of the distance from it: a few far numbers
        would bleach all others.

        >>> Scale(0, 4).shade(4.0), Scale(-1, 8, 0).shade(2.0)[0]
        (('s0', 1.0), 's1')
        """
        if self.log:
            far = math.log(max(value, self.low) / self.low)
            colour, share = self.colours[0], _share(far, math.log(self.high / self.low))
        elif self.centre is None:
            colour, share = self.colours[0], _share(value - self.low, self.high - self.low)
        else:
            above = value > self.centre
            end = self.high if above else self.low
            colour = self.colours[above]
            far = abs(value - self.centre)
            share = math.sqrt(_share(far, abs(end - self.centre))) if far else 0.0
        return colour, FAINT + (1 - FAINT) * share

    def halves(self, value: float | None) -> list[float | None]:
        """Return what a legend shows for a number: of a centre between two colours, both sides."""
        if value is not None and value == self.centre and self.low < value < self.high:
            return [value, math.nextafter(value, math.inf)]
        return [value]

    def strong(self, value: float) -> bool:
        """Whether a number on this shade has to be in the page's colour to be read."""
        return self.shade(value)[1] > STRONG


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
        what: What a cell is called when pointed at, and the legend.
        row_groups: Groups of rows, top to bottom; empty or all of them. ``column_groups`` as well.
        digits: Decimals of the text in a cell.
        sides: What rows and columns are, such as ``("client", "module")``.
        shades: What the scale (and ``key``) is about where that is not ``values`` themselves.
        unit: More for the legend about what the numbers are.
        itself: Rows and columns are the same: the diagonal is struck out.
        grey: Empty cells are grey: a number is missing, and not a thing.
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
    unit: str = ""
    itself: bool = False
    grey: bool = True

    @property
    def legend(self) -> str:
        """What the legend is called."""
        log = "log scale" if self.scale.log else ""
        return ", ".join(text for text in (self.what, self.unit, log) if text)

    def gaps(self) -> list[tuple[int, int, int]]:
        """Return ``(row, first column, cells)`` of each stretch without a number.

        The diagonal is none where it is struck out.
        """
        found = []
        for i, row in enumerate(self.values):
            missing = [v is None and not (self.itself and i == j) for j, v in enumerate(row)]
            at = 0
            for empty, cells in groupby(missing):
                size = len(list(cells))
                found += [(i, at, size)] if empty else []
                at += size
        return found

    @property
    def shaded(self) -> Cells:
        """The numbers that become shades."""
        return self.values if self.shades is None else self.shades

    def text(self, value: float) -> str:
        """Return a cell's number as it is written into it."""
        if self.scale.log and 0 < value < 0.095:
            digits, _, power = f"{value:.0e}".partition("e")
            return f"{digits}e{int(power)}"
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
