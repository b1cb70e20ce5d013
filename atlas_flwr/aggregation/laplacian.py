"""The graph step on effective updates: personal adapters of any rank, pulled along weighted edges.

``M_k = P_k − (η / ñ_k) Σ_l a_kl (P_k − P_l)`` is a step on ``½ Σ_kl a_kl ‖P_k − P_l‖²`` in which a
client with few rows moves further; ``Σ ñ_k P_k`` is preserved. MIRA (IEEE Networking Letters 7(3),
2025) takes it on what it calls ΔW, for one rank; here it is on ``P = s B A``, which gauge, rank and
scale don't touch. M_k has a rank of up to that of the neighbourhood and is cut to the client's own.

The bases are orthonormalised once: with ``[B_1 … B_m] = Q₁ R₁`` and ``[A_1; …; A_m]ᵀ = Q₂ R₂``
every model is ``Q₁ G_k Q₂ᵀ`` with a small core ``G_k = s_k R₁ₖ R₂ₖᵀ``, and the step, its norms and
its SVD are those of cores. Everything is float64 inside; no dense matrix is formed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from atlas_flwr.aggregation.dense import dense_svd
from atlas_flwr.aggregation.factors import check_factors
from atlas_flwr.aggregation.graph import Float, pulls
from atlas_flwr.aggregation.products import EPS, Svd, stack
from atlas_flwr.aggregation.write_back import balanced
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, Array, LoraFactors


@dataclass(frozen=True)
class Truncation:
    """What one client's step lost to its ranks, in Frobenius norms over all its modules.

    Attributes:
        moved: The step ``‖M_k − P_k‖``, error feedback included.
        tail: What was cut off, ``‖M_k − T(M_k)‖``; directions that are rounding don't count.
        bound: Never less than ``tail``: ``min(‖M_k − P_k‖, ‖M_k − (1 − η d_k / ñ_k) P_k‖)`` module
            by module, since P_k itself fits the client's rank.
    """

    moved: float = 0.0
    tail: float = 0.0
    bound: float = 0.0

    @property
    def share(self) -> float:
        """The share ρ of the step that was cut, in [0, 1]: at 1 the graph did nothing."""
        return self.tail / self.moved if self.tail else 0.0


@dataclass(frozen=True)
class Step:
    """The clients' models after a step, in the order they came.

    Attributes:
        adapters: Factors by module, at each client's own ranks and scales. A client without edges
            has the very arrays it came with; the others' are float64.
        truncations: What each client lost to its ranks.
        tails: What was cut off by module, factors of scale 1, for the next step (error feedback);
            empty where nothing was cut or no feedback was asked for.
    """

    adapters: list[dict[str, LoraFactors]]
    truncations: list[Truncation]
    tails: list[dict[str, LoraFactors]]


def product_step(
    adapters: Sequence[Adapter],
    adjacency: Array,
    sizes: Sequence[float],
    eta: float,
    fresh: Mapping[str, Array],
    *,
    tails: Sequence[Adapter] | None = None,
    tail_rank: int | None = None,
    movers: Collection[int] | None = None,
) -> Step:
    """Take one graph step on products and write it back at each client's ranks and scales.

    A module is stepped among the clients that have it. η = 0 returns what came, bit for bit.

    Args:
        adapters: One model a client; ranks, scales and modules may differ, a module's shape not.
        adjacency: The graph, ``(n, n)``, as in ``graph``.
        sizes: Example counts n_k.
        eta: The step, up to ``graph.largest_step``.
        fresh: The seeded initial A by module, for directions that die (``write_back.balanced``).
        tails: Error feedback: what earlier steps cut off (``Step.tails``, at first ``[{}] * n``)
            is added to this one's M_k. A client alone keeps its tail. None: no feedback.
        tail_rank: Largest rank of a tail that is kept; None keeps all of it, and then
            ``Σ ñ_k (P_k + tail_k)`` is preserved exactly.
        movers: Clients that take the step, by position; the others stay. None: all.

    Raises:
        AggregationError: η is beyond its bound (which is named), the graph or a size is none, the
            lengths differ, a module's shapes differ or hold values that are not finite, or
            ``fresh`` does not fit.
    """
    shares = pulls(adjacency, sizes, eta)
    carried = tails if tails is not None else [{}] * len(adapters)
    if not len(adapters) == len(carried) == len(shares):
        raise AggregationError(f"{len(adapters)} adapters for a graph of {len(shares)} clients")
    if tail_rank is not None and tail_rank < 1:
        raise AggregationError(f"a rank is at least 1, got {tail_rank}")
    result = Step([dict(own) for own in adapters], [], [dict(tail) for tail in carried])
    lost: list[list[Truncation]] = [[] for _ in adapters]
    for module in dict.fromkeys(name for own in adapters for name in own):
        held = {k: own[module] for k, own in enumerate(adapters) if module in own}
        _check(module, held)
        errors = {k: carried[k][module] for k in held if module in carried[k]}
        for k, moved in _module_step(held, errors, shares, movers).items():
            if module not in fresh:
                raise AggregationError(f"{module}: no fresh rows came for it")
            own = held[k]
            written = balanced(moved.top(own.rank), own.rank, own.scale, fresh[module])
            result.adapters[k][module] = written
            lost[k].append(moved.truncation(own.rank))
            result.tails[k].pop(module, None)
            if tails is not None and (tail := moved.tail(own.rank, tail_rank)) is not None:
                result.tails[k][module] = tail
    result.truncations.extend(_together(parts) for parts in lost)
    return result


class _Frame:
    """Orthonormal bases that a set of products shares, and the products' cores in them."""

    def __init__(self, terms: Mapping[tuple[str, int], LoraFactors]) -> None:
        whole = stack([(1.0, factors) for factors in terms.values()])
        self.left, up = np.linalg.qr(whole.b)
        self.right, down = np.linalg.qr(whole.a.T)
        self.cores: dict[tuple[str, int], Float] = {}
        start = 0
        for key, factors in terms.items():
            columns = slice(start, start := start + factors.rank)
            self.cores[key] = up[:, columns] @ down[:, columns].T


