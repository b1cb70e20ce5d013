"""Runs that differ in one thing only: accuracy against η, and bands over seeds. Pure."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from atlas_flwr.config.load import dump_config, parse_config
from atlas_flwr.results.series import PALETTE, curve
from atlas_flwr.results.shapes import LineFigure
from atlas_flwr.results.store import RunResult
from atlas_flwr.results.svg.parts import Series

# Where a run lies and what it is called is no difference between experiments.
NOT_COMPARED = ("run.name", "run.out", "run.mirror", "run.trackers")
SEED, ETA = "run.seed", "strategy.options.eta"


def sweep_figures(runs: Mapping[str, RunResult]) -> list[LineFigure]:
    """Return what can be drawn of runs by label, all of one task set; none if nothing is alike."""
    figures = (against_eta(list(runs.values())), over_seeds(runs))
    return [figure for figure in figures if figure is not None]


def against_eta(runs: Sequence[RunResult]) -> LineFigure | None:
    """Return final accuracy and worst client against η; ``None`` unless only η (and seed) differ.

    Over seeds the mean and its standard deviation are drawn. A run whose η is no number (one that
    chooses it) is a level line.
    """
    trees = [keys_of(run) for run in runs]
    if differing(trees) - {SEED} != {ETA} or not all(ETA in tree for tree in trees):
        return None
    found: dict[str, list[RunResult]] = {}
    for tree, run in zip(trees, runs, strict=True):
        found.setdefault(tree[ETA], []).append(run)
    numbers = sorted((float(eta), eta) for eta in found if _number(eta))
    if len(numbers) < 2:
        return None
    series = []
    for index, (name, key) in enumerate(
        (("mean over tasks", "accuracy"), ("worst client", "worst_client_accuracy"))
    ):
        scores = {x: _finals(found[eta], key) for x, eta in numbers}
        points = [(x, float(np.mean(values))) for x, values in scores.items() if values]
        band = [(x, *_around(values)) for x, values in scores.items() if len(values) > 1]
        said = [f"{name}, η = {x:g}, {_n(scores[x])}: {y:.4g}" for x, y in points]
        look = (f"s{index}", index, index)
        series.append(Series(name, points, *look, said, [band] if len(band) > 1 else []))
        chosen = {eta: _finals(found[eta], key) for eta in sorted(found) if not _number(eta)}
        series += _levels(name, chosen, (numbers[0][0], numbers[-1][0]), index)
    shown = [s for s in series if s.points]
    if not shown:
        return None
    caption = _differ(found)
    return LineFigure("eta", "Accuracy against η", caption, "accuracy", shown, "η", zero=False)


def over_seeds(runs: Mapping[str, RunResult]) -> LineFigure | None:
    """Return accuracy by round, mean ± standard deviation over runs that differ in seed alone.

    ``None`` where no two do. A line's name says how many seeds it is the mean of.
    """
    groups: dict[tuple[tuple[str, str], ...], dict[str, RunResult]] = {}
    for label, run in runs.items():
        tree = {k: v for k, v in keys_of(run).items() if k not in (*NOT_COMPARED, SEED)}
        groups.setdefault(tuple(sorted(tree.items())), {})[label] = run
    repeated = {key: group for key, group in groups.items() if _seeds(group) > 1}
    if not repeated:
        return None
    apart = differing([dict(key) for key in repeated])
    series = []
    for index, (key, group) in enumerate(repeated.items()):
        tree = dict(key)
        words = [tree.get("strategy.name", "–")]
        words += [
            f"{k.rpartition('.')[2]} = {tree.get(k, '–')}"
            for k in sorted(apart - {"strategy.name"})[:2]
        ]
        name = f"{', '.join(words)} (n = {len(group)})"
        values: dict[int, list[float]] = {}
        for run in group.values():
            for x, y in curve(run.rounds, "accuracy"):
                values.setdefault(x, []).append(y)
        whole = {x: values[x] for x in sorted(values) if len(values[x]) == len(group)}
        points = [(x, float(np.mean(there))) for x, there in whole.items()]
        band = [(x, *_around(there)) for x, there in whole.items()]
        look = (f"s{index % len(PALETTE)}", index // len(PALETTE), index)
        series.append(Series(name, points, *look, bands=[band]))
    shown = [s for s in series if s.points]
    if not shown:
        return None
    caption = (
        "Accuracy on own validation rows: mean ± one sample standard deviation over n seeds; only "
        "rounds that all of them have."
    )
    return LineFigure("seeds", "Over seeds", caption, "accuracy", shown, zero=False)


def keys_of(run: RunResult) -> dict[str, str]:
    """Return a run's config as dotted keys and text.

    A key that is younger than the run has its default, for that is what the run did.
    """
    return {**_defaults(), **flat(run.config)}


@cache
def _defaults() -> dict[str, str]:
    """Return the default of every key but those that are given, or left out, in each file."""
    plain = flat(tomllib.loads(dump_config(parse_config({"data": {"tasks": ["sst2"]}}))))
    return {
        key: value
        for key, value in plain.items()
        if key not in ("data.tasks", "lora.rank") and not key.startswith("strategy.")
    }


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted keys and values as text.

    >>> flat({"run": {"seed": 7, "name": "a"}})
    {'run.seed': '7', 'run.name': 'a'}
    """
    pairs: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            pairs |= flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            pairs[f"{prefix}{key}"] = text
    return pairs


def differing(trees: Sequence[Mapping[str, str]]) -> set[str]:
    """Return the keys whose values differ, or that some lack; names and places never count."""
    keys = set().union(*trees) - set(NOT_COMPARED)
    return {key for key in keys if len({tree.get(key) for tree in trees}) > 1}


def _levels(
    name: str, chosen: Mapping[str, Sequence[float]], ends: tuple[float, float], index: int
) -> list[Series]:
    """Return a level line for each η that is no number."""
    series = []
    for eta, values in chosen.items():
        if values:
            level, title = float(np.mean(values)), f"{name}, η = {eta}"
            said = [f"{title}, {_n(values)}: {level:.4g}"] * 2
            points = [(x, level) for x in ends]
            series.append(Series(title, points, "quiet", 2 + index, index, said))
    return series


def _differ(found: Mapping[str, Sequence[RunResult]]) -> str:
    """Return the caption: what differs, and over how many seeds means are taken."""
    said = "Final accuracy on whole evaluation sets by η; the runs differ in nothing else"
    counts = sorted({len(group) for group in found.values()})
    if counts[-1] == 1:
        return f"{said}."
    n = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    return f"{said} but the seed: means ± one sample standard deviation, n = {n}."


def _finals(runs: Sequence[RunResult], key: str) -> list[float]:
    values = (run.summary["final"][key] for run in runs)
    return [float(value) for value in values if value is not None]


def _around(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean minus and plus one sample standard deviation."""
    middle, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    return middle - spread, middle + spread


def _seeds(group: Mapping[str, RunResult]) -> int:
    return len({keys_of(run).get(SEED) for run in group.values()})


def _n(values: Sequence[float]) -> str:
    return f"n = {len(values)}"


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
