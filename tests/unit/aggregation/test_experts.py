"""Experts and routers as named tensors: there and back, and what is no mixture."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.aggregation.experts import pack, routers_of, unpack
from atlas_flwr.errors import WireError
from atlas_flwr.types import Adapter, LoraFactors

SHAPES = {"m.q": (5, 4), "m.expert-1.up": (3, 6)}  # a name that looks like an expert's


def adapter(seed: int) -> Adapter:
    rng = np.random.default_rng(seed)
    return {
        m: LoraFactors(rng.normal(size=(2, d_in)), rng.normal(size=(d_out, 2)), 0.5)
        for m, (d_out, d_in) in SHAPES.items()
    }


def routers(experts: int) -> dict[str, np.ndarray]:
    return {f"{m}.router": np.ones((2 * experts - 1, d_in)) for m, (_, d_in) in SHAPES.items()}


@pytest.mark.parametrize(("experts", "own"), [(2, 0), (2, 1), (3, 1), (12, 11)])
def test_what_is_packed_is_unpacked(experts: int, own: int) -> None:
    adapters = [adapter(seed) for seed in range(experts)]
    flat = pack(routers(experts), adapters, own)
    assert {tensor.dtype for tensor in flat.values()} == {np.dtype(np.float32)}
    assert len(flat) == len(SHAPES) * (1 + 2 * (experts - 1))  # the own expert is not in it
    assert routers_of(flat).keys() == routers(experts).keys()
    for module, found in unpack(flat).items():
        assert (found.own, found.count) == (own, experts)
        assert found.router.shape == (2 * experts - 1, SHAPES[module][1])
        assert sorted(found.others) == [i for i in range(experts) if i != own]
        for number, (a, b) in found.others.items():
            np.testing.assert_allclose(a, adapters[number][module].a, rtol=1e-6)
            np.testing.assert_allclose(b, adapters[number][module].b, rtol=1e-6)


def test_what_is_no_mixture_is_refused() -> None:
    flat = pack(routers(3), [adapter(seed) for seed in range(3)], 1)
    a = flat["m.q.expert-0.lora_A"]
    for bad in (
        {**flat, "m.q.bias": a},
        {**flat, "other.expert-0.lora_A": a},
        {**flat, "m.q.expert-1.lora_A": a, "m.q.expert-1.lora_B": a},
        {**flat, "m.q.router": np.ones((4, 4))},
        {n: t for n, t in flat.items() if n != "m.q.expert-0.lora_B"},
        {n: t for n, t in flat.items() if not n.startswith("m.q.expert-0")},
    ):
        with pytest.raises(WireError):
            unpack(bad)