class _Moved:
    """One client's M_k in one module, before it is cut."""

    def __init__(self, frame: _Frame, core: Float, moved: float, pulled: float) -> None:
        self._frame = frame
        self._moved, self._pulled = moved, pulled
        if not np.isfinite(core).all():
            raise AggregationError("a product holds values that are not finite")
        self._u, self._s, self._vt = dense_svd(core)
        size = max(len(frame.left), len(frame.right))
        self._live = int(np.count_nonzero(self._s > size * EPS * self._s[0]))

    def top(self, rank: int) -> Svd:
        """Return the ``rank`` leading triples."""
        return self._triples(0, min(rank, len(self._s)))

    def tail(self, rank: int, most: int | None) -> LoraFactors | None:
        """Return what a cut to ``rank`` loses, at most of rank ``most``; None if nothing."""
        end = self._live if most is None else min(self._live, rank + most)
        if end <= rank:
            return None
        cut = self._triples(rank, end)
        root = np.sqrt(cut.s)
        return LoraFactors(root[:, None] * cut.vt, cut.u * root, 1.0)

    def truncation(self, rank: int) -> Truncation:
        """Return what a cut to ``rank`` loses."""
        lost = float(np.linalg.norm(self._s[rank : self._live]))
        return Truncation(self._moved, lost, min(self._moved, self._pulled))

    def _triples(self, start: int, end: int) -> Svd:
        u = self._frame.left @ self._u[:, start:end]
        vt = (self._frame.right @ self._vt[start:end].T).T
        # As in ``products.svd``: the entry of largest magnitude in each column of U is positive.
        signs = np.where(u[np.abs(u).argmax(axis=0), np.arange(u.shape[1])] < 0, -1.0, 1.0)
        return Svd(u * signs, self._s[start:end], vt * signs[:, None])


