"""Graph steps that are linear in the tensors themselves: heads, factors, and B over a shared A.

The graph, the sizes and η are those of ``laplacian.product_step``. On factors the step is MIRA's as
published, and not a step on products: with ``δX = Σ_l a_kl (X_k − X_l)`` it differs by
``η² δB δA − η Σ_l a_kl (B_k − B_l)(A_k − A_l)``, which is zero to first order only where A or B
agree. Where A is frozen and shared, the step on B alone is the step on products, without an SVD.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from atlas_flwr.aggregation.factors import at_scale, check_factors, pad, truncate, up_at_scale
from atlas_flwr.aggregation.graph import Float, pulls
from atlas_flwr.aggregation.laplacian import Step, Truncation
from atlas_flwr.aggregation.products import norm
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, Array, LoraFactors, Tensors


def tensor_step(
    clients: Sequence[Tensors], adjacency: Array, sizes: Sequence[float], eta: float
) -> list[dict[str, Array]]:
    """Take the graph step ``x_k − (η / ñ_k) Σ_l a_kl (x_k − x_l)`` on plain tensors (heads).

    Heads of different label spaces must have no edge between them.

    Args:
        clients: One set of named tensors a client; neighbours' names and shapes agree.
        adjacency: The graph, ``(n, n)``.
        sizes: Example counts n_k.
        eta: The step, up to ``graph.largest_step``.

    Returns:
        The tensors in their own dtypes; computed in float64. A client without edges, and every
        client at η = 0, gets the very arrays it came with.

    Raises:
        AggregationError: η is beyond its bound (which is named), the graph or a size is none, the
            lengths differ, or neighbours' tensors differ in name or shape or are not finite.
    """
    shares = pulls(adjacency, sizes, eta)
    if len(clients) != len(shares):
        raise AggregationError(f"{len(clients)} clients for a graph of {len(shares)}")
    return [
        dict(own) if not shares[k].any() else _moved(own, clients, shares[k])
        for k, own in enumerate(clients)
    ]


def factor_step(
    adapters: Sequence[Adapter], adjacency: Array, sizes: Sequence[float], eta: float
) -> list[dict[str, LoraFactors]]:
    """Take the graph step on A and on B apart, as MIRA publishes it: one rank, gauge dependent.

    Factors are stepped at scale 1 (``√s`` on both); arguments and errors are as in ``tensor_step``,
    and neighbours must share their ranks and modules. Touched clients' factors are float64.
    """
    shares = pulls(adjacency, sizes, eta)
    if len(adapters) != len(shares):
        raise AggregationError(f"{len(adapters)} adapters for a graph of {len(shares)} clients")
    units: list[dict[str, Array]] = []
    for own in adapters:
        units.append({})
        for module, factors in own.items():
            check_factors(module, factors)
            unit = at_scale(factors, 1.0)
            units[-1] |= {f"{module}.lora_A": unit.a, f"{module}.lora_B": unit.b}
    result = [dict(own) for own in adapters]
    for k, moved in enumerate(tensor_step(units, adjacency, sizes, eta)):
        for module, factors in adapters[k].items() if shares[k].any() else ():
            pair = LoraFactors(moved[f"{module}.lora_A"], moved[f"{module}.lora_B"], 1.0)
            result[k][module] = at_scale(pair, factors.scale)
    return result


def ffa_step(
    adapters: Sequence[Adapter], adjacency: Array, sizes: Sequence[float], eta: float
) -> Step:
    """Take the graph step on B alone, over a frozen A that is shared: exact, without an SVD.

    A is nested (FFA-LoRA's, Sun et al. 2024, over mixed ranks): a client of rank r holds the first
    r rows of one matrix, so B with zero columns appended is the same product. Columns beyond the
    receiver's rank are cut; with one rank nothing is. Scales go into B. Arguments and errors are as
    in ``tensor_step``; all clients must have the same modules.

    Returns:
        Adapters whose A is value for value the client's own, and what the ranks cut; no tails.

    Raises:
        AggregationError: As in ``tensor_step``, or two clients' common rows of A differ.
    """
    shares = pulls(adjacency, sizes, eta)
    if len(adapters) != len(shares):
        raise AggregationError(f"{len(adapters)} adapters for a graph of {len(shares)} clients")
    longest = _shared_down(adapters)
    ups = [
        {m: pad(up_at_scale(f, 1.0), longest[m].rank).b for m, f in own.items()} for own in adapters
    ]
    result = Step([dict(own) for own in adapters], [], [{} for _ in adapters])
    for k, moved in enumerate(tensor_step(ups, adjacency, sizes, eta)):
        parts: list[tuple[float, float, float]] = []
        for module, own in adapters[k].items() if shares[k].any() else ():
            whole = LoraFactors(longest[module].a, moved[module], 1.0)
            cut = truncate(whole, own.rank)
            result.adapters[k][module] = LoraFactors(own.a, cut.b / own.scale, own.scale)
            beyond = LoraFactors(whole.a[own.rank :], whole.b[:, own.rank :], 1.0)
            tail = norm(beyond) if beyond.whole else 0.0
            step = norm(LoraFactors(whole.a, whole.b - ups[k][module], 1.0))
            kept = (1.0 - shares[k].sum()) * ups[k][module]
            parts.append((step, tail, min(step, norm(LoraFactors(whole.a, whole.b - kept, 1.0)))))
        columns = zip(*parts, strict=True) if parts else [(0.0,)] * 3
        result.truncations.append(Truncation(*(math.hypot(*column) for column in columns)))
    return result


def _moved(own: Tensors, clients: Sequence[Tensors], shares: Float) -> dict[str, Array]:
    """Return one client's tensors, moved towards its neighbours'."""
    near = [k for k in range(len(clients)) if shares[k] > 0]
    for k in near:
        if odd := sorted(own.keys() ^ clients[k].keys()):
            raise AggregationError(f"{odd[0]}: not every neighbour has this tensor")
    moved: dict[str, Array] = {}
    for name, tensor in own.items():
        _check(name, tensor, tensor.shape)
        x = tensor.astype(np.float64)
        step = np.zeros_like(x)
        for k in near:
            other = clients[k][name]
            _check(name, other, x.shape)
            step += shares[k] * (other.astype(np.float64) - x)
        moved[name] = (x + step).astype(tensor.dtype)
    return moved


def _check(name: str, tensor: Array, shape: tuple[int, ...]) -> None:
    if not np.issubdtype(tensor.dtype, np.floating):
        raise AggregationError(f"{name}: dtype {tensor.dtype} has no mean")
    if tensor.shape != shape:
        raise AggregationError(f"{name}: shape {tensor.shape} differs from {shape}")
    if not np.isfinite(tensor).all():
        raise AggregationError(f"{name}: holds values that are not finite")


def _shared_down(adapters: Sequence[Adapter]) -> dict[str, LoraFactors]:
    """Return the factors of highest rank by module, refused unless all A are their first rows."""
    longest: dict[str, LoraFactors] = {}
    for own in adapters:
        for module, factors in own.items():
            check_factors(module, factors)
            if module not in longest or factors.rank > longest[module].rank:
                longest[module] = factors
    for own in adapters:
        for module, factors in own.items():
            if not np.array_equal(factors.a, longest[module].a[: factors.rank]):
                raise AggregationError(f"{module}: A is not shared, a step on B alone is none on P")
    return longest
