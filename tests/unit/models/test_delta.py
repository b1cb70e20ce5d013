"""What earlier rounds merged into the frozen weights: loaded exactly, never twice, and put back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from atlas_flwr.aggregation.delta import accumulate, as_one
from atlas_flwr.errors import WriteBackError
from atlas_flwr.models import lora
from atlas_flwr.models.adapter_io import read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.models.export import save_adapter
from atlas_flwr.models.folded import FoldedLinear
from atlas_flwr.types import LoraFactors, ModelParts
from fakes import ARCHITECTURES, FakeTable, random_parts

# PEFT 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
D_IN, D_OUT = 7, 11
TOKENS = 64  # enough for the folded product


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D_IN, D_OUT)
        self.conv = Conv1D(nf=D_OUT, nx=D_IN)


def draw(rng: np.random.Generator, rank: int, scale: float = 1.0) -> LoraFactors:
    a, b = rng.normal(size=(rank, D_IN)), rng.normal(size=(D_OUT, rank))
    return LoraFactors(a.astype(np.float32), b.astype(np.float32), scale)


def layer_of(name: str, factors: LoraFactors, dropout: float = 0.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = lora.inject(Mixed(), [name], dropout)[name].eval()
    lora.set_factors(layer, factors.a, factors.b, factors.scale)
    return layer


def plain_weight(layer) -> np.ndarray:
    """Return the layer's frozen weight as ``(d_out, d_in)``."""
    weight = layer.base_layer.weight.detach().numpy()
    return weight.T if isinstance(layer.base_layer, Conv1D) else weight


def expected(weight: np.ndarray, layer, x: torch.Tensor, *changes: LoraFactors) -> np.ndarray:
    """Oracle: everything dense, in float64."""
    total = weight.astype(np.float64) + sum(change.product() for change in changes)
    return x.numpy().astype(np.float64) @ total.T + layer.base_layer.bias.detach().numpy()


@pytest.mark.parametrize("tokens", [2, TOKENS])
@pytest.mark.parametrize("name", ["linear", "conv"])
def test_forward_is_w_plus_delta_plus_scaled_product(name, tokens):
    rng = np.random.default_rng(0)
    adapter, delta = draw(rng, 2, 1.7), draw(rng, 5)
    layer = layer_of(name, adapter)
    weight = plain_weight(layer).copy()
    x = torch.randn(tokens, D_IN, generator=torch.Generator().manual_seed(1))
    lora.set_delta(layer, delta)
    assert isinstance(layer, FoldedLinear) == (name == "linear")
    for _ in range(2):
        np.testing.assert_allclose(
            layer(x).detach().numpy(),
            expected(weight, layer, x, adapter, delta),
            rtol=1e-4,
            atol=1e-4,
        )
    transposed = LoraFactors(delta.b.T, delta.a.T, 1.0).product().T
    np.testing.assert_allclose(transposed, delta.product())
    np.testing.assert_allclose(plain_weight(layer), weight + delta.product(), atol=1e-5)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_deltas_never_add_up_and_the_checkpoint_comes_back_bit_for_bit(name):
    rng = np.random.default_rng(0)
    layer = layer_of(name, draw(rng, 2))
    held, before = layer.base_layer.weight, layer.base_layer.weight.detach().clone()
    one, two = draw(rng, 3), draw(rng, 6)
    lora.set_delta(layer, one)
    first = held.detach().clone()
    lora.set_delta(layer, two)
    lora.set_delta(layer, two)
    np.testing.assert_allclose(
        plain_weight(layer), (before.numpy().T if name == "conv" else before.numpy())
        + two.product(), atol=1e-5,
    )  # fmt: skip
    lora.set_delta(layer, one)
    assert torch.equal(held, first)
    for _ in range(2):
        lora.set_delta(layer, None)
        assert torch.equal(held, before)
    assert layer.base_layer.weight is held  # optimizers and hooks keep their tensor
    assert not held.requires_grad
    assert not any("origin" in key for key in layer.state_dict())


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_a_delta_outlives_a_change_of_place_and_the_layer_moves_back(name):
    """No GPU here: float64 stands for another place, for ``.to`` replaces tensors the same way."""
    rng = np.random.default_rng(0)
    layer = layer_of(name, draw(rng, 2))
    before = layer.base_layer.weight.detach().clone()
    lora.set_delta(layer, draw(rng, 3))
    layer.to("cpu", torch.float64)
    layer.to("cpu", torch.float32)
    delta = draw(rng, 4)
    lora.set_delta(layer, delta)
    product = torch.from_numpy(delta.b @ delta.a)
    want = before + (product.T if name == "conv" else product)
    torch.testing.assert_close(layer.base_layer.weight.detach(), want, atol=1e-5, rtol=1e-5)
    lora.set_delta(layer, None)
    assert torch.equal(layer.base_layer.weight, before)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["linear", "conv"])
