"""Ranks by client and module, why, and whether predicted memory was right. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_flwr.results.found import MOST, by_group, tally
from atlas_flwr.results.scatter import Scatter
from atlas_flwr.results.series import PALETTE, count
from atlas_flwr.results.shapes import Cells, Group, HeatMap, Scale
from atlas_flwr.results.svg.parts import Series

if TYPE_CHECKING:
    from atlas_flwr.results.store import RunResult

MODULES = 48  # columns of a heat map; of more modules, the means by layer are drawn
Told = Mapping[str, Any]


def rank_figures(run: RunResult) -> list[HeatMap | Scatter]:
    """Return what can be drawn of ``ranks.json``; what it lacks is left out."""
    figures = (rank_map(run.ranks), importance_map(run.ranks), memory_scatter(run))
    return [figure for figure in figures if figure is not None]


def rank_map(told: Told) -> HeatMap | None:
    """Return the ranks, clients × modules, clients grouped by device; ``None`` without ranks."""
    clients = {p: c for p, c in told.get("clients", {}).items() if c.get("ranks")}
    if not clients:
        return None
    order = sorted(clients, key=lambda p: (_device(clients[p]), int(p)))
    modules = _modules(clients[p]["ranks"] for p in order)
    values = [[clients[p]["ranks"].get(module) for module in modules] for p in order]
    groups = [
        Group(name, len(list(who)))
        for name, who in groupby(order, key=lambda p: _device(clients[p]))
    ]
    bounds = [str(c["by"]) for p in order if (c := clients[p]).get("by")]
    caption = f"Rank of each module's adapter; how they were chosen: {told.get('how', 'given')}."
    if bounds:
        caption += f" What bounds the clients: {tally(bounds)}."
    names, side = list(order), "client"
    if len(order) > MOST:
        values, names, side = by_group(values, groups), [g.name for g in groups], "device"
        caption += f" Means by device: there are {len(order)} clients."
        groups = []
    heading = ("ranks", "Ranks", caption, "rank")
    return _by_module(heading, names, groups, modules, values, side)


def importance_map(told: Told) -> HeatMap | None:
    """Return the importance of the modules to each cluster."""
    importance = {c: v for c, v in (told.get("importance") or {}).items() if v}
    if not importance:
        return None
    order = sorted(importance, key=int)
    modules = _modules(importance[c] for c in order)
    rows = [[importance[c].get(module) for module in modules] for c in order]
    values = [[None if v is None else v / _total(row) for v in row] for row in rows]
    caption = "Each module's share of its cluster's importance."
    if told.get("how") == "importance":
        caption += (
            " Ranks follow what each single rank of a module captures for its bytes, not this sum."
        )
    return _by_module(
        ("importance", "Importance", caption, "share"), order, [], modules, values, "cluster"
    )


def memory_scatter(run: RunResult) -> Scatter | None:
    """Return predicted against measured peak memory (MB) in training, a point a client."""
    clients = run.ranks.get("clients", {})
    trained = run.clients[run.clients["phase"] == "train"].dropna(subset=["peak_memory_mb"])
    peaks = trained.groupby("partition")["peak_memory_mb"].max()
    measured = {int(p): float(v) for p, v in zip(peaks.index.tolist(), peaks.tolist(), strict=True)}
    pairs = {
        int(p): (float(c["predicted_memory_mb"]), measured[int(p)])
        for p, c in clients.items()
        if c.get("predicted_memory_mb") and int(p) in measured
    }
    if not pairs:
        return None
    devices = sorted({_device(clients[str(p)]) for p in pairs})
    groups = []
    for index, device in enumerate(devices):
        own = [p for p in sorted(pairs) if _device(clients[str(p)]) == device]
        labels = [
            f"client {p} ({device}): predicted {pairs[p][0]:.0f} MB, measured {pairs[p][1]:.0f} MB"
            for p in own
        ]
        look = f"s{index % len(PALETTE)}"
        groups.append(Series(device, [pairs[p] for p in own], look, 0, index, labels))
    ratios = [true / said for said, true in pairs.values()]
    middle = float(np.median(ratios))
    caption = (
        f"Peak of each client in training, MB. Measured / predicted: {min(ratios):.2f} to "
        f"{max(ratios):.2f}, median {middle:.2f}, {count(len(ratios), 'client')}. Measured is the "
        "peak of the process so far; with the inline engine that is one process for all clients. "
        "Dashed: as predicted."
    )
    axes = ("predicted MB", "measured MB")
    figure = Scatter("predicted-memory", "Predicted memory", caption, axes, groups)
    if figure.places() == [list(group.points) for group in groups]:
        return figure
    moved = " Points that would hide each other are drawn a little apart."
    return replace(figure, caption=caption + moved)


def ranks_line(told: Told) -> str:
    """Return the range of ranks of each device in one line; empty if there are none.

    >>> ranks_line({"how": "uniform", "clients": {"0": {"device": "phone", "ranks": {"q": 2}}}})
    'ranks (uniform) of phone: 2'
    """
    ranges: dict[str, list[int]] = {}
    for client in told.get("clients", {}).values():
        if client.get("ranks"):
            ranges.setdefault(_device(client), []).extend(client["ranks"].values())
    said = "; ".join(
        f"{device}: {min(ranks)}" + (f"–{max(ranks)}" if len(set(ranks)) > 1 else "")
        for device, ranks in sorted(ranges.items())
    )
    return f"ranks ({told.get('how', 'given')}) of {said}" if said else ""


def short_names(modules: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return each module's layer and its name inside it, as short as it stays unambiguous.

    >>> short_names(["encoder.layer.0.attention.query", "encoder.layer.0.output.dense"])
    (['0', '0'], ['query', 'dense'])
    """
    parts = [re.split(r"(?:^|\.)(\d+)(?:\.|$)", module, maxsplit=1) for module in modules]
    layers = [part[1] if len(part) > 1 else "" for part in parts]
    inside = [part[-1].split(".") if part[-1] else part[0].split(".") for part in parts]
    kinds = {tuple(words) for words in inside}

    def short(words: Sequence[str]) -> str:
        for size in range(1, len(words)):
            tail = tuple(words[-size:])
            if sum(kind[-size:] == tail for kind in kinds) == 1:
                return ".".join(tail)
        return ".".join(words)

    return layers, [short(words) for words in inside]


