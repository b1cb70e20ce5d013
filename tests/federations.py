"""Small federations for tests of strategies: six clients, mixed ranks and scales, dense sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Array, LoraFactors, ModelParts
from strategies.base import Method, Setting, State
from strategies.cluster_mean import ClusterMeans
from strategies.clustered import Clustered
from strategies.fedlease import FedLease
from strategies.registry import STRATEGIES, build
from strategies.robust_rule import RobustRule

Dense = dict[str, Array]

MODULES = {"m.q": (40, 24), "m.up": (24, 56)}  # (d_out, d_in)
TASKS = ("a", "a", "a", "b", "b", "b")
ALL = range(6)
ROWS = (10, 20, 30, 10, 25, 35)
MIXED = (2, 4, 8, 16, 4, 2)
EQUAL = (4,) * 6
ALPHA = 8.0  # scale alpha / r: other ranks, other scales
LABELS = {"a": 2, "b": 2}
WIDEST = 32  # what methods that allocate ranks give at most
# Personal models on a graph: nothing is averaged before the step, so there is no mean to measure.
ON_A_GRAPH = {
    name
    for name, method in STRATEGIES.items()
    if issubclass(method, Clustered) and not issubclass(method, ClusterMeans)
}
# Whoever has all rows decides nothing alone: rows don't count, or nobody counts in full.
ROBUST = {name for name, method in STRATEGIES.items() if issubclass(method, RobustRule)}
EQUAL_VOICES = ROBUST | {"dp_fedavg"}
# Where the laws are of numbers that noise would hide.
QUIET: dict[str, dict[str, object]] = {
    "dp_fedavg": {"noise-multiplier": 1e-15, "clip": 1e6, "noise": "seeded"}
}
# What a run of two answers a round takes, and what makes it the same run twice.
OF_TWO: dict[str, dict[str, object]] = {
    "fedtrimmedavg": {"beta": 0.0},
    "dp_fedavg": {"noise": "seeded"},
}


# ------------------------------------------------------------------ settings


def initial(
    rank: int, labels: int = 2, draw: int = 0, modules: Mapping[str, tuple[int, int]] = MODULES
) -> ModelParts:
    """The seeded start: A, nested over ranks, B = 0 and a head; rank 0 is full fine-tuning."""
    head = {"head.weight": _normal((labels, 5), f"head-{labels}")}
    if not rank:
        return ModelParts(head=head, weights={"w.bias": _normal((7,), "w"), "w": _normal((5, 3))})
    adapter = {}
    for module, (d_out, d_in) in modules.items():
        a = _normal((rank, d_in), f"A/{module}", draw) / np.float32(math.sqrt(d_in))
        adapter[module] = LoraFactors(a, np.zeros((d_out, rank), np.float32), ALPHA / rank)
    return ModelParts(adapter=adapter, head=head)


def _normal(shape: tuple[int, ...], role: str = "", draw: int = 0) -> Array:
    return rng_for(0, role, draw).standard_normal(shape).astype(np.float32)


def setting(
    policy: str = "per_task",
    ranks: Sequence[int] = EQUAL,
    labels: Mapping[str, int] = LABELS,
    modules: Mapping[str, tuple[int, int]] = MODULES,
) -> Setting:
    """A run of six clients, two tasks; no ranks is full fine-tuning."""
    given = {*ranks, WIDEST} if ranks else {0}
    spaces = [(n, rank) for n in set(labels.values()) for rank in given]
    return Setting(
        tasks=TASKS,
        num_labels=labels,
        ranks=tuple(ranks),
        steps=(1,) * len(TASKS),
        head_policy=policy,  # type: ignore[arg-type]
        initial={(n, rank): initial(rank, n, modules=modules) for n, rank in spaces},
        scales={rank: ALPHA / rank for rank in range(1, WIDEST + 1)} if ranks else {},
    )


def of_rank(name: str, ranks: Sequence[int], /, **options: object) -> Method:
    """The method for clients of these ranks, under the head policy it has to have."""
    options = {**QUIET.get(name, {}), **options}
    return build(name, options, setting(STRATEGIES[name].head or "per_task", ranks))


def widest(name: str, **options: object) -> Method:
    """The method with mixed ranks and scales where it allows them, else with one."""
    return of_rank(name, MIXED if STRATEGIES[name].mixed_ranks else EQUAL, **options)


def grouped(method: Method, state: State) -> Method:
    """The method with the groups it has in a state: clusters may change."""
    return method.at(state) if isinstance(method, ClusterMeans | FedLease) else method


def equal(name: str, **options: object) -> Method:
    """The method with one rank."""
    return of_rank(name, EQUAL, **options)


# ------------------------------------------------------------------ dense sums


def products(parts: ModelParts, *kinds: str) -> Dense:
    """The dense products of an adapter (cores included) or, for ``"delta"``, of its delta."""
    if "delta" in kinds:
        return {module: factors.product() for module, factors in parts.delta.items()}
    dense = {}
    for module, f in parts.adapter.items():
        if f.whole:
            core = parts.core.get(module, np.eye(f.rank)).astype(np.float64)
            dense[module] = f.scale * f.b.astype(np.float64) @ core @ f.a.astype(np.float64)
    return dense


def added(left: Mapping[str, Array], right: Mapping[str, Array], sign: float = 1.0) -> Dense:
    """The sum of two dense sets; a module that one lacks counts as zero there."""
    modules = dict.fromkeys([*left, *right])
    return {m: left.get(m, 0.0) + sign * right.get(m, 0.0) for m in modules}


def size(dense: Mapping[str, Array]) -> float:
    """The Frobenius norm of all modules together."""
    return math.sqrt(sum(float(np.sum(matrix**2)) for matrix in dense.values()))


def distance(left: Mapping[str, Array], right: Mapping[str, Array]) -> float:
    """``‖left − right‖ / ‖right‖`` over all modules, plain where right is zero."""
    assert left.keys() == right.keys()
    return size(added(left, right, -1.0)) / (size(right) or 1.0)


def believed(method: Method, state: State, partition: int) -> Dense:
    """What the server believes the client's model adds to each frozen weight."""
    parts = method.model_for(state, partition).parts
    return added(products(parts), products(parts, "delta"))