def test_a_delta_on_a_gpu(name):
    rng = np.random.default_rng(0)
    layer = layer_of(name, draw(rng, 2))
    before, delta = layer.base_layer.weight.detach().clone(), draw(rng, 3)
    lora.set_delta(layer, delta)
    layer.to("cuda")
    lora.set_delta(layer, delta)
    weight = plain_weight(layer.to("cpu")) - (
        before.numpy().T if name == "conv" else before.numpy()
    )
    np.testing.assert_allclose(weight, delta.product(), atol=1e-5)
    layer.to("cuda")
    lora.set_delta(layer, None)
    assert layer.base_layer.weight.device.type == "cuda"
    assert torch.equal(layer.base_layer.weight.cpu(), before)


def test_training_moves_no_merged_weight():
    rng = np.random.default_rng(0)
    layer = layer_of("linear", draw(rng, 2))
    lora.set_delta(layer, draw(rng, 3))
    merged = layer.base_layer.weight.detach().clone()
    x = torch.randn(TOKENS, D_IN, requires_grad=True)
    layer(x).square().sum().backward()
    # The gradient flows through the merged weight, and none is kept for it.
    assert layer.base_layer.weight.grad is None
    assert torch.equal(layer.base_layer.weight, merged)
    product = torch.from_numpy(lora.get_factors(layer).product().astype(np.float32))
    want = 2 * layer(x).detach() @ (merged + product)
    torch.testing.assert_close(x.grad, want, rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------ whole models


def with_delta(loaded: LoadedModel, seed: int, rank: int = 3) -> ModelParts:
    """Return small random parts with a delta on every second module."""
    parts = random_parts(loaded, seed, rank=2, spread=0.1)
    more = random_parts(loaded, seed + 1, rank=rank, spread=0.1).adapter
    delta = {m: replace(f, scale=1.0) for i, (m, f) in enumerate(more.items()) if i % 2}
    return replace(parts, delta=delta)


def logits_of(model, pad: int) -> torch.Tensor:
    batch = FakeTable(6).batch(np.arange(6), pad)
    batch.pop("labels")
    with torch.inference_mode():
        return model.eval()(**{k: torch.from_numpy(v) for k, v in batch.items()}).logits


def frozen(loaded: LoadedModel) -> dict[str, torch.Tensor]:
    trained = {id(p) for p in loaded.trainable()}
    named = loaded.model.named_parameters()
    return {n: p.detach().clone() for n, p in named if id(p) not in trained}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_job_without_a_delta_finds_the_checkpoint_again(architecture, folder_of):
    spec = ModelSpec(folder_of(architecture))
    loaded, other = load(spec, 2, 0), load(spec, 3, 0)
    parts = with_delta(loaded, 0)
    write_parts(loaded, replace(parts, delta={}))
    before, plain = frozen(loaded), logits_of(loaded.model, loaded.pad_token_id)
    write_parts(loaded, parts)
    first = logits_of(loaded.model, loaded.pad_token_id)
    assert not torch.allclose(first, plain, atol=1e-3)
    write_parts(loaded, parts)  # the same message again
    assert torch.equal(first, logits_of(loaded.model, loaded.pad_token_id))
    # A head of another size shares the backbone, and is another job.
    write_parts(other, random_parts(other, 5, rank=2))
    write_parts(loaded, replace(parts, delta={}))
    assert torch.equal(plain, logits_of(loaded.model, loaded.pad_token_id))
    after = frozen(loaded)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_is_read_back_has_no_delta(folder_of):
    loaded = load(ModelSpec(folder_of("gpt2")), 2, 0)
    parts = with_delta(loaded, 0)
    write_parts(loaded, parts)
    back = read_parts(loaded)
    assert back.delta == {}
    for module, factors in parts.adapter.items():
        assert back.adapter[module].b.tobytes() == factors.b.tobytes()


def test_a_refused_delta_changes_nothing(folder_of):
    loaded = load(ModelSpec(folder_of("distilbert")), 2, 0)
    good = with_delta(loaded, 0)
    write_parts(loaded, good)
    before = logits_of(loaded.model, 0)
    module, factors = next(iter(good.delta.items()))
    odd = {
        "no such module": {"distilbert.zz": factors},
        "absent factor": {module: factors.without("lora_B")},
        "ranks that differ": {module: replace(factors, a=factors.a[:1])},
        "transposed": {module: LoraFactors(factors.b.T[:, :-1], factors.a.T, 1.0)},
        "double": {module: factors.astype(np.float64)},
    }
    for case, delta in odd.items():
        name = next(iter(delta))
        with pytest.raises(WriteBackError, match=name.rpartition(".")[2]):
            write_parts(loaded, replace(good, delta={**good.delta, **delta}))
        assert torch.equal(before, logits_of(loaded.model, 0)), case


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_peft_opens_adapter_and_delta_as_one_with_the_same_logits(
    architecture, folder_of, tmp_path: Path
):
    """Oracle: PEFT's own model, with its adapter beside the weights and merged into them."""
    loaded = load(ModelSpec(folder_of(architecture)), 3, 0)
    parts = with_delta(loaded, 0, rank=5)
    write_parts(loaded, parts)
    ours = logits_of(loaded.model, loaded.pad_token_id)
    one = as_one(parts.adapter, parts.delta)
    for module, factors in one.items():
        rank = 2 + (5 if module in parts.delta else 0)
        assert (factors.rank, factors.scale) == (rank, 1.0)
    single = {module: factors.astype(np.float32) for module, factors in one.items()}
    save_adapter(tmp_path, loaded, replace(parts, adapter=single, delta={}))
    base = AutoModelForSequenceClassification.from_pretrained(loaded.backbone.path, num_labels=3)
    base.config.pad_token_id = loaded.pad_token_id
    theirs = PeftModel.from_pretrained(base, tmp_path)
    torch.testing.assert_close(logits_of(theirs, loaded.pad_token_id), ours, rtol=1e-4, atol=1e-5)
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(logits_of(merged, loaded.pad_token_id), ours, rtol=1e-4, atol=1e-5)


def test_a_merged_adapter_without_weight_can_be_exported():
    """FLoRA's first rounds: the adapter's B is zero, a change may be too."""
    rng = np.random.default_rng(0)
    zero = replace(draw(rng, 2, 1.5), b=np.zeros((D_OUT, 2), np.float32))
    delta = draw(rng, 3)
    (one,) = as_one({"m": zero}, {"m": delta}).values()
    np.testing.assert_allclose(one.product(), delta.product(), atol=1e-6)
    (none,) = as_one({"m": zero}, {"m": replace(zero, scale=1.0)}).values()
    assert none.rank >= 1
    assert not none.product().any()
    # Only one of the modules ever changed.
    both = as_one({"m": zero, "n": zero}, {"m": delta})
    assert set(both) == {"m", "n"}
    assert both["n"].rank >= 1


def test_changes_add_up_on_the_way():
    rng = np.random.default_rng(0)
    changes, total = [draw(rng, 4) for _ in range(5)], {}
    for change in changes:
        total = accumulate(total, {"m": change})
    np.testing.assert_allclose(
        total["m"].product(), sum(c.product() for c in changes), rtol=1e-5, atol=1e-5
    )
    assert total["m"].rank == min(D_IN, D_OUT)
