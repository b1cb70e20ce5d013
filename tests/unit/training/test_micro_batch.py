"""Rows passed in several goes: the same step as all at once, up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from atlas_flwr.models.adapter_io import read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.training.local import Goal, TrainResult, TrainSpec, train
from atlas_flwr.types import ModelParts
from fakes import FakeTable, random_parts

ROWS = np.arange(40)


@pytest.fixture
def loaded(folder_of: Callable[[str], str]) -> LoadedModel:
    """Give a model whose dropout is off: micro-batches draw other masks."""
    return load(ModelSpec(folder_of("gpt2")), 2, 0)


def trained(loaded: LoadedModel, micro: int | None) -> tuple[ModelParts, TrainResult]:
    write_parts(loaded, random_parts(loaded, 0, spread=0.1))
    for module in loaded.model.modules():
        if hasattr(module, "p") and isinstance(module.p, float):
            module.p = 0.0
    spec = TrainSpec(batch_size=8, device="cpu", precision="fp32", learning_rate=1e-3)
    result = train(
        loaded, FakeTable(48), ROWS, replace(spec, micro_batch=micro), np.random.default_rng(0), 0
    )
    return read_parts(loaded), result


@pytest.mark.parametrize("micro", [1, 3, 8, 100])
def test_micro_batches_change_nothing_but_rounding(loaded: LoadedModel, micro: int) -> None:
    whole, before = trained(loaded, None)
    parts, after = trained(loaded, micro)
    assert (before.steps, before.micro_batch) == (5, 8)
    assert (after.steps, after.micro_batch) == (5, min(micro, 8))
    assert after.notes == ()  # asked for, and no accident
    assert after.loss == pytest.approx(before.loss, rel=1e-5)
    for name, tensor in whole.body().items():
        np.testing.assert_allclose(parts.body()[name], tensor, atol=2e-4)


def test_as_many_rows_as_a_batch_has_are_the_same_bits(loaded: LoadedModel) -> None:
    whole, _ = trained(loaded, None)
    parts, _ = trained(loaded, 8)
    for name, tensor in whole.body().items():
        np.testing.assert_array_equal(parts.body()[name], tensor)


@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_decay_clipping_and_terms_count_once_a_step(
    adaptation: Literal["lora", "full"], folder_of: Callable[[str], str]
) -> None:
    """Short last batches too: 21 rows in batches of 8, passed 3 at a time."""
    spec = TrainSpec(
        batch_size=8, device="cpu", precision="fp32", learning_rate=1e-3, weight_decay=0.1,
        max_grad_norm=0.05,
    )  # fmt: skip
    loaded = load(ModelSpec(folder_of("gpt2"), adaptation=adaptation), 2, 0)
    kept = read_parts(loaded)  # the loaded model is shared: it is given back as it was
    start = random_parts(loaded, 0, spread=0.1) if adaptation == "lora" else kept
    ends = []
    for micro in (None, 3):
        write_parts(loaded, start)
        for module in loaded.model.modules():
            if hasattr(module, "p") and isinstance(module.p, float):
                module.p = 0.0
        anchors = [p.detach() + 0.1 for p in loaded.trainable()]
        goal = Goal(
            prox_mu=0.5,
            anchors=anchors,
            penalty=lambda: sum(p.square().sum() for p in loaded.trainable()),
        )
        how = replace(spec, micro_batch=micro)
        result = train(loaded, FakeTable(24), ROWS[:21], how, np.random.default_rng(0), 0, goal)
        assert result.steps == 3
        ends.append((result.loss, [p.detach().clone() for p in loaded.trainable()]))
    write_parts(loaded, kept)
    (loss, whole), (again, parts) = ends
    assert again == pytest.approx(loss, rel=1e-5)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other, one, atol=2e-4, rtol=0)
