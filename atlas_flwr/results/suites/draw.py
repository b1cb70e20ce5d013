"""The drawing of a suite's pictures on Matplotlib's figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from atlas_flwr.results.plots_lines import DASHES, caption, shown_label
from atlas_flwr.results.plots_maps import INK, MARKERS, QUIET
from atlas_flwr.results.series import PALETTE
from atlas_flwr.results.suites.compared import Analysis, Line
from atlas_flwr.results.suites.curves import Band
from atlas_flwr.results.suites.rows import MB, heading, less_is_better, unit_of, words

TOGETHER = 7  # curves that one pair of axes can hold; more get a panel each
COLUMNS = 4
Axis = Literal["round", "bytes"]
AXES: tuple[Axis, ...] = ("round", "bytes")
FAR_APART = 30.0  # largest over smallest, from which on the axis of bytes is logarithmic
# Where a point's number may stand, in points (1/72 inch).
AROUND = (
    (10, 0),
    (-10, 0),
    (0, 10),
    (0, -10),
    (8, 8),
    (-8, 8),
    (8, -8),
    (-8, -8),
    (17, 0),
    (0, 18),
)


def row_size(rows: int, found: Analysis) -> tuple[float, float]:
    """Return a picture's size in inches: a line for each of the rows and each setting."""
    sections = len(found.settings) if len(found.settings) > 1 else 0
    return 8.5, 1.9 + 0.3 * rows + 0.3 * sections


def curve_size(curves: int) -> tuple[float, float]:
    """Return a picture of curves' size in inches."""
    if curves <= TOGETHER:
        return 8.5, 4.6
    return 11.0, 1.2 + 1.9 * math.ceil(curves / COLUMNS)


# -------------------------------------------------------------------- curves


def draw_curves(figure: Figure, found: Sequence[Band], axis: Axis, title: str, unit: str) -> None:
    """Draw means over seeds with bands; each in a panel of its own where they are many."""
    if len(found) <= TOGETHER:
        axes = figure.add_subplot()
        for index, band in enumerate(found):
            _band(axes, band, axis, PALETTE[index], MARKERS[index % len(MARKERS)], index)
        axes.set_title(title)
        axes.set_ylabel(unit)
        _axis(axes, found, axis)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=3.6)
    else:
        axes = _panels(figure, found, axis, unit)
        figure.suptitle(title, fontweight="bold", x=0.01, ha="left")
    spread = _seeds([band.n for band in found])
    grey = "" if len(found) <= TOGETHER else " Grey: the others."
    how = "mean ± sample standard deviation" if max(b.n for b in found) > 1 else "the run itself"
    caption(axes, f"Each client on its own validation rows; {how}, {spread}.{grey}")


def _panels(figure: Figure, found: Sequence[Band], axis: Axis, unit: str) -> Axes:
    rows = math.ceil(len(found) / COLUMNS)
    grid = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index >= len(found):
            axes.set_visible(False)
            grid[rows - 2, index % COLUMNS].xaxis.set_tick_params(labelbottom=True)
            continue
        for other in found:
            axes.plot(_x(other, axis), other.mean, color="#dde0e4", lw=1, zorder=1)
        band = found[index]
        _band(axes, band, axis, PALETTE[0], "o", 0)
        axes.set_title(band.label, fontsize=10, pad=5)
        _axis(axes, found, axis)
        last = index + COLUMNS >= len(found)
        axes.set_xlabel(axes.get_xlabel() if last else "")
    figure.supylabel(unit, fontsize=11, color=INK)
    first: Axes = grid[0, 0]
    return first


def _band(axes: Axes, band: Band, axis: Axis, color: str, marker: str, index: int) -> None:
    x = _x(band, axis)
    if band.std:
        low = [m - s for m, s in zip(band.mean, band.std, strict=True)]
        high = [m + s for m, s in zip(band.mean, band.std, strict=True)]
        axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    look: dict[str, Any] = {"color": color, "marker": marker, "linestyle": DASHES[index % 4]}
    axes.plot(x, band.mean, label=shown_label(band.label), zorder=3, **look)


