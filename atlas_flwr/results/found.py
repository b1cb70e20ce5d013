"""Who was found to be alike: similarities, the graph, clusters against tasks. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from atlas_flwr.results.series import tasks_of
from atlas_flwr.results.shapes import Cells, Columns, Dot, Group, HeatMap, Scale
from atlas_flwr.results.steps import steps_line

if TYPE_CHECKING:
    from atlas_flwr.results.store import RunResult

Key = list[tuple[str, float | None]]
MOST = 64  # rows of a heat map; beyond that there is one for each group
_Z = (
    "z between the fingerprints of two clients: how sure it is that their rows differ, in standard "
    "errors. Clusters are joined while the z of their pooled rows stays below the threshold, so "
    "single pairs may say otherwise."
)
_SIMILARITY = "How alike two clients are; high is alike."


def clusters_of(run: RunResult) -> dict[int, int]:
    """Return each client's last cluster by partition, as the rows say, else ``clusters.json``."""
    rows = run.clients.dropna(subset=["cluster"])
    told = dict(zip(rows["partition"].astype(int), rows["cluster"].astype(int), strict=True))
    found = told or {int(p): int(c) for p, c in run.clusters.get("clusters", {}).items()}
    return dict(sorted(found.items()))


def tasks_by_client(run: RunResult) -> dict[int, str]:
    """Return the task of each partition."""
    return dict(zip(run.clients["partition"].astype(int), run.clients["task"], strict=True))


def found_figures(run: RunResult) -> list[HeatMap | Columns]:
    """Return what can be drawn of how clusters were found; what the run lacks is left out."""
    figures = (similarity(run), graph(run), cluster_map(run))
    return [figure for figure in figures if figure is not None]


def similarity(run: RunResult) -> HeatMap | None:
    """Return how alike clients are, rows ordered by cluster; ``None`` if the run does not say.

    Label spaces share one picture, empty where two can't be compared. ``z`` is drawn where there
    is one, else ``similarity``.
    """
    blocks, kind = _blocks(run.clusters)
    if not blocks:
        return None
    sign, flat = -1 if kind == "z" else 1, any(block.limit is None for block in blocks)
    known = {p for block in blocks for p in block.partitions}
    order, groups = _ordered(known, clusters_of(run))
    place = {p: i for i, p in enumerate(order)}
    values: list[list[float | None]] = [[None] * len(order) for _ in order]
    shades = deepcopy(values)
    for block in blocks:
        for one, row in zip(block.partitions, block.rows, strict=True):
            for other, value in zip(block.partitions, row, strict=True):
                if one != other and value is not None:
                    at = (place[one], place[other])
                    values[at[0]][at[1]] = value
                    shades[at[0]][at[1]] = sign * value if flat else value - (block.limit or 0.0)
    caption = _Z if kind == "z" else _SIMILARITY
    heading = ("similarity", "Similarity", caption, kind)
    scale, key = _scale(values, shades, kind, [block.limit for block in blocks])
    figure = _square(heading, order, groups, (values, shades), (scale, key))
    return replace(figure, key=[*key, ("not comparable", None)]) if figure.gaps() else figure


def graph(run: RunResult) -> HeatMap | None:
    """Return the edges of the graph that models were pulled together over."""
    edges = run.clusters.get("graph")
    clusters = clusters_of(run)
    known = sorted(int(p) for p in run.clusters.get("clusters", clusters))
    if not edges or len(edges) != len(known):
        return None
    order, groups = _ordered(known, clusters)
    at = [known.index(p) for p in order]
    values = [[edges[i][j] or None if i != j else None for j in at] for i in at]
    there = [value for row in values for value in row if value is not None]
    high = max(there, default=1.0)
    caption = (
        f"{len(there) // 2} edges: whose models are pulled together. In a client's row its model "
        "moves twice as far at twice the weight; who counts for less moves further at the same."
    )
    if steps := steps_line(run.clusters):
        caption += f" What is taken of each step: {steps}."
    low = min(there, default=high)
    key: Key = [(f"{value:.3g}", value) for value in dict.fromkeys((low, high))]
    key.append(("no edge", None))
    heading = ("graph", "Graph", caption, "weight")
    square = _square(heading, order, groups, (values, values), (Scale(0.0, high), key))
    return replace(square, unit="how strongly two models pull at each other", grey=False)


def cluster_map(run: RunResult) -> Columns | None:
    """Return clients in the columns of their clusters, their tasks as kinds."""
    clusters, tasks = clusters_of(run), tasks_by_client(run)
    members = sorted(set(clusters) & set(tasks))
    if not members:
        return None
    kinds, found = tasks_of(run), sorted({clusters[p] for p in members})
    dots = [
        [
            Dot(str(p), kinds.index(tasks[p]), f"client {p} ({tasks[p]}), cluster {c}")
            for p in sorted(members, key=lambda p: (kinds.index(tasks[p]), p))
            if clusters[p] == c
        ]
        for c in found
    ]
    caption = _against_tasks([tasks[p] for p in members], [clusters[p] for p in members])
    if blocks := _blocks(run.clusters)[0]:
        but = ", only how many labels each client has" if len(blocks) > 1 else ""
        caption += f" The server never saw the tasks{but}."
    return Columns("clusters", "Clusters", caption, [str(c) for c in found], dots, kinds)


