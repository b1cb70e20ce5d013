"""The mixture of experts: as written plainly token by token, and gone when the job is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas_flwr.aggregation.experts import pack, unpack
from atlas_flwr.errors import WriteBackError
from atlas_flwr.models.adapter_io import read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.models.experts import load_experts, mixed, save_experts
from atlas_flwr.models.lora import factor_parameters
from atlas_flwr.types import ModelParts
from fakes import random_parts
from homes import same_bits

RANK = 3


def parts_of(loaded: LoadedModel, seed: int) -> ModelParts:
    drawn = random_parts(loaded, seed, RANK, 0.3)
    return replace(drawn, adapter={m: replace(f, scale=0.7) for m, f in drawn.adapter.items()})


def routers(loaded: LoadedModel, experts: int, seed: int = 9) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = loaded.backbone.shapes
    return {f"{m}.router": rng.normal(size=(2 * experts - 1, d)) for m, (_, d) in shapes.items()}


@pytest.fixture(params=["distilbert", "gpt2"])
def loaded(request: pytest.FixtureRequest, folder_of: Callable[[str], str]) -> LoadedModel:
    """GPT-2 adapts Conv1D, whose weight lies transposed."""
    return load(ModelSpec(folder_of(request.param)), 2, 0)


def ready(
    loaded: LoadedModel, experts: int, own: int, same: bool = False
) -> tuple[dict[str, np.ndarray], list[ModelParts]]:
    """Load the own expert; return the mixture's tensors and all experts."""
    drawn = [parts_of(loaded, 0 if same else seed) for seed in range(experts)]
    write_parts(loaded, drawn[own])
    return pack(routers(loaded, experts), [parts.adapter for parts in drawn], own), drawn


def plainly(
    x: np.ndarray, drawn: list[ModelParts], module: str, router: np.ndarray, own: int
) -> np.ndarray:
    """Return ``Σ ω_i s B_i A_i x`` of each token, one output of the router after the other."""
    count = len(drawn)
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    found = []
    for token in rows:
        logits = router @ token
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        top = np.argsort(-shares)[:count]
        total = sum(shares[i] for i in top)
        products = [drawn[i if i < count else own].adapter[module].product() for i in top]
        terms = (shares[i] / total * p @ token for i, p in zip(top, products, strict=True))
        found.append(sum(terms))
    return np.array(found).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize(("experts", "own"), [(2, 0), (3, 1), (4, 3)])
def test_the_forward_is_the_papers_sum_token_by_token(
    loaded: LoadedModel, experts: int, own: int
) -> None:
    flat, drawn = ready(loaded, experts, own)
    rng = np.random.default_rng(1)
    with mixed(loaded.backbone.layers, unpack(flat)), torch.inference_mode():
        for module, layer in loaded.backbone.layers.items():
            d_in = loaded.backbone.shapes[module][1]
            x = rng.normal(size=(2, 5, d_in)).astype(np.float32)
            got = (layer(torch.tensor(x)) - layer.base_layer(torch.tensor(x))).numpy()
            oracle = plainly(x, drawn, module, flat[f"{module}.router"], own)
            np.testing.assert_allclose(got, oracle, rtol=1e-4, atol=1e-5)


def logits(loaded: LoadedModel) -> torch.Tensor:
    tokens = torch.arange(4, 16).reshape(2, 6)
    return loaded.model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits


def test_experts_that_are_all_the_same_are_plain_lora(loaded: LoadedModel) -> None:
    """The weights sum to 1, whatever the router says."""
    flat, _ = ready(loaded, 3, 1, same=True)
    with torch.inference_mode():
        plain = logits(loaded)
        with mixed(loaded.backbone.layers, unpack(flat)):
            torch.testing.assert_close(logits(loaded), plain, rtol=1e-4, atol=1e-5)
        flat, _ = ready(loaded, 3, 1)
        with mixed(loaded.backbone.layers, unpack(flat)):
            assert (logits(loaded) - plain).abs().max() > 1e-3


def test_one_choice_at_least_is_the_clients_own(loaded: LoadedModel) -> None:
    flat, _ = ready(loaded, 4, 2)
    with mixed(loaded.backbone.layers, unpack(flat)), torch.inference_mode():
        for module, layer in loaded.backbone.layers.items():
            x = 3 * torch.randn(
                200, loaded.backbone.shapes[module][1], generator=torch.Generator().manual_seed(0)
            )
            gates = layer.atlas_experts.gates(x)
            torch.testing.assert_close(gates.sum(-1), torch.ones(200))
            assert (gates[:, 2] > 0).all()
            used = (gates > 0).sum(-1)
            assert used.unique().numel() > 1  # tokens use more experts or fewer


