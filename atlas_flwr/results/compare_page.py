"""The comparison as a page: one section for each task set, runs over seeds as one line."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan
from typing import Any

from atlas_flwr.results import page
from atlas_flwr.results.compare import Comparison, Panel
from atlas_flwr.results.figures import Chart, chart, colour, drawn, placed
from atlas_flwr.results.report import Table, render
from atlas_flwr.results.seeds import (
    Group,
    groups_of,
    more_than_strategy,
    seeds_line,
)
from atlas_flwr.results.series import PALETTE, count, show_bytes, show_seconds
from atlas_flwr.results.svg.parts import Series
from atlas_flwr.results.sweeps import against_eta

ERROR = "Error: the aggregation error of the last round."
_RUN = (
    *("run", "strategy", "seed", "status", "accuracy", "worst client", "loss", "error"),
    *("moved", "time"),
)
_GROUP = ("runs", "n", "accuracy", "worst client", "loss", "moved", "time")


def comparison_html(found: Comparison) -> str:
    """Return the page of a comparison."""
    panels = [_panel(panel) for panel in found.panels]
    title = f"{len(found.rows())} runs"
    return render(page.COMPARISON, title=title, lead=found.text, panels=panels)


def _panel(panel: Panel) -> dict[str, Any]:
    groups = groups_of(panel.runs)
    several = any(group.size > 1 for group in groups)
    rows = [[*row.words, *row.numbers] for row in panel.rows()]
    differences = _differences(panel, groups)
    head = ("key", *(group.title for group in groups))
    return {
        "title": panel.title,
        "text": _text(panel, groups),
        "figures": placed(_charts(panel, groups)),
        "groups": Table(_GROUP, [_group_row(g) for g in groups] if several else []),
        "table": Table(_RUN, rows, frozenset({"strategy", "status"})),
        "count": count(len(rows), "run"),
        "differences": Table(head, differences, frozenset(head), frozenset(head[1:])),
    }


def _differences(panel: Panel, groups: Sequence[Group]) -> list[list[str]]:
    """Return each key that differs with a value per group, seeds as a list."""
    place = {label: i for i, label in enumerate(panel.runs)}
    rows = []
    for key, values in panel.differences.items():
        found = [[values[place[label]] for label in group.runs] for group in groups]
        rows.append([key, *(", ".join(dict.fromkeys(each)) for each in found)])
    return rows


def _text(panel: Panel, groups: Sequence[Group]) -> str:
    words = ["Final accuracy: mean over tasks on their whole evaluation sets.", ERROR]
    words.append(seeds_line(groups))
    if lost := [group.title for group in groups if not group.line("accuracy")]:
        words.append(
            f"No round has an accuracy of every run: not in the curves: {', '.join(lost)}."
        )
    if other := more_than_strategy(list(panel.runs.values())):
        words.append(
            "These runs differ in more than the strategy, so it is not the only cause of what is "
            f"seen: {', '.join(other)}."
        )
    return " ".join(filter(None, words))


def _group_row(group: Group) -> list[str]:
    runs = list(group.runs.values())
    scores = ("accuracy", "worst_client_accuracy", "loss")
    moved = [run.summary["bytes"]["up"] + run.summary["bytes"]["down"] for run in runs]
    seconds = [run.summary["seconds"] for run in runs]
    return [
        group.name,
        str(group.size),
        *(group.score(key) for key in scores),
        show_bytes(sum(moved) / len(runs)),
        show_seconds(sum(seconds) / len(runs)),
    ]


def _charts(panel: Panel, groups: Sequence[Group]) -> list[Chart]:
    def lines(key: str) -> list[Series]:
        return [
            _line(group, key, (colour(i), i // len(PALETTE), i)) for i, group in enumerate(groups)
        ]

    seeds = any(group.size > 1 for group in groups)
    more = " Lines are means over seeds, bands ± one standard deviation." if seeds else ""
    own = f"By round, each client on its own validation rows.{more}"
    eta = against_eta(list(panel.runs.values()))
    return [
        chart("Accuracy", own, lines("accuracy")),
        chart("Worst client", "The lowest accuracy of a client, by round.", lines(_WORST)),
        *([drawn(eta)] if eta is not None else []),
    ]


_WORST = "worst_client_accuracy"


def _line(group: Group, key: str, look: tuple[str, int, int]) -> Series:
    found = group.line(key)
    band = [(x, y - spread, y + spread) for x, y, spread in found if not isnan(spread)]
    points = [(x, y) for x, y, _ in found]
    return Series(group.title, points, *look, bands=[band] if len(band) > 1 else [])