def _x(band: Band, axis: Axis) -> Sequence[float]:
    return band.rounds if axis == "round" else band.mb


def _axis(axes: Axes, found: Sequence[Band], axis: Axis) -> None:
    if axis == "round":
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        return
    _bytes_axis(axes, [mb for band in found for mb in band.mb])
    axes.set_xlabel("MB moved, up and down")


def _bytes_axis(axes: Axes, mb: Sequence[float]) -> None:
    # A logarithmic axis has no place for who moves nothing.
    if min(mb) > 0 and max(mb) / min(mb) > FAR_APART:
        axes.set_xscale("log")
        # Matplotlib's own labels are formulas, which the style shows as they are written.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))


def _seeds(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    if low == high:
        return f"n = {low} seed{'s' * (low > 1)}"
    return f"n = {low} to {high} seeds"


# -------------------------------------------------------------------- final numbers


def draw_final(figure: Figure, lines: Sequence[Line], found: Analysis, setting: str) -> None:
    """Draw every seed, the mean and the standard deviation of each label, the best on top."""
    axes = figure.add_subplot()
    per, _, _ = unit_of(found.metric)
    down = less_is_better(found.metric)
    ordered = sorted(lines, key=lambda line: (line.mean or 0.0) * (1 if down else -1))
    for y, line in enumerate(ordered):
        mean = (line.mean or 0.0) / per
        if line.std is not None:
            axes.hlines(y, mean - line.std / per, mean + line.std / per, color=PALETTE[0], lw=2.5)
        seeds = [value / per for value in line.values.values()]
        if len(seeds) > 1:
            axes.plot(seeds, [y] * len(seeds), "o", ms=5, mfc="none", mec=INK, mew=0.9, zorder=4)
        axes.plot([mean], [y], "D", ms=7, color=PALETTE[0], zorder=3)
    _rows(axes, [line.label for line in ordered])
    axes.set_xlabel(words(found.metric))
    axes.set_title(f"{heading(found.metric)}: {setting}")
    spread = _seeds([line.n for line in lines])
    more = any(line.n > 1 for line in lines)
    told = (
        "Diamond: mean; circles: seeds; bar: ± sample standard deviation"
        if more
        else "One run each"
    )
    caption(axes, f"{told}; {spread}.")


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=True, axis="both")


# -------------------------------------------------------------------- against bytes


def draw_front(figure: Figure, lines: Sequence[Line], found: Analysis, setting: str) -> None:
    """Draw each label's mean against its bytes, and the line of those that none beats in both."""
    axes = figure.add_subplot()
    per = unit_of(found.metric)[0]
    points = [
        (line.label, ((line.up or 0.0) + (line.down or 0.0)) / MB, line.mean / per)
        for line in lines
        if line.mean is not None and line.up is not None and line.down is not None
    ]
    _bytes_axis(axes, [x for _, x, _ in points])
    front = pareto([(x, y) for _, x, y in points], less_is_better(found.metric))
    edge = sorted(points[i][1:] for i in front)
    axes.plot(*zip(*edge, strict=True), color=PALETTE[0], lw=1.5, ls=DASHES[1], zorder=1)
    axes.margins(0.08, 0.1)
    for index, (label, x, y) in enumerate(points):
        color = PALETTE[0] if index in front else "#6b727c"
        axes.plot([x], [y], "D" if index in front else "o", ms=6.5, color=color, zorder=3)
        axes.plot([], [], " ", label=f"{index + 1}  {label}")
    _numbers(axes, [(x, y) for _, x, y in points])
    axes.grid(visible=True, axis="both")
    axes.set_xlabel("MB moved, up and down")
    axes.set_ylabel(words(found.metric))
    axes.set_title(f"{heading(found.metric)} against bytes: {setting}")
    axes.legend(
        loc="center left", bbox_to_anchor=(1.01, 0.5), handlelength=0, handletextpad=0, fontsize=10
    )
    caption(
        axes,
        f"Means, {_seeds([line.n for line in lines])}. "
        "Blue diamonds: no other is at least as good in both.",
    )


