"""Merges that a few bad clients can't move far: median, trimmed mean, Multi-Krum.

All are defined on what a client's update does: effective products ``P = s B A`` for LoRA, values
for weights and heads. A median of A beside a median of B is not the median of ``B A``; it is not
even a function of it, for (B, A) and (B G, G⁻¹ A) are one model and have other medians. Flower's
``FedMedian``, ``FedTrimmedAvg`` and ``MultiKrum`` work on the tensors as they are sent: right for
weights, wrong for factors.

No rule streams: all clients' factors are held, ``Σ_k r_k (d_out + d_in)`` numbers a module.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from atlas_flwr.aggregation.dense import dense_svd
from atlas_flwr.aggregation.factors import check_factors
from atlas_flwr.aggregation.mean import RunningMean
from atlas_flwr.aggregation.product_mean import ProductMean
from atlas_flwr.aggregation.products import Float
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Adapter, Array, LoraFactors, ModelParts, Tensors

BLOCK = 2**22  # float64 numbers of all clients' products that are held at once: 32 MiB
Rule = Callable[[Array], Float]


# ------------------------------------------------------------------ coordinate by coordinate


def coordinate_median(values: Array) -> Float:
    """Return the median over the first axis, ``(n, …) -> (…)``, in float64.

    The mean of the two middle values where n is even, so with two clients it is their mean. Yin et
    al., ICML 2018.
    """
    return np.asarray(np.median(values, axis=0), np.float64)


def trimmed(clients: int, beta: float) -> int:
    """Return how many values are cut on each side: ``⌊β n⌋``, and of three or more at least one.

    The floor alone, as Yin et al. and Flower have it, cuts nothing of three clients at β = 0.2.

    >>> [trimmed(n, 0.2) for n in (1, 2, 3, 6, 12)], trimmed(12, 0.0)
    ([0, 0, 1, 1, 2], 0)
    """
    least = 1 if beta > 0 and clients >= 3 else 0
    return max(math.floor(beta * clients), least)


def trimmed_mean(values: Array, beta: float) -> Float:
    """Return the mean over the first axis without each coordinate's extremes, in float64.

    Args:
        values: One row a client, shape ``(n, …)``, n at least 1.
        beta: Share cut on each side, in [0, 0.5); see ``trimmed``. 0 is the plain mean.
    """
    cut, ordered = trimmed(len(values), beta), np.sort(values, axis=0)
    return np.asarray(ordered[cut : len(values) - cut].mean(axis=0), np.float64)


def merge_tensors(clients: Sequence[Tensors], rule: Rule) -> dict[str, Array]:
    """Apply a rule to every tensor by name; results have the first client's dtypes.

    Raises:
        AggregationError: Names or shapes differ, or a value is not finite or not floating.
    """
    merged: dict[str, Array] = {}
    for name, values in _stacked(clients):
        merged[name] = rule(values).astype(clients[0][name].dtype)
    return merged


def merge_product(clients: Sequence[LoraFactors], rule: Rule) -> Float:
    """Return a rule's value at every entry of the clients' products, shape ``(d_out, d_in)``.

    The products are formed a few rows at a time (``BLOCK``); the result alone is whole. It has any
    rank. Ranks and scales of the clients are free.
    """
    d_out, d_in = clients[0].b.shape[0], clients[0].a.shape[1]
    downs = [f.scale * f.a.astype(np.float64) for f in clients]
    merged: Float = np.empty((d_out, d_in))
    rows = max(1, BLOCK // (len(clients) * d_in))
    for top in range(0, d_out, rows):
        bottom = min(top + rows, d_out)
        block = np.empty((len(clients), bottom - top, d_in))
        for k, (factors, down) in enumerate(zip(clients, downs, strict=True)):
            np.matmul(factors.b[top:bottom].astype(np.float64), down, out=block[k])
        merged[top:bottom] = rule(block)
    return merged


def merge_adapters(
    clients: Sequence[Adapter], rule: Rule, rank_of: Callable[[str], int]
) -> Iterator[tuple[str, LoraFactors, Float]]:
    """Yield each module's merged product, cut to a rank: name, factors, all singular values.

    A median of products of rank r has any rank, so what is kept is the best approximation of the
    receivers' highest one (Eckart–Young): ``b = U Σ``, ``a = Vᵀ`` at scale 1, one dense matrix in
    memory at a time.

    Args:
        clients: One adapter each, of the same modules; ranks and scales are free.
        rule: From values ``(n, …)`` to ``(…)``.
        rank_of: The rank to keep of a module, at least 1.

    Raises:
        AggregationError: A module is missing somewhere, shapes differ, or a value is not finite.
    """
    check_adapters(clients)
    for module in clients[0]:
        u, s, vt = dense_svd(merge_product([adapter[module] for adapter in clients], rule))
        kept = rank_of(module)
        yield module, LoraFactors(a=vt[:kept], b=u[:, :kept] * s[:kept], scale=1.0), s


# ------------------------------------------------------------------ whole clients


def squared_distances(clients: Sequence[ModelParts]) -> Float:
    """Return ``‖P_i − P_j‖² + ‖w_i − w_j‖²`` over all modules, weights and heads, ``(n, n)``.

    Products are never formed: ``⟨P_i, P_j⟩ = s_i s_j tr(B_iᵀB_j · A_jA_iᵀ)`` are r × r sums.
    Distances below about 1e-8 of the products' norms are rounding.

    Raises:
        AggregationError: Clients differ in what they sent, or a value or distance is not finite.
    """
    total: Float = np.zeros((len(clients), len(clients)))
    adapters = [parts.adapter for parts in clients]
    check_adapters(adapters)
    for module in adapters[0]:
        total += _apart(_gram([adapter[module] for adapter in adapters]))
    for kind in ("weights", "head"):
        for _, values in _stacked([getattr(parts, kind) for parts in clients]):
            flat = values.reshape(len(values), -1)
            flat = flat - flat.mean(axis=0)  # what all share would cost digits
            total += _apart(flat @ flat.T)
    if not np.isfinite(total).all():
        raise AggregationError("distances between the updates are not finite")
    return total


def krum_scores(distances: Float, malicious: int) -> Float:
    """Return each client's Krum score: the sum of its ``n − f − 2`` smallest squared distances.

    Blanchard et al., NeurIPS 2017. At least one neighbour counts, as in Flower; a client alone
    scores 0.

    Args:
        distances: Squared, shape ``(n, n)``.
        malicious: f, how many may be bad.
    """
    clients = len(distances)
    others = distances[~np.eye(clients, dtype=bool)].reshape(clients, clients - 1)
    near = max(1, clients - malicious - 2)
    return np.asarray(np.sort(others, axis=1)[:, :near].sum(axis=1))


def multi_krum(distances: Float, malicious: int, keep: int) -> tuple[int, ...]:
    """Return the ``keep`` clients of the lowest Krum scores, in order; of equals the first.

    Raises:
        AggregationError: ``f > 0`` and there are fewer than ``2 f + 3`` clients, or ``keep`` is
            not within 1 and ``n − f``. f = 0 promises nothing and takes any number.
    """
    clients = len(distances)
    if malicious and clients < (need := krum_needs(malicious)):
        raise AggregationError(f"Krum with {malicious} bad clients needs {need}, got {clients}")
    if not 1 <= keep <= clients - malicious:
        raise AggregationError(f"of {clients} clients, {malicious} bad, {keep} can't be kept")
    order = np.argsort(krum_scores(distances, malicious), kind="stable")
    return tuple(sorted(int(client) for client in order[:keep]))


def krum_needs(malicious: int) -> int:
    """Return the number of clients that Krum needs for its promise, ``2 f + 3``; 1 for f = 0."""
    return 2 * malicious + 3 if malicious else 1


def krum_tolerates(clients: int) -> int:
    """Return the most bad clients that Krum's condition ``n ≥ 2 f + 3`` allows, 0 below 5."""
    return max(0, (clients - 3) // 2)


def weighted_mean(clients: Sequence[ModelParts], weights: Sequence[float]) -> ModelParts:
    """Return the exact mean: of products by ``ProductMean``, of values by ``RunningMean``.

    Raises:
        AggregationError: A weight is not positive, or the clients' tensors have no mean.
    """
    products, values, head = ProductMean(), RunningMean(), RunningMean()
    check_adapters([parts.adapter for parts in clients])
    for parts, weight in zip(clients, weights, strict=True):
        products.add(parts.adapter, weight)
        values.add(parts.weights, weight)
        head.add(parts.head, weight)
    return ModelParts(adapter=products.result(), weights=values.result(), head=head.result())


# ------------------------------------------------------------------ checks


def check_adapters(clients: Sequence[Adapter]) -> None:
    """Refuse adapters that are not finite, or not of the same modules and product shapes.

    Raises:
        AggregationError: Names the module.
    """
    first = clients[0]
    for adapter in clients:
        if odd := sorted(adapter.keys() ^ first.keys()):
            raise AggregationError(f"{odd[0]}: not every client sent this module")
        for module, factors in adapter.items():
            check_factors(module, factors)
            shape = (factors.b.shape[0], factors.a.shape[1])
            known = (first[module].b.shape[0], first[module].a.shape[1])
            if shape != known:
                raise AggregationError(
                    f"{module}: the product's shape {shape} differs from {known}"
                )


def _stacked(clients: Sequence[Tensors]) -> Iterator[tuple[str, Float]]:
    """Yield each tensor of all clients, ``(n, …)`` in float64."""
    for tensors in clients:
        if odd := sorted(tensors.keys() ^ clients[0].keys()):
            raise AggregationError(f"{odd[0]}: not every client sent this tensor")
        for name, tensor in tensors.items():
            check_tensor(name, tensor, clients[0][name])
    for name in clients[0]:
        yield name, np.stack([tensors[name] for tensors in clients]).astype(np.float64)


def check_tensor(name: str, tensor: Array, like: Array) -> None:
    """Refuse a tensor of another shape than ``like``, of no floating dtype, or not finite.

    Raises:
        AggregationError: Names the tensor.
    """
    if not np.issubdtype(tensor.dtype, np.floating):
        raise AggregationError(f"{name}: dtype {tensor.dtype} has no mean")
    if tensor.shape != like.shape:
        raise AggregationError(f"{name}: shape {tensor.shape} differs from {like.shape}")
    if not np.isfinite(tensor).all():
        raise AggregationError(f"{name}: holds values that are not finite")


def _gram(clients: Sequence[LoraFactors]) -> Float:
    """Return ``⟨P_i, P_j⟩`` for all pairs, ``(n, n)``."""
    a = np.concatenate([f.a.astype(np.float64) for f in clients])
    b = np.concatenate([f.scale * f.b.astype(np.float64) for f in clients], axis=1)
    starts = np.cumsum([0, *(f.rank for f in clients[:-1])])
    rows = np.add.reduceat((b.T @ b) * (a @ a.T), starts, axis=0)
    return np.asarray(np.add.reduceat(rows, starts, axis=1))


def _apart(gram: Float) -> Float:
    """Return squared distances from inner products; rounding never makes one negative."""
    own = np.diag(gram)
    apart: Float = np.maximum(own[:, None] + own[None, :] - (gram + gram.T), 0.0)
    np.fill_diagonal(apart, 0.0)
    return apart
