"""What the charts are drawn from: curves and stacks out of one run's results; numbers as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from atlas_flwr.results.record import KINDS, MB, PHASES

if TYPE_CHECKING:
    import pandas as pd

    from atlas_flwr.results.store import RunResult

# Okabe and Ito's colour-blind-safe palette without yellow and black, and its lighter twin for
# dark pages. Lines also differ by dash, points by shape, so that grey print still tells them apart.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B07D00", "#3A9BDC", "#7A5AA6")
PALETTE_DARK = ("#5CB3E8", "#FF8A4C", "#3CCB9F", "#E7A3CC", "#E8B93A", "#8FD0FF", "#B79CE0")
# The strongest shades of heat maps: so far from the page that its colour can be read on them.
HEAT, HEAT_DARK = ("#004C7A", "#963C00"), PALETTE_DARK[:2]
Curve = list[tuple[int, float]]
# Errors below this are rounding.
ROUNDING = 1e-9
Record = Mapping[str, Any]


def tasks_of(run: RunResult) -> list[str]:
    """Return the run's tasks, in the order of its config; others found in the rows follow."""
    named = run.config.get("data", {}).get("tasks") or []
    found = sorted(set(run.clients["task"]) | set(run.summary["final"]["by_task"]))
    named = [task for task in named if task in found or not found]
    return [*named, *(task for task in found if task not in named)]


def curve(rounds: Iterable[dict[str, Any]], key: str, task: str | None = None) -> Curve:
    """Return ``(round, value)`` where a value exists, of the whole or of one task."""
    pairs = (
        (r["round"], (r if task is None else r["by_task"].get(task, {})).get(key)) for r in rounds
    )
    return [(x, y) for x, y in pairs if y is not None]


def pieces(values: Iterable[tuple[int, float | None]]) -> list[Curve]:
    """Return the stretches of a curve between values that are absent.

    >>> pieces([(1, 0.5), (2, None), (3, 0.25), (4, 0.0)])
    [[(1, 0.5)], [(3, 0.25), (4, 0.0)]]
    """
    found: list[Curve] = [[]]
    for x, y in values:
        if y is not None:
            found[-1].append((x, y))
        elif found[-1]:
            found.append([])
    return [piece for piece in found if piece]


def thinned(rounds: Sequence[int], most: int = 12) -> list[int]:
    """Return evenly spaced rounds, the last one among them, where there are too many to draw.

    >>> thinned([1, 2, 3]), thinned(range(1, 41))
    ([1, 2, 3], [4, 8, 12, 16, 20, 24, 28, 32, 36, 40])
    """
    every = -(-len(rounds) // most) if rounds else 1
    return list(rounds)[::-1][::every][::-1]


def client_accuracies(clients: pd.DataFrame, task: str, phase: str) -> list[tuple[int, int, float]]:
    """Return ``(round, partition, accuracy)`` of a task's clients that have one."""
    rows = clients[(clients["task"] == task) & (clients["phase"] == phase)]
    rows = rows.dropna(subset=["accuracy"])
    return [
        (int(x), int(p), float(y))
        for x, p, y in zip(rows["round"], rows["partition"], rows["accuracy"], strict=True)
    ]


def peak_memory(clients: pd.DataFrame) -> dict[str, Curve]:
    """Return the highest measured peak (MB) of a client by phase and round."""
    rows = clients.dropna(subset=["peak_memory_mb"])
    found: dict[str, Curve] = {}
    for phase in PHASES:
        peaks = rows[rows["phase"] == phase].groupby("round", sort=True)["peak_memory_mb"].max()
        if len(peaks):
            pairs = zip(peaks.index.tolist(), peaks.tolist(), strict=True)
            found[phase] = [(int(x), float(y)) for x, y in pairs]
    return found


def cumulative_mb(rounds: Sequence[dict[str, Any]], direction: str) -> dict[str, list[float]]:
    """Return MB so far after each round by kind, kinds that never moved left out.

    Args:
        rounds: The rounds in order.
        direction: ``"up"`` or ``"down"``.
    """
    stacks: dict[str, list[float]] = {}
    for kind in KINDS:
        total, sums = 0, []
        for record in rounds:
            total += record[f"by_kind_{direction}"].get(kind, 0)
            sums.append(total / MB)
        if total:
            stacks[kind] = sums
    return stacks


def kinds_moved(rounds: Sequence[dict[str, Any]]) -> list[str]:
    """Return the kinds that moved in either direction, in the contract's order."""
    moved = set(cumulative_mb(rounds, "up")) | set(cumulative_mb(rounds, "down"))
    return [kind for kind in KINDS if kind in moved]


def kind_name(rounds: Sequence[dict[str, Any]], kind: str) -> str:
    """Return a kind with all its bytes in rounds: its bar may be too thin to be seen."""
    ways = ("by_kind_up", "by_kind_down")
    return f"{kind}, {show_bytes(sum(r[way].get(kind, 0) for r in rounds for way in ways))}"


def show(value: float | None, digits: int = 3) -> str:
    """Return a number as people read it; an absent one is a dash.

    >>> show(0.72341), show(None), show(1234567.0, 0)
    ('0.723', '–', '1,234,567')
    """
    return "–" if value is None else f"{value:,.{digits}f}"


def show_error(value: float | None) -> str:
    """Return a relative error as people read it: tiny ones by their power of ten.

    >>> show_error(0.25312), show_error(2.34e-4), show_error(4.52e-16), show_error(0.0)
    ('0.253', '2.3e-4', '5e-16', '0')
    """
    if value is None or value >= 0.001:
        return show(value)
    text = f"{value:.1e}" if value > ROUNDING else f"{value:.0e}"
    digits, _, power = text.partition("e")
    return f"{digits}e{int(power)}" if value else "0"


def show_bytes(count: float) -> str:
    """Return bytes with a decimal unit (MB = 10⁶).

    >>> show_bytes(812), show_bytes(2_713_000), show_bytes(3.2e9)
    ('812 B', '2.71 MB', '3.20 GB')
    """
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= limit:
            return f"{count / limit:.2f} {unit}"
    return f"{count:.0f} B"


def count(number: int, noun: str) -> str:
    """Return how many there are in words.

    >>> count(1, "round"), count(3, "client")
    ('1 round', '3 clients')
    """
    return f"{number} {noun}" + ("" if number == 1 else "s")


def show_seconds(seconds: float) -> str:
    """Return a duration as people say it.

    >>> show_seconds(12.34), show_seconds(185), show_seconds(7384)
    ('12.3 s', '3 min 5 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