def _numbers(axes: Axes, points: Sequence[tuple[float, float]]) -> None:
    """Write each point's number beside it, where neither a point nor a number is."""
    figure = axes.get_figure(root=True)
    if figure is None:
        return
    figure.draw_without_rendering()  # the layout decides where points are
    dots = 72 / figure.dpi
    spots = [tuple(float(v) * dots for v in axes.transData.transform(point)) for point in points]
    taken = list(spots)
    for number, (point, (x, y)) in enumerate(zip(points, spots, strict=True), start=1):
        # The least crowded place; of equals the first.
        right, up = max(
            AROUND,
            key=lambda step: min(
                (12.0, *(math.dist((x + step[0], y + step[1]), t) for t in taken if t != (x, y)))
            ),
        )
        taken.append((x + right, y + up))
        place: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": 9}
        axes.annotate(str(number), point, (right, up), textcoords="offset points", **place)


def pareto(points: Sequence[tuple[float, float]], down: bool = False) -> set[int]:
    """Return the indices of the points that no other beats in both numbers.

    Args:
        points: Cost, of which less is better, and gain.
        down: Whether less gain is better too.

    >>> sorted(pareto([(1, 0.5), (2, 0.7), (3, 0.6)]))
    [0, 1]
    """
    sign = -1 if down else 1
    signed = [(x, sign * y) for x, y in points]
    return {
        i
        for i, (x, y) in enumerate(signed)
        if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in signed)
    }


# -------------------------------------------------------------------- differences


def draw_forest(figure: Figure, found: Analysis) -> None:
    """Draw each label's mean difference from the baseline with its interval, setting by setting."""
    axes = figure.add_subplot()
    per = unit_of(found.metric)[0]
    names, y = list[tuple[float, str]](), 0
    for setting in found.settings:
        lines = [line for line in found.of(setting) if line.against and line.against.n]
        if len(found.settings) > 1 and lines:
            names.append((y, f"[{setting}]"))
            y += 1
        for line in lines:
            _whisker(axes, line, y, per)
            names.append((y, line.label))
            y += 1
    axes.axvline(0, color=INK, lw=1)
    _rows(axes, [name for _, name in names])
    for tick, (_, name) in zip(axes.get_yticklabels(), names, strict=True):
        tick.set_fontweight("bold" if name.startswith("[") else "normal")
    axes.set_xlabel(f"{words(found.metric)}, difference from {found.baseline}")
    side = "left" if less_is_better(found.metric) else "right"
    axes.set_title(f"Difference from {found.baseline}")
    counts = [ln.against.n for ln in found.lines.values() if ln.against and ln.against.n]
    spread = _seeds(counts).replace("seed", "pair")
    percent = f"{100 * found.confidence:g} %"
    told = f"Mean and {percent} confidence interval (t), not corrected; blue: without 0"
    told = told if max(counts) > 1 else "One pair each: no interval"
    caption(axes, f"{told}; paired by seed, {spread}. To the {side}: better than {found.baseline}.")


def _whisker(axes: Axes, line: Line, y: int, per: float) -> None:
    against = line.against
    if against is None or against.mean is None:
        return
    at = against.mean / per
    if against.low is None or against.high is None:
        axes.plot([at], [y], "o", ms=7, mfc="white", mec=QUIET, mew=1.5)
        return
    beyond = against.low > 0 or against.high < 0
    color = PALETTE[0] if beyond else QUIET
    axes.hlines(y, against.low / per, against.high / per, color=color, lw=2)
    for end in (against.low, against.high):
        axes.plot([end / per], [y], "|", ms=8, mew=2, color=color)
    axes.plot([at], [y], "D" if beyond else "o", ms=7, color=color)
