"""What a message has beside the numbers it carries, weighed as it is sent."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.apps.grants import uplink_overhead
from atlas_flwr.ranks.allocate import uniform
from atlas_flwr.ranks.budget import Budget, allowance, rank_costs
from atlas_flwr.ranks.memory import Load, Shape, predict
from atlas_flwr.types import Job, LoraFactors, ModelParts, Report, Update
from atlas_flwr.wire import count_bytes, pack_update

Shapes = dict[str, tuple[int, int]]
REST = predict({}, Shape(1, 16), Load(1, 1))
MINILM: Shapes = {
    f"bert.encoder.layer.{layer}.{end}": shape
    for layer in range(6)
    for end, shape in {
        "attention.self.query": (384, 384),
        "attention.self.key": (384, 384),
        "attention.self.value": (384, 384),
        "attention.output.dense": (384, 384),
        "intermediate.dense": (1536, 384),
        "output.dense": (384, 1536),
    }.items()
}
TINY: Shapes = {"m.q": (16, 16), "m.up": (24, 16)}
HEADS: dict[str, tuple[int, ...]] = {"classifier.weight": (3, 384), "classifier.bias": (3,)}


def sent(shapes: Shapes, ranks: dict[str, int], head: dict[str, tuple[int, ...]]) -> int:
    """Return the bytes of a trained client's answer."""
    adapter = {
        m: LoraFactors(
            np.ones((ranks[m], d_in), np.float32),
            np.ones((d_out, ranks[m]), np.float32),
            16.0 / ranks[m],
        )
        for m, (d_out, d_in) in shapes.items()
    }
    tensors = {name: np.ones(shape, np.float32) for name, shape in head.items()}
    report = Report(1234, {"loss": 0.693}, 12.5, 987_654_321, "NVIDIA H100 80GB HBM3")
    update = Update(3, report, ModelParts(adapter=adapter, head=tensors))
    return sum(count_bytes(pack_update(update, Job(11, "train", 20))).values())


@pytest.mark.parametrize("uplink", [120_000, 1_000_000, 8_000_000])
@pytest.mark.parametrize("head", [{}, HEADS])
def test_an_answer_that_spends_the_whole_grant_fits_the_uplink(
    uplink: int, head: dict[str, tuple[int, ...]]
) -> None:
    """Oracle: Flower's own count. No more than rounding and room for long numbers is left."""
    scales = [16.0 / rank for rank in range(1, 257)]
    shapes = MINILM if uplink > 200_000 else TINY
    beside = uplink_overhead(shapes, head, scales, "NVIDIA H100 80GB HBM3")
    numbers = sum(int(np.prod(shape)) for shape in head.values())
    spare = {"head": numbers, "sends_head": bool(head), "overhead": beside}
    params = allowance(Budget(uplink=uplink), REST, **spare).params
    assert params is not None
    costs = rank_costs(shapes)
    ranks = uniform(costs, params, dict.fromkeys(shapes, 4096))
    unspent = 4 * (params - sum(costs[m] * r for m, r in ranks.items()))
    assert 0 <= unspent < 4 * max(costs.values())
    left = uplink - unspent - sent(shapes, ranks, head)
    assert 0 <= left < 40 + 20 * len(shapes)


def test_the_overhead_grows_with_tensors_and_their_names_alone() -> None:
    wide = {module: (2 * d_out, 2 * d_in) for module, (d_out, d_in) in TINY.items()}
    assert uplink_overhead(wide, {}, [1.0]) == uplink_overhead(TINY, {}, [1.0])
    assert uplink_overhead(TINY | {"m.down": (16, 24)}, {}, [1.0]) > uplink_overhead(
        TINY, {}, [1.0]
    )
    assert uplink_overhead(TINY, HEADS, [1.0]) > uplink_overhead(TINY, {}, [1.0])
