"""The report's charts: which series of a run go into which picture, with legend and caption."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from atlas_flwr.results.insights import insights
from atlas_flwr.results.merges import merge_figures
from atlas_flwr.results.series import (
    PALETTE,
    client_accuracies,
    cumulative_mb,
    curve,
    kind_name,
    kinds_moved,
    peak_memory,
    tasks_of,
    thinned,
)
from atlas_flwr.results.shapes import Columns, HeatMap, LineFigure, Picture
from atlas_flwr.results.steps import spread_figures
from atlas_flwr.results.store import RunResult
from atlas_flwr.results.svg.draw import line_chart, mirror_chart, strip_chart
from atlas_flwr.results.svg.maps import (
    columns_chart,
    heat_key,
    heat_map,
    kinds_key,
    scatter_chart,
)
from atlas_flwr.results.svg.parts import Series, legend_mark


@dataclass(frozen=True)
class LegendItem:
    """A line's or bar's look beside its name."""

    name: str
    mark: Markup


@dataclass(frozen=True)
class Chart:
    """One chart of a page; a lone one would leave the other half of its row empty."""

    title: str
    caption: str
    svg: Markup
    legend: Sequence[LegendItem]
    lone: bool = False

    @property
    def wide(self) -> bool:
        """Whether it is wider than a column of the page."""
        return "min-width" in self.svg[: self.svg.index(">")]


def run_figures(run: RunResult) -> list[Chart]:
    """Return the charts of one run: accuracy, loss, merges, clients, bytes, memory, time.

    Where a strategy merges nothing that can be measured, there are no charts of merges.
    """
    merges = [_lines(figure) for figure in merge_figures(run.rounds)]
    rest = [_clients(run), _bytes(run), _memory(run), _time(run)]
    return [_accuracy(run), _loss(run), *merges, *rest, *map(drawn, spread_figures(run))]


def found_figures(run: RunResult) -> list[Chart]:
    """Return the charts of what the run found: clusters, ranks, steps; none if it has none."""
    return [drawn(picture) for picture in insights(run)]


def placed(charts: Sequence[Chart]) -> list[Chart]:
    """Return charts of a page in two columns, the last without a neighbour as wide as both."""
    narrow = [i for i, chart in enumerate(charts) if not chart.wide]
    alone = narrow[-1] if len(narrow) % 2 else None
    return [replace(chart, lone=True) if i == alone else chart for i, chart in enumerate(charts)]


def drawn(picture: Picture) -> Chart:
    """Return a picture as a chart of the page."""
    heading = (picture.title, picture.caption)
    if isinstance(picture, LineFigure):
        return _lines(picture)
    if isinstance(picture, HeatMap):
        shades = [LegendItem(text, shade) for text, shade in heat_key(picture)]
        legend = [LegendItem(f"{picture.legend}:", Markup("")), *shades]
        return Chart(*heading, Markup(heat_map(picture)), legend)
    if isinstance(picture, Columns):
        legend = _legend(kinds_key(picture.kinds), "dot")
        return Chart(*heading, Markup(columns_chart(picture)), legend)
    named = picture.groups if len(picture.groups) > 1 else ()
    return Chart(*heading, Markup(scatter_chart(picture)), _legend(named, "dot"))


def chart(title: str, caption: str, series: Sequence[Series], zero: bool = False) -> Chart:
    """Return a line chart with its legend; series without a point are left out."""
    shown = [s for s in series if s.points]
    legend = _legend(shown) if len(shown) > 1 else []
    return Chart(title, caption, Markup(line_chart(title, shown, zero)), legend)


def colour(index: int) -> str:
    """Return the name of the page's colour for the index-th thing."""
    return f"s{index % len(PALETTE)}"


def _legend(series: Iterable[Series], kind: str = "line") -> list[LegendItem]:
    return [LegendItem(s.name, Markup(legend_mark(s, kind))) for s in series]


