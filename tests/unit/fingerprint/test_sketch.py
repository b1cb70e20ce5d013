"""Inner products survive a sketch, clients draw the same one, and 8 KB are never exceeded."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.sketch import FEWEST, LIMIT, count_sketch, layout, project


@pytest.mark.parametrize("features", [16, 100, 384, 768, 1024, 4096])
@pytest.mark.parametrize("classes", [1, 2, 3, 6, 20, 77, 107, 108, 150, 1000])
@pytest.mark.parametrize("limit", [1024, LIMIT])
def test_the_layout_fits_and_is_as_large_as_it_can_be(features, classes, limit):
    cells, width = layout(features, classes, limit)
    size = (2 * cells + 1) * (2 * width + 4)
    assert size <= limit - 400
    assert 1 <= cells <= classes
    assert min(features, FEWEST) <= width <= features
    if width < features:
        assert (2 * cells + 1) * (2 * (width + 1) + 4) > limit - 400
    if cells < classes:  # classes share only where 16 dimensions each have no room
        assert (2 * cells + 3) * (2 * min(features, FEWEST) + 4) > limit - 400


def test_usual_encoders_are_not_projected_for_two_classes():
    assert layout(384, 2) == (2, 384)
    assert layout(768, 2) == (2, 768)


@pytest.mark.parametrize(
    ("features", "classes", "limit"), [(8, 0, LIMIT), (0, 2, LIMIT), (64, 2, 450)]
)
def test_what_cannot_fit_is_refused(features, classes, limit):
    with pytest.raises(AggregationError, match="hold no sketch"):
        layout(features, classes, limit)


def test_projection_preserves_inner_products():
    """Johnson and Lindenstrauss: unbiased over seeds, with an error of ‖x‖ ‖y‖ / √width."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 512))
    x[6:] += x[:6]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    errors = []
    for seed in range(40):
        sketch = project(x, 96, seed)
        errors.append(sketch @ sketch.T - x @ x.T)
    errors = np.array(errors)
    assert np.abs(errors).max() < 5 / np.sqrt(96)
    assert np.abs(errors.mean(axis=0)).max() < 4 / np.sqrt(40 * 96)
    assert np.sqrt((errors**2).mean()) < 1.1 / np.sqrt(96)


def test_an_orthonormal_projection_loses_less_the_wider_it_is():
    x = np.random.default_rng(0).standard_normal((8, 64))
    gaps = []
    for width in (16, 48, 63):
        gaps.append(np.abs(project(x, width, 0) @ project(x, width, 0).T - x @ x.T).mean())
    assert gaps[0] > gaps[1] > gaps[2]
    np.testing.assert_array_equal(project(x, 64, 0), x)


def test_clients_draw_the_same_projection_and_seeds_draw_others():
    x = np.random.default_rng(0).standard_normal((20, 64))
    whole = project(x, 32, 5)
    np.testing.assert_allclose(project(x[3:9], 32, 5), whole[3:9], rtol=1e-12)
    assert not np.allclose(project(x, 32, 6), whole)


def test_a_count_sketch_is_linear_and_right_on_average():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 30, 20))
    one = count_sketch(x, 64, 1, "w")
    np.testing.assert_allclose(
        count_sketch(2 * x - y, 64, 1, "w"), 2 * one - count_sketch(y, 64, 1, "w"), atol=1e-12
    )
    seeds = range(300)
    dots = [count_sketch(x, 64, s, "w") @ count_sketch(x + y, 64, s, "w") for s in seeds]
    true = float((x * (x + y)).sum())
    assert np.mean(dots) == pytest.approx(true, abs=4 * np.std(dots) / np.sqrt(len(dots)))
    assert np.std(dots) < 3 * np.linalg.norm(x) * np.linalg.norm(x + y) / np.sqrt(64)
    assert not np.allclose(count_sketch(x, 64, 1, "v"), one)
