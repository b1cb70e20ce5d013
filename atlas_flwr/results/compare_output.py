"""A comparison on the terminal and on disk: table, page, CSV, pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import rich.table
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.console import Group, RenderableType
from rich.text import Text

from atlas_flwr.errors import ResultError
from atlas_flwr.results import seeds
from atlas_flwr.results.compare import COLUMNS, Comparison, Panel, compare, numbers, values_of
from atlas_flwr.results.compare_page import ERROR, comparison_html
from atlas_flwr.results.plots import STYLE, layout, paint, save
from atlas_flwr.results.plots_lines import DASHES, shown_label
from atlas_flwr.results.plots_maps import MARKERS
from atlas_flwr.results.series import PALETTE
from atlas_flwr.results.store import RunResult
from atlas_flwr.results.sweeps import sweep_figures
from atlas_flwr.results.writing import atomic_write

_SCORES = ("accuracy", "worst_client_accuracy", "loss")


def write_comparison(runs: Sequence[RunResult], out: Path) -> Comparison:
    """Write ``comparison.html``, ``.csv`` and ``.png`` into a folder.

    Raises:
        ResultError: No run was given, or the folder holds a run or can't be written.
    """
    found = compare(runs)
    try:
        # Its pictures would lie among the run's, and look like them.
        if any((out / name).exists() for name in ("summary.json", "config.toml")):
            raise ResultError(f"{out}: holds a run; name another --out")
        out.mkdir(parents=True, exist_ok=True)
        atomic_write(out / "comparison.csv", _csv(found))
        atomic_write(out / "comparison.html", comparison_html(found))
        _png(found, out / "comparison.png")
        _sweeps(found, out)
    except OSError as error:
        raise ResultError(f"{out}: can't be written ({error.strerror or error})") from error
    return found


def comparison_table(found: Comparison) -> RenderableType:
    """Return the comparison for the terminal, a section per task set."""
    caption = f"{found.text} {ERROR}"
    table = rich.table.Table(caption=caption, caption_justify="left")
    table.add_column("run", overflow="fold", min_width=10)
    table.add_column("strategy", overflow="fold", min_width=9)
    for name in ("accuracy", "worst", "error", "moved", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    for panel in found.panels:
        table.add_section()
        if len(found.panels) > 1:
            table.add_row(Text(f"tasks: {panel.title}", style="bold"))
        for label, run in panel.runs.items():
            row = values_of(label, run)
            accuracy, worst, _, *rest = numbers(row)
            table.add_row(Text(label), Text(str(row["strategy"])), accuracy, worst, *rest)
    groups = [g for panel in found.panels for g in seeds.groups_of(panel.runs) if g.size > 1]
    return Group(table, *([_seeds_table(groups)] if groups else []))


def _seeds_table(groups: Sequence[seeds.Group]) -> rich.table.Table:
    """Return what runs that differ in their seed alone are together."""
    table = rich.table.Table(caption=seeds.seeds_line(groups), caption_justify="left")
    table.add_column("runs", overflow="fold")
    for name in ("n", "accuracy", "worst client", "loss"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        scores = (group.score(key) for key in _SCORES)
        table.add_row(Text(group.name), str(group.size), *scores)
    return table


def _csv(found: Comparison) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(found.rows())
    return buffer.getvalue()


def _png(found: Comparison, path: Path) -> None:
    count = len(found.panels)
    lines = max(len(seeds.groups_of(panel.runs)) for panel in found.panels)
    height = max(4.2, 1.0 + 0.25 * lines)  # inches; the legend has a row for each line
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(8.0, height * count), layout=layout())
        FigureCanvasAgg(figure)
        for index, panel in enumerate(found.panels):
            _draw(figure.add_subplot(count, 1, index + 1), panel)
        save(figure, path)


def _sweeps(found: Comparison, out: Path) -> None:
    """Draw what runs that differ in one thing show, a file a figure."""
    for index, panel in enumerate(found.panels):
        number = f"-{index + 1}" if len(found.panels) > 1 else ""
        for figure in sweep_figures(panel.runs):
            run = next(iter(panel.runs.values()))
            named = replace(figure, name=f"comparison-{figure.name}{number}")
            paint(named, out, run)


def _draw(axes: Axes, panel: Panel) -> None:
    for index, group in enumerate(seeds.groups_of(panel.runs)):
        style: dict[str, Any] = {
            "color": PALETTE[index % len(PALETTE)],
            "marker": MARKERS[index % len(MARKERS)],
            "linestyle": DASHES[index // len(PALETTE) % len(DASHES)],
        }
        line = group.line("accuracy")
        xs, means = [x for x, _, _ in line], [mean for _, mean, _ in line]
        axes.plot(xs, means, label=shown_label(group.title), **style)
        if group.size > 1:
            low, high = ([m + way * s for _, m, s in line] for way in (-1, 1))
            axes.fill_between(xs, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.set_title(f"Accuracy on own validation rows: {panel.title}")
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
