"""How good the merges were: errors and ranks by round, as lines and as the last round's numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from atlas_flwr.results.series import PALETTE, ROUNDING, pieces
from atlas_flwr.results.shapes import LineFigure
from atlas_flwr.results.svg.parts import Series

# Errors that are all smaller are drawn below a line of this height: alone they would fill the
# picture with rounding.
YARDSTICK = 0.001
Record = Mapping[str, Any]


def merge_figures(rounds: Sequence[Record]) -> list[LineFigure]:
    """Return what can be drawn of the merges' errors; a figure without a number is left out."""
    aggregation = _gapped("aggregation", _measured(rounds, "aggregation_error"))
    truncation = _truncation(rounds)
    of_merge = (
        "Aggregation: how far what the server applied is from the exact mean of the clients' "
        "updates P*.",
        "Truncation: how far what a receiver of each rank holds is from what was applied.",
    )
    said = " ".join(text for text, s in zip(of_merge, (aggregation, truncation), strict=True) if s)
    rank = _gapped("effective rank", _measured(rounds, "effective_rank"))
    of_rank = "How many directions of each module what the server applied uses, on average."
    lost = [
        piece
        for i, way in enumerate(("up", "down"))
        for piece in _gapped(way, _measured(rounds, "compression_error", way), i)
    ]
    of_lost = "Share of the norm that sparsity left behind, up to the server and down to clients."
    step = [
        piece
        for i, rank in enumerate(_keys(rounds, "step_loss"))
        for piece in _gapped(f"rank {rank}", _measured(rounds, "step_loss", rank), i)
    ]
    of_step = (
        "Share of a step over the graph that receivers of each rank had to cut; at 1 the graph did "
        "nothing."
    )
    figures = (
        LineFigure("merge", "Merge", said, "relative error", _scaled([*aggregation, *truncation])),
        LineFigure("effective-rank", "Effective rank", of_rank, "effective rank", rank),
        LineFigure("compression", "Compression", of_lost, "relative error", _scaled(lost)),
        LineFigure("step-loss", "Step lost", of_step, "share of the step", _scaled(step)),
    )
    return [figure for figure in figures if figure.series]


def last_merge(rounds: Sequence[Record]) -> dict[str, float | None]:
    """Return the last round's measures by name, those left out that no round of the run has."""
    ranks = _keys(rounds, "truncation_error")
    measures: dict[str, tuple[str, ...]] = {
        "aggregation error": ("aggregation_error",),
        **{f"truncation error, rank {rank}": ("truncation_error", rank) for rank in ranks},
        **{f"compression error, {way}": ("compression_error", way) for way in ("up", "down")},
        "effective rank": ("effective_rank",),
    }
    found = {name: _measured(rounds, *key) for name, key in measures.items()}
    return {
        name: values[-1][1]
        for name, values in found.items()
        if any(value is not None for _, value in values)
    }


def _measured(
    rounds: Sequence[Record], key: str, inner: str | None = None
) -> list[tuple[int, float | None]]:
    """Return a measure of every round, ``None`` where it is absent."""
    values = ((r["round"], r.get(key)) for r in rounds)
    return [(x, y if inner is None else (y or {}).get(inner)) for x, y in values]


def _keys(rounds: Sequence[Record], key: str) -> list[str]:
    """Return the ranks that a measure names in any round, ascending."""
    return sorted({rank for r in rounds for rank in r.get(key) or {}}, key=lambda k: (len(k), k))


def _gapped(
    name: str, values: Iterable[tuple[int, float | None]], index: int | None = None
) -> list[Series]:
    """Return a line's pieces; with an index in that colour and dashed, else bold."""
    if index is None:
        return [Series(name, piece) for piece in pieces(values)]
    look = (f"s{index % len(PALETTE)}", 1 + index // len(PALETTE), 1 + index)
    return [Series(name, piece, *look) for piece in pieces(values)]


def _truncation(rounds: Sequence[Record]) -> list[Series]:
    """Return a line per rank; ranks whose lines would hide each other share one."""
    groups: dict[tuple[float | None, ...], list[str]] = {}
    lines = {
        rank: _measured(rounds, "truncation_error", rank)
        for rank in _keys(rounds, "truncation_error")
    }
    for rank, values in lines.items():
        seen = tuple(y if y is None or y > ROUNDING else 0.0 for _, y in values)
        groups.setdefault(seen, []).append(rank)
    series = []
    for index, ranks in enumerate(groups.values()):
        every = len(ranks) == len(lines) > 1
        who = "every rank" if every else f"rank{'s' if len(ranks) > 1 else ''} {', '.join(ranks)}"
        series += _gapped(f"truncation, {who}", lines[ranks[0]], index)
    return series


def _scaled(series: Sequence[Series]) -> list[Series]:
    """Return errors with a yardstick where they are all tiny, so that they read as 0."""
    points = [point for s in series for point in s.points]
    if not points or max(y for _, y in points) >= YARDSTICK:
        return list(series)
    ends = sorted({min(x for x, _ in points), max(x for x, _ in points)})
    name = f"{YARDSTICK:g}, for scale"
    return [*series, Series(name, [(x, YARDSTICK) for x in ends], "quiet", 2, 2)]
