"""Rows passed in several goes: the same step as all at once, up to rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.models.adapter_io import read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.training.local import TrainResult, TrainSpec, train
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
