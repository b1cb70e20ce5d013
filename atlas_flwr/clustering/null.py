"""What clients without clusters would look like: the noise kept, the structure destroyed.

If the clients' fingerprints were draws of *one* Gaussian, of any mean and covariance, then given
their mean and covariance every rotation of the clients among themselves would be as likely as what
was seen. Rotating keeps all of the noise, of the client-to-client variation and of the dimensions
they live in, and destroys clusters; a statistic's rank among rotated copies is an exact test
(rotation tests, Langsrud 2005; the single-Gaussian null is SigClust's, Liu et al. 2008).

Everything is done on Gram matrices of n clients: dimensions beyond n cost nothing, and the draws
read only the spectrum, so renumbering the clients changes no threshold.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from atlas_flwr.clustering.partition import Float
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Array


def cosine(vectors: Array) -> Float:
    """Return the cosines between rows, shape ``(n, n)``, ones on the diagonal.

    Raises:
        AggregationError: The rows are not finite, or one is zero and has no direction.
    """
    x = np.asarray(vectors, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise AggregationError("fingerprints must be finite vectors of one length")
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not (norms > 0).all():
        raise AggregationError(f"fingerprint {int(np.argmin(norms))} is zero and has no direction")
    unit = x / norms
    similarity: Float = np.clip(unit @ unit.T, -1.0, 1.0)
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, 1.0)
    return similarity


def centred_axes(similarity: Float) -> tuple[Float, Float]:
    """Return the spectrum of the centred similarities and its axes, both without the mean.

    Returns:
        Eigenvalues, shape ``(n − 1,)``, not negative (what is negative is no distance and is
        dropped), ascending; and the axes, ``(n, n − 1)``: ``axes · √values`` are coordinates.
    """
    basis = _contrasts(len(similarity))
    values, turned = np.linalg.eigh(basis.T @ similarity @ basis)
    values[values <= 1e-12 * np.trace(similarity)] = 0.0  # rounding is no difference
    return values, basis @ turned


def denoised(values: Float, floor: float | None) -> Float:
    """Return the spectrum less what noise adds to each direction, not below 0.

    Noise that is independent between clients and lives in many dimensions adds one constant to all
    eigenvalues, which makes all distances alike and silhouettes small. A test on rotated copies
    stays exact, for it is a function of the spectrum and is done to the copies too.

    Args:
        values: Eigenvalues from ``centred_axes``.
        floor: The constant, if measured (``half_noise``). None takes the median eigenvalue: noise
            alone, when clusters use less than half of the directions.
    """
    constant = float(np.median(values)) if floor is None else floor
    less: Float = np.maximum(values - constant, 0.0)
    # What is left of equal eigenvalues is rounding, and no structure.
    less[less <= 1e-9 * max(float(values.max()), 1e-300)] = 0.0
    return less


def rotations(values: Float, draws: int, rng: np.random.Generator) -> Iterator[Float]:
    """Yield coordinates of the same spectrum and mean, shape ``(n, n − 1)``, otherwise random."""
    basis = _contrasts(len(values) + 1)
    for _ in range(draws):
        yield basis @ _orthonormal(len(values), len(values), rng) * np.sqrt(values)


def half_noise(halves: Float) -> float:
    """Return the share of a whole fingerprint's square that is noise, from its two halves.

    ``1 − 2ρ / (1 + ρ)`` with ρ the mean similarity between a client's halves (Spearman–Brown: the
    whole has half the noise of its halves). In units of a similarity whose diagonal is 1.

    Args:
        halves: Similarities of all halves, ``(2n, 2n)``, the n first halves first.
    """
    n = len(halves) // 2
    rho = float(np.mean(np.diagonal(halves[:n, n:])))
    return 1.0 if rho <= 0 else 1.0 - 2 * rho / (1 + rho)


def excess(halves: Float, draws: int, rng: np.random.Generator) -> tuple[float, float]:
    """Test whether clients differ by more than the halves of one client do.

    The variance between clients' means of two halves, against the variance of half the difference
    of a client's halves: both have the same noise, so without differences between clients they are
    equal, and a rotation that mixes the two is as likely as what was seen.

    Returns:
        The share of the variance between clients that is not noise, in [0, 1], and the p-value.
    """
    n = len(halves) // 2
    mean, gap = np.hstack([np.eye(n), np.eye(n)]) / 2, np.hstack([np.eye(n), -np.eye(n)]) / 2
    rows = np.vstack([_contrasts(n).T @ mean, gap])  # (n − 1) + n draws of the noise, if no more
    gram = rows @ halves @ rows.T
    whole = float(np.trace(gram))
    between = float(np.trace(gram[: n - 1, : n - 1]))
    if whole <= 0 or between <= 1e-12 * whole:
        return 0.0, 1.0
    seen = 0
    for _ in range(draws):
        turned = _orthonormal(2 * n - 1, n - 1, rng)
        seen += float(np.einsum("ij,ik,kj->", turned, gram, turned)) >= between * (1 - 1e-12)
    noise = max(whole - between, 0.0) / n
    return max(0.0, 1.0 - noise / (between / (n - 1))), (1 + seen) / (1 + draws)


def _contrasts(n: int) -> Float:
    """Return Helmert's orthonormal axes orthogonal to the mean, shape ``(n, n − 1)``."""
    size = np.arange(1, n)
    axes = np.where(np.arange(n)[:, None] < size, 1.0, 0.0)
    axes[size, size - 1] = -size
    helmert: Float = axes / np.sqrt(size * (size + 1.0))
    return helmert


def _orthonormal(rows: int, columns: int, rng: np.random.Generator) -> Float:
    """Return orthonormal columns drawn uniformly (Haar)."""
    q, r = np.linalg.qr(rng.standard_normal((rows, columns)))
    haar: Float = q * np.where(np.diagonal(r) < 0, -1.0, 1.0)
    return haar
