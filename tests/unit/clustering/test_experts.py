"""Experts by B: distances as SciPy's, clusters and silhouettes as scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score, silhouette_score

from atlas_flwr.clustering.experts import allocate, distances, nearest
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import Tensors

SHAPES = {"q": (7, 3), "up": (4, 2)}


def clients(groups: tuple[int, ...], noise: float = 0.3, seed: int = 0) -> list[Tensors]:
    """Return B of clients whose groups have directions of their own."""
    rng = np.random.default_rng(seed)
    centres = [{m: rng.normal(size=shape) for m, shape in SHAPES.items()} for _ in range(9)]
    return [
        {m: centres[g][m] + noise * rng.normal(size=shape) for m, shape in SHAPES.items()}
        for g in groups
    ]


def test_the_distance_is_the_mean_over_modules_of_cosine_distances() -> None:
    factors = clients((0, 0, 1, 2), noise=1.0)
    factors[1] = {m: 1000 * b for m, b in factors[1].items()}  # norms don't count
    flat = {m: np.stack([f[m].ravel() for f in factors]) for m in SHAPES}
    oracle = np.mean([cdist(x, x, "cosine") for x in flat.values()], axis=0)
    np.testing.assert_allclose(distances(factors), oracle, atol=1e-12)


def test_who_learnt_nothing_is_like_nobody_but_its_own_kind() -> None:
    zero = {m: np.zeros(shape) for m, shape in SHAPES.items()}
    d = distances([zero, *clients((0,)), zero])
    np.testing.assert_allclose(d, [[0, 1, 0], [1, 0, 1], [0, 1, 0]], atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("most", [2, 4, 6])
def test_allocation_is_sklearns_average_linkage_at_its_best_silhouette(
    seed: int, most: int
) -> None:
    d = distances(clients((0, 1, 2, 0, 1, 2, 3, 3), noise=1.0, seed=seed))
    found = allocate(d, most)
    oracle = {}
    for k in range(2, most + 1):
        model = AgglomerativeClustering(k, metric="precomputed", linkage="average")
        oracle[k] = silhouette_score(d, model.fit_predict(d), metric="precomputed")
    assert found.scores == pytest.approx(oracle)
    best = max(oracle, key=lambda k: oracle[k])
    assert found.experts == best
    model = AgglomerativeClustering(best, metric="precomputed", linkage="average")
    assert adjusted_rand_score(model.fit_predict(d), found.labels) == 1.0


def test_planted_groups_are_found_and_numbered_as_they_come() -> None:
    found = allocate(distances(clients((4, 4, 1, 0, 1, 0))), most=4)
    assert found.labels == (0, 0, 1, 2, 1, 2)
    assert found.why.startswith("3 experts")


@pytest.mark.parametrize(("n", "most"), [(1, 4), (2, 4), (6, 1)])
def test_few_clients_or_one_expert_allowed_are_one_expert(n: int, most: int) -> None:
    found = allocate(distances(clients(tuple(range(n)))), most)
    assert (found.labels, found.experts, dict(found.scores)) == ((0,) * n, 1, {})


def test_clients_that_are_all_alike_are_one_expert() -> None:
    (one,) = clients((0,))
    assert allocate(distances([one] * 5), 4).experts == 1


def test_late_clients_go_where_the_mean_distance_is_smallest() -> None:
    *known, late = clients((0, 0, 1, 1, 1))
    assert nearest(late, known, [0, 0, 1, 1]) == 1
    assert nearest(late, known, [3, 3, 2, 2]) == 2


def test_other_shapes_modules_and_values_are_refused() -> None:
    good = clients((0, 1))
    for bad, message in (
        ({"q": good[0]["q"]}, "up: not every client"),
        ({**good[0], "q": good[0]["q"][:, :1]}, "q: B"),
        ({**good[0], "q": np.full((7, 3), np.nan)}, "q: B holds"),
    ):
        with pytest.raises(AggregationError, match=message):
            distances([*good, bad])