def test_gradients_reach_the_own_expert_and_the_routers_alone(loaded: LoadedModel) -> None:
    flat, _ = ready(loaded, 3, 0)
    with mixed(loaded.backbone.layers, unpack(flat)) as found:
        logits(loaded).square().sum().backward()
        moved = {id(p) for p in loaded.model.parameters() if p.grad is not None and p.grad.any()}
        factors = [p for layer in loaded.backbone.layers.values() for p in factor_parameters(layer)]
        own = {id(p) for p in [*factors, *found.values(), *loaded.head.values()]}
        assert moved <= own
        assert moved >= {id(p) for p in factors}
        assert {id(p) for p in found.values()} <= moved
        loaded.model.zero_grad(set_to_none=True)


def test_the_gradient_of_own_and_router_is_that_of_finite_differences(loaded: LoadedModel) -> None:
    flat, _ = ready(loaded, 2, 1)
    module, layer = next(iter(loaded.backbone.layers.items()))
    with mixed(loaded.backbone.layers, unpack(flat)) as found:
        drawn = torch.Generator().manual_seed(0)  # a row on a gate's edge has no slope
        x = torch.randn(3, 4, loaded.backbone.shapes[module][1], generator=drawn)
        leaves = [*factor_parameters(layer), found[module]]
        sum_ = layer(x).sin().sum()
        gradients = torch.autograd.grad(sum_, leaves)
        for leaf, gradient in zip(leaves, gradients, strict=True):
            way = gradient / gradient.norm()
            values = []
            for step in (1e-2, -1e-2):
                with torch.no_grad():
                    leaf.add_(way, alpha=step)
                    values.append(layer(x).sin().sum().item())
                    leaf.sub_(way, alpha=step)
            slope = (values[0] - values[1]) / 2e-2
            assert slope == pytest.approx(gradient.norm().item(), rel=0.03)


# ------------------------------------------------------------------ put on and taken off


def state(loaded: LoadedModel) -> dict[str, bytes]:
    return {n: t.numpy(force=True).tobytes() for n, t in loaded.model.state_dict().items()}


def test_it_leaves_the_model_as_it_was_to_the_bit(loaded: LoadedModel) -> None:
    flat, drawn = ready(loaded, 3, 1)
    before, names = state(loaded), [name for name, _ in loaded.model.named_modules()]
    with torch.inference_mode():
        plain = logits(loaded)
    for error in (False, True):
        with contextlib.suppress(KeyboardInterrupt), mixed(loaded.backbone.layers, unpack(flat)):
            with torch.inference_mode():
                logits(loaded)
            if error:
                raise KeyboardInterrupt
        assert state(loaded) == before
        assert [name for name, _ in loaded.model.named_modules()] == names
        assert all("forward" not in vars(layer) for layer in loaded.backbone.layers.values())
        with torch.inference_mode():
            assert torch.equal(logits(loaded), plain)
    held = read_parts(loaded)
    assert same_bits(held, drawn[1])


def test_what_does_not_fit_is_refused_before_anything_is_touched(loaded: LoadedModel) -> None:
    flat, _ = ready(loaded, 2, 0)
    module = next(iter(loaded.backbone.layers))
    a = f"{module}.expert-1.lora_A"
    for bad in (
        {**flat, a: flat[a][:1]},
        {**flat, f"{module}.router": np.ones((3, 1), np.float32)},
        {n: t for n, t in flat.items() if not n.startswith(module + ".")},
    ):
        with (
            pytest.raises(WriteBackError, match=module),
            mixed(loaded.backbone.layers, unpack(bad)),
        ):
            pass
        assert not any("forward" in vars(layer) for layer in loaded.backbone.layers.values())


def test_experts_are_written_beside_a_note_and_read_back(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    flat, _ = ready(loaded, 3, 2)
    save_experts(tmp_path, flat)
    assert "scores differently" in (tmp_path / "README.md").read_text()
    with torch.inference_mode():
        with mixed(loaded.backbone.layers, unpack(flat)):
            before = logits(loaded)
        with mixed(loaded.backbone.layers, load_experts(tmp_path)):
            assert torch.equal(logits(loaded), before)
