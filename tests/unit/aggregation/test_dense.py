"""The small SVD, also of a matrix that LAPACK's faster routine gives up on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.aggregation.dense import dense_svd
from atlas_flwr.aggregation.products import svd
from atlas_flwr.types import LoraFactors

# The core of FedEx-LoRA's first residual in a real run (6 clients, rank 8): rank 40 of 56.
HARD = np.load(Path(__file__).parent / "matrices" / "gesdd_gives_up.npy")


@pytest.mark.parametrize("matrix", [HARD, HARD.T, np.zeros((3, 2)), np.eye(4), HARD[:7]])
def test_the_factors_are_the_matrix(matrix: np.ndarray) -> None:
    u, s, vt = dense_svd(matrix)
    np.testing.assert_allclose((u * s) @ vt, matrix, atol=1e-15 * max(1.0, np.abs(matrix).max()))
    np.testing.assert_allclose(u.T @ u, np.eye(len(s)), atol=1e-13)
    np.testing.assert_allclose(vt @ vt.T, np.eye(len(s)), atol=1e-13)
    assert (np.diff(s) <= 0).all()


def test_a_product_with_such_a_core_has_its_svd() -> None:
    factors = LoraFactors(a=np.eye(len(HARD)), b=HARD, scale=1.0)
    found = svd(factors)
    np.testing.assert_allclose((found.u * found.s) @ found.vt, HARD, atol=1e-15)
