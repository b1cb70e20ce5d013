from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

from atlas_flwr.errors import ModelError
from atlas_flwr.models import lora
from atlas_flwr.models.backbone import ModelSpec, load


class Mixed(nn.Module):
    """A backbone with both kinds of linear layers, none of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 7)
        self.conv = Conv1D(nf=3, nx=7)
        self.norm = nn.LayerNorm(3)
        self.pooler = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(self.linear(x)))


def test_shapes_are_out_by_in_for_both_kinds_and_leave_the_head_out():
    shapes = lora.linear_shapes(Mixed(), excluded=["pooler"])
    assert shapes == {"linear": (7, 5), "conv": (3, 7)}


@pytest.mark.parametrize("name", ["linear", "conv"])
@pytest.mark.parametrize("rank", [1, 2, 6])
def test_forward_is_w_plus_scaled_product(name, rank):
    torch.manual_seed(0)
    module = Mixed()
    shapes = lora.linear_shapes(module, ["pooler"])
    plain = getattr(module, name)
    weight = plain.weight.detach().clone()
    weight = weight.T if isinstance(plain, Conv1D) else weight
    layers = lora.inject(module, list(shapes), dropout=0.0)
    d_out, d_in = shapes[name]
    rng = np.random.default_rng(0)
    a = rng.normal(size=(rank, d_in)).astype(np.float32)
    b = rng.normal(size=(d_out, rank)).astype(np.float32)
    lora.set_factors(layers[name], a, b, 1.7)
    x = torch.randn(4, d_in)
    want = x @ (weight + 1.7 * torch.from_numpy(b) @ torch.from_numpy(a)).T + plain.bias
    torch.testing.assert_close(layers[name](x), want, rtol=1e-5, atol=1e-5)


def test_ranks_change_in_place_and_the_frozen_part_stays():
    module = Mixed()
    before = {n: p.detach().clone() for n, p in module.named_parameters()}
    layers = lora.inject(module, ["linear"], dropout=0.0)
    for rank in (4, 4, 1, 6):
        a, b = np.ones((rank, 5), np.float32), np.ones((7, rank), np.float32)
        lora.set_factors(layers["linear"], a, b, 0.5)
        got = lora.get_factors(layers["linear"])
        assert (got.rank, got.scale) == (rank, 0.5)
        assert [p.requires_grad for p in lora.factor_parameters(layers["linear"])] == [True] * 2
    assert torch.equal(layers["linear"].base_layer.weight, before["linear.weight"])
    assert sum(p.requires_grad for p in module.parameters()) == 2


def test_injection_leaves_torchs_generator_alone():
    module = Mixed()
    before = torch.random.get_rng_state()
    lora.inject(module, ["linear", "conv"], dropout=0.1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_endings_choose_modules_in_the_models_order():
    shapes = {"a.query": (1, 1), "a.key": (1, 1), "b.query": (1, 1), "b.xquery": (1, 1)}
    assert lora.resolve_targets(shapes, "auto") == list(shapes)
    assert lora.resolve_targets(shapes, ("b.query", "key")) == ["a.key", "b.query"]
    assert lora.resolve_targets(shapes, ("query",)) == ["a.query", "b.query"]


def test_ending_that_matches_nothing_is_refused():
    with pytest.raises(ModelError, match=r"^lora.targets: 'qurey' .*did you mean 'query'"):
        lora.resolve_targets({"a.query": (1, 1)}, ("query", "qurey"))
    with pytest.raises(ModelError, match=r"^lora.targets: .*no linear layer"):
        lora.resolve_targets({}, "auto")


@pytest.mark.parametrize(
    ("architecture", "count"), [("distilbert", 12), ("bert", 13), ("roberta", 12), ("gpt2", 8)]
)
def test_auto_adapts_every_linear_layer_of_the_backbone(architecture, count, folder_of):
    loaded = load(ModelSpec(folder_of(architecture)), 2, 0)
    assert len(loaded.backbone.shapes) == count
    assert all(name.startswith(loaded.backbone.prefix + ".") for name in loaded.backbone.shapes)


def test_named_targets_adapt_only_those(folder_of):
    loaded = load(ModelSpec(folder_of("gpt2"), targets=("attn.c_attn",)), 2, 0)
    assert loaded.backbone.shapes == {
        "transformer.h.0.attn.c_attn": (48, 16),
        "transformer.h.1.attn.c_attn": (48, 16),
    }


@settings(max_examples=30, deadline=None)
@given(small=st.integers(1, 8), more=st.integers(0, 8), seed=st.integers(0, 2**32 - 1))
def test_lower_ranks_are_the_first_rows_of_higher_ones(small, more, seed):
    shapes = {"x.q": (6, 5), "x.k": (4, 9)}
    low = lora.nested_init(shapes, small, 2.0, seed)
    high = lora.nested_init(shapes, {"x.q": small + more, "x.k": small + more}, 1.0, seed)
    for module, (d_out, d_in) in shapes.items():
        assert np.array_equal(low[module].a, high[module].a[:small])
        assert low[module].b.shape == (d_out, small)
        assert not low[module].b.any()
        assert low[module].a.dtype == low[module].b.dtype == np.float32
        assert np.abs(high[module].a).max() <= 1 / np.sqrt(d_in)


def test_modules_and_seeds_draw_apart_and_order_does_not_matter():
    one = lora.nested_init({"x": (4, 8), "y": (4, 8)}, 4, 2.0, 0)
    two = lora.nested_init({"y": (4, 8), "x": (4, 8)}, 4, 2.0, 0)
    assert np.array_equal(one["x"].a, two["x"].a)
    assert not np.array_equal(one["x"].a, one["y"].a)
    assert not np.array_equal(one["x"].a, lora.nested_init({"x": (4, 8)}, 4, 2.0, 1)["x"].a)


def test_start_has_pefts_own_spread():
    """Oracle: PEFT's initialisation of the same shape."""
    ours = lora.nested_init({"x": (4, 400)}, 64, 2.0, 0)["x"].a
    theirs = nn.Linear(400, 64, bias=False)
    nn.init.kaiming_uniform_(theirs.weight, a=5**0.5)
    assert ours.std() == pytest.approx(theirs.weight.detach().std().item(), rel=0.03)