def _by_task(run: RunResult, key: str) -> list[Series]:
    tasks = tasks_of(run)
    lines = [
        Series(task, curve(run.rounds, key, task), colour(i), 1 + i // len(PALETTE), i)
        for i, task in enumerate(tasks if len(tasks) > 1 else ())
    ]
    return [*lines, Series("all clients", curve(run.rounds, key))]


def _accuracy(run: RunResult) -> Chart:
    worst = Series("worst client", curve(run.rounds, "worst_client_accuracy"), "quiet", 2, 2)
    caption = "By round, each client on its own validation rows."
    return chart("Accuracy", caption, [worst, *_by_task(run, "accuracy")])


def _loss(run: RunResult) -> Chart:
    train = Series("training", curve(run.rounds, "train_loss"), "quiet", 2, 2)
    caption = "By round, on the clients' own validation rows and in training."
    return chart("Loss", caption, [train, *_by_task(run, "loss")])


def _clients(run: RunResult) -> Chart:
    rounds = thinned([r["round"] for r in run.rounds])
    # The column after the last round keeps the distance that the drawn rounds have.
    end = rounds[-1] + (rounds[-1] - rounds[-2] if len(rounds) > 1 else 1) if rounds else 1
    groups = []
    for index, task in enumerate(tasks_of(run)):
        own = [
            point
            for point in client_accuracies(run.clients, task, "evaluate")
            if point[0] in rounds
        ]
        final = [(end, p, y) for _, p, y in client_accuracies(run.clients, task, "final")]
        labels = [f"client {p} ({task}), round {x}: {y:.3f}" for x, p, y in own]
        labels += [f"client {p} ({task}), whole set: {y:.3f}" for _, p, y in final]
        points = [(x, y) for x, _, y in own + final]
        groups.append(Series(task, points, colour(index), 0, index, labels))
    groups = [group for group in groups if group.points]
    has_end = any(x == end for group in groups for x, _ in group.points)
    title = "Clients"
    svg = strip_chart("Accuracy of each client", groups, end if has_end else None)
    caption = "Each client's accuracy on its own rows; at the end on its task's whole set."
    return Chart(title, caption, Markup(svg), _legend(groups, "dot"))


def _lines(figure: LineFigure) -> Chart:
    lines = {s.name: s for s in figure.series}.values() if figure.named else ()
    svg = line_chart(figure.title, figure.series, figure.zero, figure.axis)
    return Chart(figure.title, figure.caption, Markup(svg), _legend(lines))


def _bytes(run: RunResult) -> Chart:
    rounds = [r["round"] for r in run.rounds]
    stacks: dict[str, list[Series]] = {"up": [], "down": []}
    kinds = kinds_moved(run.rounds)
    named = {kind: kind_name(run.rounds, kind) for kind in kinds}
    for way, stack in stacks.items():
        moved = cumulative_mb(run.rounds, way)
        for index, kind in enumerate(kinds):
            heights = moved.get(kind, [0.0] * len(rounds))
            labels = [
                f"{kind} {way}, rounds 1 to {x}: {y:.3f} MB"
                for x, y in zip(rounds, heights, strict=True)
            ]
            points = list(zip(rounds, heights, strict=True))
            stack.append(Series(named[kind], points, colour(index), 0, 0, labels))
    svg = mirror_chart("Bytes moved by kind", rounds, stacks["up"], stacks["down"])
    caption = "MB so far by kind, as measured on the wire; in the legend all of the kind's bytes."
    return Chart("Bytes", caption, Markup(svg), _legend(stacks["up"], "bar"))


def _memory(run: RunResult) -> Chart:
    series = [
        Series(phase, points, colour(index), index, index)
        for index, (phase, points) in enumerate(peak_memory(run.clients).items())
    ]
    return chart("Memory", "The highest peak a client measured, MB by phase.", series, zero=True)


def _time(run: RunResult) -> Chart:
    series = [Series("a round", curve(run.rounds, "time_seconds"))]
    return chart(
        "Time", "Seconds from the start of a round to its end, on the server.", series, zero=True
    )
