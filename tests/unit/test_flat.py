"""Parts as flat named tensors: nothing is lost, and nothing that is no part gets in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atlas_flwr import flat
from atlas_flwr.errors import WireError
from atlas_flwr.types import PARTS, LoraFactors, ModelParts, Part

RNG = np.random.default_rng(0)


def draw(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def whole() -> ModelParts:
    return ModelParts(
        adapter={
            "bert.layer.0.q": LoraFactors(draw(3, 7), draw(5, 3), 2.0),
            "bert.layer.1.q": LoraFactors(draw(1, 7), draw(5, 1), 0.5),
        },
        head={"classifier.weight": draw(2, 5), "classifier.bias": draw(2)},
        weights={"bert.norm": draw(4)},
        delta={"bert.layer.1.q": LoraFactors(draw(6, 7), draw(5, 6), 1.0)},
        core={"bert.layer.0.q": draw(3, 3), "bert.layer.1.q": draw(1, 1)},
    )


def assert_same(left: ModelParts, right: ModelParts) -> None:
    for kind in ("head", "weights", "core"):
        a, b = getattr(left, kind), getattr(right, kind)
        assert list(a) == list(b)
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], strict=True)
    for kind in ("adapter", "delta"):
        a, b = getattr(left, kind), getattr(right, kind)
        assert list(a) == list(b)
        for name in a:
            np.testing.assert_array_equal(a[name].a, b[name].a, strict=True)
            np.testing.assert_array_equal(a[name].b, b[name].b, strict=True)
            assert a[name].scale == b[name].scale


def scales(parts: ModelParts) -> dict[str, float]:
    return {module: factors.scale for module, factors in parts.adapter.items()}


@given(gone=st.sets(st.sampled_from(PARTS)))
@settings(deadline=None)
def test_any_choice_of_parts_comes_back_the_same(gone: set[Part]) -> None:
    sent = whole().without(*gone)
    assert_same(flat.unflatten(flat.flatten(sent), scales(sent)), sent)
    arrays, layout = flat.to_arrays(sent)
    assert_same(flat.from_arrays(arrays, layout), sent)
    assert all(tensor.size for tensor in arrays)  # an absent factor doesn't travel


@pytest.mark.parametrize("part", ["lora_A", "lora_B"])
def test_a_factor_that_travels_alone_still_tells_its_rank(part: Part) -> None:
    sent = whole().only(part)
    back = flat.unflatten(flat.flatten(sent), scales(sent))
    assert back.ranks() == whole().ranks()
    for module, factors in back.adapter.items():
        assert not factors.whole
        assert list(flat.flatten(sent)["adapter"]) == [f"{m}.{part}" for m in sent.adapter]
        with pytest.raises(ValueError, match=r"matmul|broadcast|mismatch"):
            factors.product() + whole().adapter[module].product()


def test_kinds_are_in_a_fixed_order_and_empty_ones_are_absent() -> None:
    assert tuple(flat.flatten(whole())) == flat.KINDS
    assert flat.flatten(ModelParts()) == {}
    assert list(flat.flatten(whole().only("core"))) == ["adapter"]
    assert list(flat.flatten(whole().only("delta", "head"))) == ["adapter", "head"]


def test_lists_must_be_as_long_as_their_layout() -> None:
    arrays, layout = flat.to_arrays(whole())
    for odd in (arrays[:-1], [*arrays, arrays[0]], []):
        with pytest.raises(WireError, match="places"):
            flat.from_arrays(odd, layout)


def test_a_delta_has_no_scale() -> None:
    parts = whole()
    odd = {m: replace(f, scale=2.0) for m, f in parts.delta.items()}
    with pytest.raises(WireError, match=r"layer\.1\.q: a delta's scale must be 1, got 2"):
        flat.flatten(replace(parts, delta=odd))
    with pytest.raises(WireError, match="scale must be 1"):
        flat.to_arrays(replace(parts, delta=odd))


ONES = np.ones((2, 3))
BROKEN = {
    "ranks differ": ({"m.lora_A": ONES, "m.lora_B": np.ones((4, 1))}, "don't share a rank"),
    "a rank that would broadcast": (
        {"m.lora_A": np.ones((1, 3)), "m.lora_B": np.ones((4, 2))},
        "don't share a rank",
    ),
    "ranks of a delta differ": ({"m.delta_A": ONES, "m.delta_B": ONES}, "don't share a rank"),
    "no scale": ({"x.lora_A": ONES, "x.lora_B": np.ones((4, 2))}, "x: LoRA .* without their scale"),
    "no scale for one factor": ({"x.lora_B": ONES}, "x: LoRA factors came without their scale"),
    "no matrix": ({"m.lora_A": np.ones(3)}, r"m: a LoRA factor of shape \(3,\)"),
    "no matrix beside a matrix": ({"m.lora_A": ONES, "m.lora_B": np.ones((4, 2, 1))}, "no matrix"),
    "a core that is no square": ({"m.core": ONES}, r"m: a core of shape \(2, 3\)"),
    "a core that is no matrix": ({"m.core": np.ones(4)}, r"m: a core of shape \(4,\)"),
    "a name of no part": ({"m.lora_C": ONES}, r"no part of a model is named 'm\.lora_C'"),
    "a name alone": ({"lora": ONES}, "no part of a model is named 'lora'"),
    "an odd name among good ones": (
        {"m.core": np.ones((2, 2)), "m.corex": ONES},
        r"named 'm\.corex'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_parts_are_refused(case: str) -> None:
    tensors, message = BROKEN[case]
    with pytest.raises(WireError, match=message):
        flat.unflatten({"adapter": tensors}, {"m": 1.0})


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_is_finite(scale: float) -> None:
    tensors = {"m.lora_A": ONES, "m.lora_B": np.ones((4, 2))}
    with pytest.raises(WireError, match=r"m: scale .* not finite"):
        flat.unflatten({"adapter": tensors}, {"m": scale})


# ------------------------------------------------------------------ sparse


@given(
    tensor=hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=19),
        elements=st.sampled_from([0.0, -0.0, 1.5, -2.0, float("nan"), float("inf"), 6e-8]),
    )
)
def test_squeezing_loses_nothing_and_costs_a_bit_an_entry(tensor: np.ndarray) -> None:
    squeezed = flat.squeeze({"m": tensor})
    (back,) = flat.stretch(squeezed, {"m": tensor.shape[1]}).values()
    assert back.dtype == tensor.dtype
    assert back.tobytes() == tensor.tobytes()
    rows, columns = tensor.shape
    bits, values = squeezed["m.bits"], squeezed["m.values"]
    assert bits.nbytes == rows * -(-columns // 8)
    there = np.count_nonzero(tensor) + np.count_nonzero((tensor == 0) & np.signbit(tensor))
    assert values.nbytes == there * tensor.itemsize


def test_many_matrices_squeeze_side_by_side() -> None:
    tensors = {"a": draw(3, 9), "b": np.zeros((2, 8), np.float32), "a.b": draw(1, 1)}
    columns = {name: tensor.shape[1] for name, tensor in tensors.items()}
    back = flat.stretch(flat.squeeze(tensors), columns)
    assert list(back) == list(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(back[name], tensor, strict=True)


def squeezed() -> dict[str, np.ndarray]:
    tensor = np.zeros((2, 9), np.float32)
    tensor[0, 1] = tensor[1, 8] = 3.0
    return flat.squeeze({"m": tensor})


CORRUPT = {
    "no bitmap": (lambda s: s.pop("m.bits"), 9, "without its bitmap or values"),
    "no values": (lambda s: s.pop("m.values"), 9, "without its bitmap or values"),
    "bitmap of floats": (
        lambda s: s.update({"m.bits": s["m.bits"].astype(np.float32)}),
        9,
        "without its bitmap",
    ),
    "flat bitmap": (lambda s: s.update({"m.bits": s["m.bits"].ravel()}), 9, "without its bitmap"),
    "a value too few": (lambda s: s.update({"m.values": s["m.values"][1:]}), 9, "for 2 non-zeros"),
    "values as a matrix": (
        lambda s: s.update({"m.values": s["m.values"][:, None]}),
        9,
        "for 2 non-zeros",
    ),
    "more columns than bits": (lambda s: None, 17, "17 columns don't fit"),
    "fewer columns than bits": (lambda s: None, 8, "8 columns don't fit"),
    "negative columns": (lambda s: None, -1, "-1 columns don't fit"),
    "a tensor nobody expects": (lambda s: s.update({"x.bits": s["m.bits"]}), 9, r"x\.bits"),
}


@pytest.mark.parametrize("case", CORRUPT)
def test_corrupted_sparse_tensors_are_refused(case: str) -> None:
    breaks, columns, message = CORRUPT[case]
    tensors = squeezed()
    breaks(tensors)
    with pytest.raises(WireError, match=message):
        flat.stretch(tensors, {"m": columns})


def test_bits_beyond_the_last_column_are_refused() -> None:
    tensors = squeezed()
    tensors["m.bits"][0, -1] |= 1
    with pytest.raises(WireError, match="beyond its 9 columns"):
        flat.stretch(tensors, {"m": 9})
