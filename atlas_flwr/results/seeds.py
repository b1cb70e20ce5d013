"""Runs that differ in nothing but their seed, as one: mean ± standard deviation. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atlas_flwr.results.series import count, curve, show
from atlas_flwr.results.store import RunResult
from atlas_flwr.results.sweeps import NOT_COMPARED, SEED, differing, keys_of

# What follows from the strategy is no other difference between two of them.
STRATEGY = ("strategy.", "model.head")


@dataclass(frozen=True)
class Group:
    """Runs of one configuration, each with a seed of its own.

    Attributes:
        name: The strategy, and what else tells the group from the others.
        runs: By label, in the order given.
    """

    name: str
    runs: Mapping[str, RunResult]

    @property
    def size(self) -> int:
        """How many seeds."""
        return len(self.runs)

    @property
    def title(self) -> str:
        """The name with the number of seeds, where there are several."""
        return f"{self.name} (n = {self.size})" if self.size > 1 else self.name

    def finals(self, key: str) -> list[float]:
        """Return a final score of the runs that have it."""
        values = (run.summary["final"][key] for run in self.runs.values())
        return [float(value) for value in values if value is not None]

    def score(self, key: str) -> str:
        """Return a final score's mean ± standard deviation, and n where not every run has it."""
        values = self.finals(key)
        less = f" (n = {len(values)})" if 0 < len(values) < self.size else ""
        return mean_and_deviation(values) + less

    def line(self, key: str) -> list[tuple[int, float, float]]:
        """Return ``(round, mean, sample standard deviation)``, rounds that all runs have."""
        values: dict[int, list[float]] = {}
        for run in self.runs.values():
            for x, y in curve(run.rounds, key):
                values.setdefault(x, []).append(y)
        whole = {x: there for x, there in sorted(values.items()) if len(there) == self.size}
        return [(x, float(np.mean(there)), deviation(there)) for x, there in whole.items()]


def deviation(values: Sequence[float]) -> float:
    """Return the sample standard deviation; of fewer than two values it is not a number.

    >>> deviation([1.0, 3.0])
    1.4142135623730951
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def groups_of(runs: Mapping[str, RunResult]) -> list[Group]:
    """Return runs in groups that differ in seed alone, in the order of each first run.

    Two runs of one seed are never in one group: a repetition is no new seed.
    """
    keyed: dict[tuple[object, ...], dict[str, RunResult]] = {}
    for label, run in runs.items():
        tree = keys_of(run)
        seed = tree.pop(SEED, str(run.summary["seed"]))
        same = tuple(sorted((k, v) for k, v in tree.items() if k not in NOT_COMPARED))
        again = 0
        while any(_seed(other) == seed for other in keyed.get((same, again), {}).values()):
            again += 1
        keyed.setdefault((same, again), {})[label] = run
    found = list(keyed.values())
    return [Group(name, group) for name, group in zip(_names(found), found, strict=True)]


def _seed(run: RunResult) -> str:
    return keys_of(run).get(SEED, str(run.summary["seed"]))


def _names(groups: Sequence[Mapping[str, RunResult]]) -> list[str]:
    """Return a name per group: the run's where it is alone, else what tells it from others."""
    trees = [keys_of(next(iter(group.values()))) for group in groups]
    apart = sorted(differing(trees) - {SEED, "strategy.name"}) if len(trees) > 1 else []
    names = []
    for group, tree in zip(groups, trees, strict=True):
        if len(group) == 1:
            names.append(next(iter(group)))
            continue
        strategies = {t.get("strategy.name") for t in trees}
        alone = sum(t.get("strategy.name") == tree.get("strategy.name") for t in trees) == 1
        words = [tree.get("strategy.name", "–")] if strategies else []
        if not alone:
            words += [f"{key.rpartition('.')[2]} = {tree.get(key, '–')}" for key in apart[:3]]
        names.append(", ".join(words))
    return [
        f"{n} #{names[:i].count(n) + 1}" if names.count(n) > 1 else n for i, n in enumerate(names)
    ]


def mean_and_deviation(values: Sequence[float], digits: int = 4) -> str:
    """Return mean ± sample standard deviation as text; of one value the value alone.

    >>> mean_and_deviation([0.5, 0.7]), mean_and_deviation([0.5]), mean_and_deviation([])
    ('0.6000 ± 0.1414', '0.5000', '–')
    """
    if not values:
        return "–"
    mean = show(float(np.mean(values)), digits)
    return f"{mean} ± {show(deviation(values), digits)}" if len(values) > 1 else mean


def more_than_strategy(runs: Sequence[RunResult]) -> list[str]:
    """Return the keys that differ and are neither seed nor strategy: a comparison's other causes.

    Where strategies are all the same, what differs is what is compared, and nothing is returned.
    """
    trees = [keys_of(run) for run in runs]
    apart = differing(trees) - {SEED} if len(trees) > 1 else set()
    if "strategy.name" not in apart:
        return []
    return sorted(key for key in apart if not key.startswith(STRATEGY))


def seeds_line(groups: Sequence[Group]) -> str:
    """Return one sentence on how many seeds there are, empty where each run stands alone."""
    sizes = sorted({group.size for group in groups})
    if not sizes or sizes[-1] == 1:
        return ""
    n = " to ".join(map(str, dict.fromkeys((sizes[0], sizes[-1]))))
    return (
        f"{count(len(groups), 'group')} of runs that differ in their seed alone, n = {n}: means ± "
        "one sample standard deviation, bands the same."
    )
