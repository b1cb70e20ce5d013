"""The checkpoint's own first gradient, cut to its leading directions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForSequenceClassification
from transformers.pytorch_utils import Conv1D

from atlas_flwr.errors import UserError
from atlas_flwr.models.adapter_io import read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.models.folded import FoldedLinear
from atlas_flwr.training.gradient import Passes, leading_gradient, leading_values
from atlas_flwr.types import Adapter, ModelParts
from fakes import ARCHITECTURES, FakeTable, random_parts

TABLE = FakeTable(48)
ROWS = np.arange(2, 42)


def loaded_with(folder: str, seed: int = 0, dropout: float = 0.0) -> tuple[LoadedModel, ModelParts]:
    loaded = load(ModelSpec(folder, dropout=dropout), 2, 0)
    parts = random_parts(loaded, seed, rank=4, spread=0.1)
    write_parts(loaded, parts)
    return loaded, parts


def ask(loaded: LoadedModel, rank: int, batch_size: int = 16) -> Adapter:
    return leading_gradient(loaded, TABLE, ROWS, rank, Passes(batch_size, "cpu", 1))


def by_transformers(loaded: LoadedModel, head: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return each adapted weight's gradient in the plain model, as ``(d_out, d_in)``."""
    model = AutoModelForSequenceClassification.from_pretrained(loaded.backbone.path, num_labels=2)
    model.config.pad_token_id = loaded.pad_token_id
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, array in head.items():
            named[name].copy_(torch.from_numpy(array))
    batch = {k: torch.from_numpy(v) for k, v in TABLE.batch(ROWS, loaded.pad_token_id).items()}
    labels = batch.pop("labels")
    F.cross_entropy(model.eval()(**batch).logits, labels).backward()
    found = {}
    for module in loaded.backbone.layers:
        layer = model.get_submodule(module)
        gradient = layer.weight.grad.numpy()
        found[module] = gradient.T if isinstance(layer, Conv1D) else gradient
    return found


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_it_is_the_plain_models_gradient(
    architecture: str, folder_of: Callable[[str], str]
) -> None:
    loaded, parts = loaded_with(folder_of(architecture))
    want = by_transformers(loaded, dict(parts.head))
    whole = ask(loaded, 99)
    assert set(whole) == set(want)
    for module, gradient in want.items():
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(whole[module].product(), gradient, atol=1e-4 * scale)
        assert (whole[module].rank, whole[module].scale) == (min(gradient.shape), 1.0)


@pytest.mark.parametrize("rank", [1, 3])
def test_it_is_cut_to_the_best_of_its_rank(rank: int, folder_of: Callable[[str], str]) -> None:
    """Oracle: NumPy's SVD (Eckart-Young)."""
    loaded, parts = loaded_with(folder_of("gpt2"))
    for module, gradient in by_transformers(loaded, dict(parts.head)).items():
        factors = ask(loaded, rank)[module]
        u, s, vt = np.linalg.svd(gradient.astype(np.float64), full_matrices=False)
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        np.testing.assert_allclose(factors.product(), best, atol=1e-3 * s[0])
        # Both factors take the same share of the singular values.
        np.testing.assert_allclose(
            np.linalg.norm(factors.a, axis=1), np.linalg.norm(factors.b, axis=0), rtol=1e-3
        )


def test_batches_change_nothing_but_rounding(folder_of: Callable[[str], str]) -> None:
    loaded, _ = loaded_with(folder_of("bert"))
    one, many = ask(loaded, 99, 64), ask(loaded, 99, 7)
    for module, factors in one.items():
        dense = factors.product()
        np.testing.assert_allclose(many[module].product(), dense, atol=1e-5 * np.abs(dense).max())


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_adapters_and_dropout_play_no_part(dropout: float, folder_of: Callable[[str], str]) -> None:
    folder = folder_of("bert")
    loaded, parts = loaded_with(folder, 0, dropout)
    first = ask(loaded, 2)
    other = random_parts(loaded, 9, rank=2, spread=1.0)
    write_parts(loaded, ModelParts(adapter=other.adapter, head=parts.head))
    again = ask(loaded, 2)
    for module, factors in first.items():
        assert factors.a.tobytes() == again[module].a.tobytes()
        assert factors.b.tobytes() == again[module].b.tobytes()


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool, folder_of: Callable[[str], str]) -> None:
    loaded, parts = loaded_with(folder_of("distilbert"))
    free = [p.requires_grad for p in loaded.model.parameters()]
    batch = {k: torch.from_numpy(v) for k, v in TABLE.batch(ROWS, 0).items() if k != "labels"}
    with torch.inference_mode():
        before = loaded.model(**batch).logits
    if fails:
        handle = loaded.model.register_forward_hook(_breaks)
        with pytest.raises(UserError, match="a test"):
            ask(loaded, 2)
        handle.remove()
    else:
        ask(loaded, 2)
    assert [p.requires_grad for p in loaded.model.parameters()] == free
    assert all(p.grad is None for p in loaded.model.parameters())
    assert not loaded.model.training
    for layer in loaded.backbone.layers.values():
        assert isinstance(layer, FoldedLinear)
        assert not layer.disable_adapters
    back = read_parts(loaded)
    for module, factors in parts.adapter.items():
        assert back.adapter[module].b.tobytes() == factors.b.tobytes()
    with torch.inference_mode():
        assert torch.equal(loaded.model(**batch).logits, before)


def _breaks(module: torch.nn.Module, args: object, output: object) -> None:
    raise UserError("a test")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_its_leading_values_are_numpys(architecture: str, folder_of: Callable[[str], str]) -> None:
    loaded, parts = loaded_with(folder_of(architecture))
    told = leading_values(loaded, TABLE, ROWS, 5, Passes(16, "cpu", 1))
    for module, gradient in by_transformers(loaded, dict(parts.head)).items():
        want = np.linalg.svd(gradient.astype(np.float64), compute_uv=False)[:5]
        np.testing.assert_allclose(told[module], want, rtol=1e-3, atol=1e-6 * want[0])
