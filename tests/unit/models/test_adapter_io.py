from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from atlas_flwr.errors import WriteBackError
from atlas_flwr.models.adapter_io import initial_parts, read_parts, write_parts
from atlas_flwr.models.backbone import ModelSpec, load
from atlas_flwr.types import ModelParts
from fakes import ARCHITECTURES, random_parts

EVERY = (*ARCHITECTURES, "minilm")


def assert_same(one: ModelParts, two: ModelParts) -> None:
    flat_one, flat_two = one.body() | dict(one.head), two.body() | dict(two.head)
    assert list(flat_one) == list(flat_two)
    for name, array in flat_one.items():
        assert array.dtype == flat_two[name].dtype == np.float32
        assert array.tobytes() == flat_two[name].tobytes(), name
    assert {m: f.scale for m, f in one.adapter.items()} == {
        m: f.scale for m, f in two.adapter.items()
    }


@pytest.mark.parametrize(
    ("architecture", "adaptation"),
    [*((a, "lora") for a in EVERY), *((a, "full") for a in ARCHITECTURES)],
)
def test_what_is_written_is_what_is_read(architecture, adaptation, folder_of):
    loaded = load(ModelSpec(folder_of(architecture), adaptation=adaptation), 3, 0)
    for seed, rank in ((0, None), (1, 4), (2, 1), (3, None)):
        sent = random_parts(loaded, seed, rank)
        write_parts(loaded, sent)
        assert_same(read_parts(loaded), sent)


def test_what_is_read_is_a_copy(folder_of):
    loaded = load(ModelSpec(folder_of("bert")), 2, 0)
    sent = random_parts(loaded, 0)
    write_parts(loaded, sent)
    read = read_parts(loaded)
    for array in (*read.body().values(), *read.head.values()):
        np.add(array, 1, out=array)
    assert_same(read_parts(loaded), sent)
    for array in sent.body().values():
        np.add(array, 1, out=array)
    assert not np.array_equal(next(iter(read_parts(loaded).body().values())), array)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_are_those_of_the_plain_model(architecture, folder_of):
    full = load(ModelSpec(folder_of(architecture), adaptation="full"), 2, 0)
    plain = {name for name, _ in full.model.named_parameters()}
    lora = read_parts(load(ModelSpec(folder_of(architecture)), 2, 0))
    assert {f"{module}.weight" for module in lora.adapter} <= plain
    assert set(lora.head) <= plain
    assert not lora.weights
    both = read_parts(full)
    assert set(both.weights) | set(both.head) == plain
    assert not both.adapter


def test_first_parts_can_be_written_and_change_nothing_in_the_model(folder_of):
    spec = ModelSpec(folder_of("gpt2"))
    loaded = load(spec, 2, 5)
    parts = initial_parts(spec, 2, 4, 2.0, 5)
    write_parts(loaded, parts)
    assert_same(read_parts(loaded), parts)
    ids = torch.arange(4, 12).reshape(2, 4)
    plain = load(replace(spec, adaptation="full"), 2, 5)
    write_parts(plain, initial_parts(plain.spec, 2, 4, 2.0, 5))
    with torch.inference_mode():
        ours, theirs = loaded.model(ids).logits, plain.model(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_first_parts_of_each_rank_are_nested(folder_of):
    spec = ModelSpec(folder_of("bert"))
    low, high = (initial_parts(spec, 2, rank, 2.0, 5) for rank in (2, 6))
    for module, factors in low.adapter.items():
        assert np.array_equal(factors.a, high.adapter[module].a[:2])
    assert all(np.array_equal(low.head[name], high.head[name]) for name in low.head)


# ------------------------------------------------------------------ refusals


def _factors(parts: ModelParts, **changes: object) -> ModelParts:
    module = next(iter(parts.adapter))
    changed = replace(parts.adapter[module], **changes)
    return replace(parts, adapter={**parts.adapter, module: changed})


def _head(parts: ModelParts, array: np.ndarray | None) -> ModelParts:
    head = dict(parts.head)
    name = next(iter(head))
    if array is None:
        del head[name]
    else:
        head[name] = array
    return replace(parts, head=head)


BREAKS = {
    "module missing": (lambda p: replace(p, adapter=dict(list(p.adapter.items())[1:])), "not sent"),
    "module unknown": (
        lambda p: replace(p, adapter={**p.adapter, "zz": next(iter(p.adapter.values()))}),
        "'zz' is not in the model",
    ),
    "no adapter": (lambda p: p.without("lora_A", "lora_B"), "not sent"),
    "A alone": (lambda p: p.without("lora_B"), r"lora_B': expected shape .*, got \(0, 4\)"),
    "B alone": (lambda p: p.without("lora_A"), r"lora_A': expected shape .*, got \(4, 0\)"),
    "a core": (lambda p: replace(p, core={"m": np.eye(4, dtype=np.float32)}), "core of 'm'"),
    "A of rank 1 for B of rank 4": (
        lambda p: _factors(p, a=next(iter(p.adapter.values())).a[:1]),
        "lora_B': expected shape",
    ),
    "wrong d_in": (
        lambda p: _factors(p, a=next(iter(p.adapter.values())).a[:, :-1]),
        "lora_A': expected shape",
    ),
    "rank 0": (
        lambda p: _factors(p, a=np.zeros((0, 16), np.float32), b=np.zeros((16, 0), np.float32)),
        "lora_A': expected",
    ),
    "scale not finite": (lambda p: _factors(p, scale=float("nan")), "not finite"),
    "double": (
        lambda p: _factors(p, a=next(iter(p.adapter.values())).a.astype(np.float64)),
        "expected float32",
    ),
    "head tensor missing": (lambda p: _head(p, None), "not sent"),
    "head of another size": (lambda p: _head(p, np.zeros((3, 16), np.float32)), "expected shape"),
    "head that would broadcast": (
        lambda p: _head(p, np.zeros((1, 16), np.float32)),
        "expected shape",
    ),
    "weights for a frozen backbone": (
        lambda p: replace(p, weights={"bert.x": np.zeros(1, np.float32)}),
        "'bert.x' is not in the model",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_anything_else_is_refused_by_name_and_changes_nothing(case, folder_of):
    loaded = load(ModelSpec(folder_of("bert")), 2, 0)
    good = random_parts(loaded, 0, rank=4)
    write_parts(loaded, good)
    broken, words = BREAKS[case]
    with pytest.raises(WriteBackError, match=words):
        write_parts(loaded, broken(random_parts(loaded, 1, rank=4)))
    assert_same(read_parts(loaded), good)
