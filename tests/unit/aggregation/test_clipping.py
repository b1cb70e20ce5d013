"""Movements and clipping against dense NumPy and Flower's own."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.supercore.differential_privacy import compute_clip_model_update, get_norm

from atlas_flwr.aggregation.clipping import clip_share, clipped, flat_norm, movement, steps
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors, ModelParts


def model(seed: int, rank: int = 3, scale: float = 2.0) -> ModelParts:
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((rank, 7)), rng.standard_normal((9, rank))
    return ModelParts(
        adapter={"m": LoraFactors(a, b, scale)},
        weights={"w": rng.standard_normal((4, 2))},
        head={"h": rng.standard_normal(5)},
    )


def flat(parts: ModelParts) -> list[np.ndarray]:
    return [parts.adapter["m"].product(), parts.weights["w"], parts.head["h"]]


def test_a_movement_is_that_of_products_weights_and_head() -> None:
    after, before = model(0), model(1, rank=2, scale=0.5)
    moved = [x - y for x, y in zip(flat(after), flat(before), strict=True)]
    assert movement(after, before) == pytest.approx(get_norm(moved), rel=1e-12)
    assert movement(after, after) == pytest.approx(0.0, abs=1e-12)
    g = np.diag([0.5, 2.0, 3.0])
    told = after.adapter["m"]
    other = LoraFactors(np.linalg.inv(g) @ told.a, told.b @ g, told.scale)
    same = ModelParts({"m": other}, after.head, after.weights)
    assert movement(same, before) == pytest.approx(movement(after, before), rel=1e-12)


@pytest.mark.parametrize("bound", [0.3, 3.0, 1e9])
def test_a_clipped_model_is_flowers(bound: float) -> None:
    after, before = model(0), model(1)
    oracle, base = flat(after), flat(before)
    compute_clip_model_update(oracle, base, bound)
    share = clip_share(movement(after, before), bound)
    short = clipped(after, before, share)
    for ours, theirs in zip(flat(short), oracle, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    assert movement(short, before) <= bound * (1 + 1e-9)
    if share == 1.0:
        assert short is after


def test_flat_norms_and_steps_are_plain() -> None:
    after, before = model(0), model(1)
    moved = steps(after.body(), before.body())
    arrays = [after.body()[name] - before.body()[name] for name in moved]
    assert flat_norm(moved) == pytest.approx(get_norm(arrays), rel=1e-12)
    assert clip_share(0.0, 1.0) == 1.0  # Flower's divides by zero


def test_what_was_never_sent_and_what_is_not_finite_is_refused() -> None:
    after, before = model(0), model(1)
    for part in ("head", "weights", "lora_A"):
        lacking = before.without("lora_A", "lora_B") if part == "lora_A" else before.without(part)
        with pytest.raises(AggregationError, match="never sent"):
            movement(after, lacking)
    bad = ModelParts(head={"h": np.array([1.0, np.nan, 0, 0, 0])})
    with pytest.raises(AggregationError, match="h: holds values"):
        movement(bad, before)
    with pytest.raises(AggregationError, match="norm"), np.errstate(over="ignore"):
        flat_norm({"h": np.full(3, 1e200)})