def _by_module(
    heading: tuple[str, str, str, str],
    rows: Sequence[str],
    groups: Sequence[Group],
    modules: Sequence[str],
    values: Cells,
    side: str,
) -> HeatMap:
    """Return a map with a column for each module; of too many, for each layer."""
    name, title, caption, what = heading
    layers, names = short_names(modules)
    columns = [
        Group(f"layer {layer}" if layer else "", len(list(who))) for layer, who in groupby(layers)
    ]
    whole, other = what == "rank", "module"
    if len(modules) > MODULES:
        flipped = by_group(list(zip(*values, strict=True)), columns)
        values = [list(row) for row in zip(*flipped, strict=True)]
        names, whole, other = [g.name for g in columns], False, "layer"
        caption += f" Means over the modules of each layer: there are {len(modules)}."
        columns = []
    there = [value for row in values for value in row if value is not None]
    scale, key = _shades(there, log=what != "rank")
    key += [("no adapter", None)] if any(v is None for row in values for v in row) else []
    digits = 0 if whole else 1 if what == "rank" else 2
    return HeatMap(
        *(name, title, caption, rows, names, values, scale, key, what, groups, columns, digits),
        (side, other),
    )


def _shades(there: Sequence[float], *, log: bool) -> tuple[Scale, list[tuple[str, float | None]]]:
    """Return the shades of numbers, and the legend: their ends, on a log scale powers of ten."""
    high = max(there)
    positive = [value for value in there if value > 0]
    if not log or not positive:
        ends = dict.fromkeys((min(there), high))
        return Scale(0.0, high), [(f"{value:.3g}", value) for value in ends]
    low = min(positive)
    powers = [10.0**n for n in range(math.ceil(math.log10(low)), math.ceil(math.log10(high)))]
    inside = [power for power in powers if 2 * low < power < high / 2]
    shown = dict.fromkeys((low, *inside[:: -(-len(inside) // 3) or 1], high))
    key: list[tuple[str, float | None]] = [(f"{value:.2g}", value) for value in shown]
    if len(positive) < len(there):
        key[0] = (f"0 to {key[0][0]}", low)
    return Scale(low, high, log=True), key


def _modules(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return all modules in the order of their layers, inside one as the longest has them."""
    longest = sorted(mappings, key=len, reverse=True)
    found = list(dict.fromkeys(module for mapping in longest for module in mapping))
    layers, _ = short_names(found)
    return [found[i] for i in sorted(range(len(found)), key=lambda i: int(layers[i] or -1))]


def _device(client: Told) -> str:
    """Return what a client is grouped by: its device, else its cluster."""
    if client.get("device"):
        return str(client["device"])
    return f"cluster {client['cluster']}" if client.get("cluster") is not None else "all"


def _total(row: Sequence[float | None]) -> float:
    return sum(value for value in row if value is not None) or 1.0
