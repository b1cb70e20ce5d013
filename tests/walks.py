"""Clients on a graph: mixed ranks, scales and sizes, and the graph step on dense matrices."""

from __future__ import annotations

import numpy as np

from atlas_flwr.types import LoraFactors

D_OUT, D_IN, MOST = 9, 7, 12
Clients = list[dict[str, LoraFactors]]
FRESH = {
    "m": np.random.default_rng(7).uniform(-0.3, 0.3, (MOST, D_IN)),
    "wide": np.random.default_rng(8).uniform(-0.3, 0.3, (MOST, 11)),
}


def factors(
    rng: np.random.Generator, rank: int, scale: float = 1.0, d_in: int = D_IN
) -> LoraFactors:
    """Return random factors."""
    a, b = rng.standard_normal((rank, d_in)), rng.standard_normal((D_OUT, rank))
    return LoraFactors(a, b, scale)


def clients(ranks: list[int], seed: int = 0) -> Clients:
    """Return clients of two modules, each with its ranks and scale."""
    rng = np.random.default_rng(seed)
    return [
        {"m": factors(rng, r, 4.0 / (k + 1)), "wide": factors(rng, r + 1, 0.5 + k, 11)}
        for k, r in enumerate(ranks)
    ]


def sizes(n: int, seed: int = 0) -> list[float]:
    """Return example counts."""
    return [float(x) for x in np.random.default_rng(seed).integers(20, 400, n)]


def adjacency(n: int, seed: int = 0, density: float = 1.0) -> np.ndarray:
    """Return a random symmetric graph."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.uniform(0.1, 1, (n, n)) * (rng.random((n, n)) < density), 1)
    return upper + upper.T


def matrix(a: np.ndarray, n: list[float], eta: float) -> np.ndarray:
    """Return ``I − η Ñ⁻¹ L`` with the graph's Laplacian L = D − a."""
    relative = np.array(n) / np.mean(n)
    return np.eye(len(a)) - eta * (np.diag(a.sum(axis=1)) - a) / relative[:, None]


def products(models, module: str = "m") -> np.ndarray:
    """Return dense products, ``(n, d_out, d_in)``."""
    return np.array([own[module].product() for own in models])


def moved(models, a: np.ndarray, n: list[float], eta: float, module: str = "m") -> np.ndarray:
    """Return dense M_k before any rank cuts it."""
    return np.einsum("kl,lij->kij", matrix(a, n, eta), products(models, module))


def cut(dense: np.ndarray, rank: int) -> np.ndarray:
    """Return the best approximation of a rank."""
    u, s, vt = np.linalg.svd(dense, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def roughness(dense: np.ndarray, a: np.ndarray) -> float:
    """Return ``½ Σ_kl a_kl ‖P_k − P_l‖²``."""
    gaps = dense[:, None] - dense[None]
    return 0.5 * float((a * (gaps**2).sum(axis=(2, 3))).sum())


def same_bits(one: Clients, other: Clients) -> bool:
    """Tell whether all factors agree to the bit, in dtype and in scale."""
    return all(
        f.a.tobytes() == other[k][m].a.tobytes()
        and f.b.tobytes() == other[k][m].b.tobytes()
        and (f.a.dtype, f.b.dtype, f.scale)
        == (other[k][m].a.dtype, other[k][m].b.dtype, other[k][m].scale)
        for k, own in enumerate(one)
        for m, f in own.items()
    )