def _module_step(
    held: Mapping[int, LoraFactors],
    errors: Mapping[int, LoraFactors],
    shares: Float,
    movers: Collection[int] | None,
) -> dict[int, _Moved]:
    """Step one module; clients without a neighbour that has it, and who stays, are left out."""
    near = {k: [n for n in held if n != k and shares[k, n] > 0] for k in held}
    moved: dict[int, _Moved] = {}
    for part in _components(near):
        groups = [(part, part)]
        if not _sharing_pays(part, near, held):
            groups = [([k, *near[k]], [k]) for k in part]
        for senders, every in groups:
            receivers = [k for k in every if movers is None or k in movers]
            if not receivers:
                continue
            terms = {("own", k): held[k] for k in senders}
            terms |= {("error", k): errors[k] for k in receivers if k in errors}
            frame = _Frame(terms)
            for k in receivers:
                moved[k] = _move(frame, k, near[k], shares[k])
    return moved


def _move(frame: _Frame, k: int, near: Sequence[int], shares: Float) -> _Moved:
    """Return one client's M_k: its own core, moved towards its neighbours'."""
    own = frame.cores["own", k]
    step = np.zeros_like(own) + frame.cores.get(("error", k), 0.0)
    pull = step.copy()
    for other in near:
        core = frame.cores["own", other]
        # Differences, not (1 − η d) P_k + …: equal models then stay equal to the last bits.
        step += shares[other] * (core - own)
        pull += shares[other] * core
    return _Moved(frame, own + step, float(np.linalg.norm(step)), float(np.linalg.norm(pull)))


def _components(near: Mapping[int, Sequence[int]]) -> list[list[int]]:
    """Return the connected clients, part by part; those without neighbours are left out."""
    parts: list[list[int]] = []
    seen: set[int] = set()
    for start in near:
        if start in seen or not near[start]:
            continue
        part, seen = [start], seen | {start}
        for k in part:  # grows while it is read
            part += (new := [other for other in near[k] if other not in seen])
            seen.update(new)
        parts.append(sorted(part))
    return parts


def _sharing_pays(
    part: Sequence[int], near: Mapping[int, Sequence[int]], held: Mapping[int, LoraFactors]
) -> bool:
    """Tell whether one pair of bases for all costs less than one for each neighbourhood.

    On a dense graph it does; on a sparse one, cores as large as the whole component cost more.
    """
    d_out, d_in = int(held[part[0]].b.shape[0]), int(held[part[0]].a.shape[1])

    def bases(rank: int) -> float:
        return 4.0 * (d_out + d_in) * rank * min(rank, d_out, d_in)

    def core(rank: int) -> float:
        return 22.0 * float(min(rank, d_out, d_in)) ** 3

    whole = sum(held[k].rank for k in part)
    around = [held[k].rank + sum(held[other].rank for other in near[k]) for k in part]
    return bases(whole) + len(part) * core(whole) <= sum(bases(r) + core(r) for r in around)


def _check(module: str, held: Mapping[int, LoraFactors]) -> None:
    """Refuse factors that have no finite product, or not one shape."""
    shapes: set[tuple[int, int]] = set()
    for factors in held.values():
        check_factors(module, factors)
        shapes.add((factors.b.shape[0], factors.a.shape[1]))
    if len(shapes) > 1:
        one, other, *_ = sorted(shapes)
        raise AggregationError(f"{module}: the product's shape {one} differs from {other}")


def _together(parts: Sequence[Truncation]) -> Truncation:
    """Return one client's norms over all its modules."""
    return Truncation(
        math.hypot(*(p.moved for p in parts)),
        math.hypot(*(p.tail for p in parts)),
        math.hypot(*(p.bound for p in parts)),
    )
