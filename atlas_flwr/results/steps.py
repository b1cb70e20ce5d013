"""How far models were pulled together, and how far apart clients ended up, by round. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_flwr.results.series import PALETTE, client_accuracies, pieces, tasks_of, thinned
from atlas_flwr.results.shapes import LineFigure
from atlas_flwr.results.svg.parts import Series

if TYPE_CHECKING:
    from atlas_flwr.results.store import RunResult

LINES = 12  # curves of one picture beyond which only the last round's are drawn
Record = Mapping[str, Any]
_REACH = (
    "0 leaves clients alone, 1 goes as far as the graph allows: on a complete graph to the "
    "cluster's mean."
)
Points = list[tuple[int, float]]


def step_figures(run: RunResult) -> list[LineFigure]:
    """Return loss against η and η by round; what no round has is left out."""
    figures = (eta_losses(run.rounds), etas(run.rounds))
    return [figure for figure in figures if figure is not None]


def eta_losses(rounds: Sequence[Record]) -> LineFigure | None:
    """Return the loss on held-back rows against η, a line for each cluster and drawn round.

    The last round is drawn and up to two before it, fewer where there are many clusters. The
    chosen η is circled: the one that ``eta`` names.
    """
    told = {r["round"]: r["eta_loss"] for r in rounds if r.get("eta_loss")}
    if not told:
        return None
    chosen = {r["round"]: r.get("eta") or {} for r in rounds}
    clusters = _clusters(told.values())
    shown = _some(sorted(told), max(1, LINES // len(clusters)))
    lines, rings, first = list[Series](), list[Series](), set[float]()
    for dash, round_ in enumerate(reversed(shown)):
        for index, cluster in enumerate(clusters):
            raw = _losses(told[round_].get(cluster))
            pairs = [(e, y - raw[0][1]) for e, y in raw]
            first = {*first, *(e for e, _ in raw[:1])}
            name = f"cluster {cluster}" + (f", round {round_}" if len(shown) > 1 else "")
            look = (f"s{index % len(PALETTE)}", dash, index)
            said = [f"{name}, η = {e:g}: {y:.4g}" for e, y in raw]
            lines.append(Series(name, pairs, *look, said))
            best = [(e, y) for e, y in pairs if e == chosen[round_].get(cluster)]
            said = [f"{name}, chosen η = {e:g}: {dict(raw)[e]:.4g}" for e, _ in best]
            rings.append(Series("chosen", best, "ink", labels=said, ring=True))
    start = "at η 0" if first == {0.0} else "at the smallest η"
    caption = (
        f"Mean loss on rows that were held back from training, minus that {start}, by η, the share "
        f"of the step: {'rounds ' if len(shown) > 1 else 'round '}{', '.join(map(str, shown))}. "
        f"{_REACH}"
    )
    series = [s for s in [*lines, *rings] if s.points]
    if not series:
        return None
    unit = f"loss minus loss {start}"
    return LineFigure("eta-loss", "Loss against η", caption, unit, series, "η", zero=False)


def etas(rounds: Sequence[Record]) -> LineFigure | None:
    """Return η by round, a line for each cluster."""
    told = {r["round"]: r["eta"] for r in rounds if r.get("eta")}
    series = []
    for index, cluster in enumerate(_clusters(told.values())):
        values = [(r["round"], (told.get(r["round"]) or {}).get(cluster)) for r in rounds]
        look = (f"s{index % len(PALETTE)}", index, index)
        series += [Series(f"cluster {cluster}", piece, *look) for piece in pieces(values)]
    if not series:
        return None
    caption = f"η of each cluster. {_REACH}"
    return LineFigure("eta", "η by round", caption, "η", series)


def steps_line(clusters: Mapping[str, Any]) -> str:
    """Return the steps that came with the clusters in one line; empty where none did.

    >>> steps_line({"eta": {"0": 1.0, "1": 0.857}})
    'η of cluster 0: 1.00; cluster 1: 0.86'
    """
    told = clusters.get("eta", {})
    said = "; ".join(f"cluster {cluster}: {eta:.2f}" for cluster, eta in told.items())
    return f"η of {said}" if said else ""


def spread_figures(run: RunResult) -> list[LineFigure]:
    """Return how far clients lie apart by round, over all of them and for each task.

    A figure needs two clients (of one task for the second, and two tasks), and two rounds.
    """
    tasks = tasks_of(run)
    own = {task: _by_round(client_accuracies(run.clients, task, "evaluate")) for task in tasks}
    every: dict[int, list[float]] = {}
    for rounds in own.values():
        for round_, values in rounds.items():
            every.setdefault(round_, []).extend(values)
    what = "Accuracy on the clients' own validation rows:"
    figures = []
    if _spreads(every):
        whole = Series("mean of clients", means(every), bands=[_band(every, 0, 100), _band(every)])
        said = f"{what} the mean, the middle half of the clients, and lowest to highest."
        figures.append(LineFigure("spread", "Spread", said, "accuracy", [whole], zero=False))
    if len(tasks) > 1 and any(map(_spreads, own.values())):
        lines = [
            Series(task, means(own[task]), f"s{i % len(PALETTE)}", 0, i, bands=[_band(own[task])])
            for i, task in enumerate(tasks)
            if own[task]
        ]
        said = f"{what} each task's mean and the middle half of its clients."
        figures.append(
            LineFigure("spread-tasks", "Spread by task", said, "accuracy", lines, zero=False)
        )
    return figures


def means(values: Mapping[int, Sequence[float]]) -> Points:
    """Return the plain mean of each round."""
    return [(x, float(np.mean(values[x]))) for x in sorted(values)]


def _by_round(accuracies: Sequence[tuple[int, int, float]]) -> dict[int, list[float]]:
    ordered = sorted(accuracies)
    return {x: [y for *_, y in who] for x, who in groupby(ordered, key=lambda item: item[0])}


def _band(
    values: Mapping[int, Sequence[float]], low: float = 25, high: float = 75
) -> list[tuple[float, float, float]]:
    """Return the band between two percentiles."""
    ends = {x: np.percentile(values[x], [low, high]).tolist() for x in sorted(values)}
    return [(x, *pair) for x, pair in ends.items()]


def _spreads(values: Mapping[int, Sequence[float]]) -> bool:
    return len(values) > 1 and max(map(len, values.values())) > 1


def _losses(told: Mapping[str, float | None] | None) -> list[tuple[float, float]]:
    """Return η and its loss, ascending, those left out that have none."""
    return sorted((float(eta), loss) for eta, loss in (told or {}).items() if loss is not None)


def _clusters(told: Any) -> list[str]:
    """Return the clusters named in any round, ascending."""
    return sorted({c for item in told for c in item}, key=lambda c: (len(c), c))


def _some(rounds: Sequence[int], most: int) -> list[int]:
    """Return at most three or ``most`` rounds, the last one among them."""
    return thinned(rounds, min(most, 3))