def by_group(values: Cells, groups: Sequence[Group]) -> list[list[float | None]]:
    """Return the mean row of each group, over the numbers there are."""
    rows, found = iter(values), list[list[float | None]]()
    for group in groups:
        block = [next(rows) for _ in range(group.count)]
        columns = [[v for v in column if v is not None] for column in zip(*block, strict=True)]
        found.append([sum(there) / len(there) if there else None for there in columns])
    return found


def _against_tasks(tasks: Sequence[str], clusters: Sequence[int]) -> str:
    """Return how well clusters fit the tasks; of one client there is nothing to say."""
    from sklearn.metrics import adjusted_rand_score  # noqa: PLC0415 - a second, for one number

    said = f"{len(set(clusters))} found for {len(set(tasks))} tasks"
    if len(tasks) < 2:
        return f"{said}."
    score = float(adjusted_rand_score(list(tasks), list(clusters)))
    return f"{said}; adjusted Rand index {score:.2f} (1: the tasks, 0: chance)."


@dataclass(frozen=True)
class _Block:
    """One label space's matrix, and the threshold its numbers are held against."""

    partitions: Sequence[int]
    rows: Cells
    limit: float | None


def _blocks(told: Mapping[str, Any]) -> tuple[list[_Block], str]:
    """Return the matrix of every label space, and what the matrices are."""
    places = [*told.get("spaces", ()), told]
    everybody = sorted(map(int, told.get("clusters", {})))
    for kind in ("z", "similarity"):
        blocks = [
            _Block(
                [int(p) for p in place.get("partitions") or everybody or range(len(rows))],
                rows,
                place.get("threshold"),
            )
            for place in places
            if (rows := place.get(kind))
        ]
        if blocks:
            return blocks, kind
    return [], ""


def _ordered(known: Sequence[int] | set[int], clusters: Mapping[int, int]) -> Any:
    """Return the partitions by cluster, and the clusters as groups; those of none come last."""
    last = max(clusters.values(), default=0) + 1
    order = sorted(known, key=lambda p: (clusters.get(p, last), p))
    groups = [
        Group(f"cluster {c}" if c != last else "no cluster", len(list(who)))
        for c, who in groupby(order, key=lambda p: clusters.get(p, last))
    ]
    return order, groups


def _scale(
    values: Cells, shades: Cells, kind: str, limits: Sequence[float | None]
) -> tuple[Scale, Key]:
    """Return the shades, alike always in the first colour, and the legend.

    Without a threshold there is one colour, alike the darkest.
    """
    pairs = [
        (shade, value)
        for row, numbers in zip(shades, values, strict=True)
        for shade, value in zip(row, numbers, strict=True)
        if shade is not None and value is not None
    ]
    low, high = min(pairs, default=(0.0, 0.0)), max(pairs, default=(0.0, 0.0))
    if None in limits:
        names = ((low, "apart"), (high, "alike"))
        named: Key = [(f"{value:.3g}, {name}", shade) for (shade, value), name in names]
        return Scale(low[0], high[0]), named
    ends, colours = ("alike", "apart"), ("s0", "s1")
    if kind != "z":
        ends, colours = ends[::-1], colours[::-1]
    key: list[tuple[str, float | None]] = []
    if low[0] <= 0 and pairs:
        key.append((f"{low[1]:.3g}, {ends[0]}", low[0]))
    there = sorted({limit for limit in limits if limit is not None})
    if there:
        said = " to ".join(f"{limit:.3g}" for limit in dict.fromkeys((there[0], there[-1])))
        key.append((f"threshold {said}", 0.0))
    if high[0] > 0:
        key.append((f"{high[1]:.3g}, {ends[1]}", high[0]))
    return Scale(min(low[0], 0.0), max(high[0], 0.0), 0.0, colours), key


def _square(
    heading: tuple[str, str, str, str],
    order: Sequence[int],
    groups: Sequence[Group],
    cells: tuple[Cells, Cells],
    shades: tuple[Scale, Key],
) -> HeatMap:
    """Return a map of clients against clients; of too many, of clusters against clusters."""
    name, title, caption, what = heading
    names, kind, (values, shaded) = [str(p) for p in order], "client", cells
    if len(order) > MOST:
        names, kind = [g.name.removeprefix("cluster ") for g in groups], "cluster"
        values, shaded = (_by_groups(each, groups) for each in cells)
        caption += f" Means over the pairs of clusters: there are {len(order)} clients."
        groups = ()
    there = [value for row in values for value in row if value is not None]
    whole = all(float(value).is_integer() for value in there)
    digits = 0 if whole else 1 if max(map(abs, there)) >= 2 else 2
    shown = (name, title, caption, names, names, values, *shades, what, groups, groups, digits)
    return HeatMap(*shown, (kind, kind), shaded, itself=kind == "client")


def _by_groups(values: Cells, groups: Sequence[Group]) -> list[list[float | None]]:
    """Return the means of the blocks of a square."""
    half = list(zip(*by_group(values, groups), strict=True))
    return [list(row) for row in zip(*by_group(half, groups), strict=True)]


def tally(words: Sequence[str]) -> str:
    """Return how often each word occurs, most often first.

    >>> tally(["b", "a", "b"])
    'b (2), a (1)'
    """
    return ", ".join(f"{word} ({count})" for word, count in Counter(words).most_common())
