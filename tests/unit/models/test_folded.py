from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import nn
from transformers.pytorch_utils import Conv1D

from atlas_flwr.models import lora
from atlas_flwr.models.folded import FoldedLinear, _Product

D_IN, D_OUT, RANK = 6, 10, 2


class Backbone(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(D_IN, D_OUT, bias=bias)
        self.conv = Conv1D(nf=3, nx=D_OUT)


def layer_with(bias: bool = True, dropout: float = 0.0) -> FoldedLinear:
    torch.manual_seed(0)
    layer = lora.inject(Backbone(bias), ["linear"], dropout)["linear"]
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(RANK, D_IN)), rng.normal(size=(D_OUT, RANK))
    lora.set_factors(layer, a.astype(np.float32), b.astype(np.float32), 1.7)
    return layer


def gradients(layer: nn.Module, forward, x: torch.Tensor) -> dict[str, torch.Tensor]:
    x = x.clone().requires_grad_()
    layer.zero_grad(set_to_none=True)
    out = forward(x)
    (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    named = {n: p.grad for n, p in layer.named_parameters() if p.requires_grad}
    return {"out": out.detach(), "x": x.grad, **named}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(40, D_IN), (5, 8, D_IN), (2, 1, D_IN)])
def test_output_and_gradients_are_peft_s(bias, shape):
    layer, x = layer_with(bias), torch.randn(*shape, generator=torch.Generator().manual_seed(1))
    got = gradients(layer, layer, x)
    want = gradients(layer, lambda x: PeftLinear.forward(layer, x), x)
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_finite_differences():
    layer = layer_with().double()
    a, b = lora.factor_parameters(layer)
    x = torch.randn(3, 2, D_IN, dtype=torch.float64, requires_grad=True)

    def product(x, a, b):
        return _Product.apply(x, layer.base_layer.weight, layer.base_layer.bias, a, b, 1.7)

    assert torch.autograd.gradcheck(product, (x, a, b))


def test_inference_equals_training_and_leaves_the_weight():
    layer, x = layer_with(), torch.randn(40, D_IN)
    before = layer.base_layer.weight.clone()
    with torch.inference_mode():
        scored = layer(x)
    assert torch.equal(scored, layer(x).detach())
    assert torch.equal(layer.base_layer.weight, before)


def test_under_autocast_and_for_few_tokens_peft_s_own_forward_runs():
    layer, x = layer_with(), torch.randn(40, D_IN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), PeftLinear.forward(layer, x))
    assert torch.equal(layer(x[:3]), PeftLinear.forward(layer, x[:3]))


def test_a_copy_has_its_own_factors():
    layer, x = layer_with(), torch.randn(40, D_IN)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.lora_B[lora.ADAPTER].weight.zero_()
    torch.testing.assert_close(twin(x), layer.base_layer(x))
    assert not torch.allclose(layer(x), layer.base_layer(x))


def test_other_layers_and_dropout_stay_peft_s():
    backbone = Backbone()
    layers = lora.inject(backbone, ["conv"], 0.0)
    assert not isinstance(layers["conv"], FoldedLinear)
    assert not isinstance(layer_with(dropout=0.1), FoldedLinear)


def test_gradients_of_single_examples_by_vmap():
    layer = layer_with()
    a, b = (p.detach() for p in lora.factor_parameters(layer))
    x = torch.randn(4, 20, D_IN)

    def loss(factor, row):
        names = {"lora_A.default.weight": a, "lora_B.default.weight": factor}
        return torch.func.functional_call(layer, names, (row,)).pow(2).sum()

    got = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(b, x)
    want = torch.stack([torch.func.grad(loss)(b, row) for row in x])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
