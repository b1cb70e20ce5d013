"""Exported folders opened again; merged models against PEFT's own and against our layers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from atlas_flwr.errors import ModelError
from atlas_flwr.models.adapter_io import write_parts
from atlas_flwr.models.backbone import ModelSpec, load
from atlas_flwr.models.export import save_adapter
from atlas_flwr.models.reopen import (
    base_of,
    module_ranks,
    open_model,
    open_tokenizer,
    save_merged,
)
from fakes import ARCHITECTURES, FakeTable, random_parts


def logits_of(model, pad: int) -> torch.Tensor:
    batch = FakeTable(6).batch(np.arange(6), pad)
    batch.pop("labels")
    with torch.inference_mode():
        return model.eval()(**{k: torch.from_numpy(v) for k, v in batch.items()}).logits


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "minilm"])
def test_merged_adapter_and_our_own_layers_have_the_same_logits(architecture, folder_of, tmp_path):
    """PEFT's ``merge_and_unload`` and its adapter layers are the oracles, in float32."""
    loaded = load(ModelSpec(folder_of(architecture)), 3, 0)
    parts = random_parts(loaded, 0, spread=0.1)
    save_adapter(tmp_path / "adapter", loaded, parts)
    write_parts(loaded, parts)
    ours = logits_of(loaded.model, loaded.pad_token_id)
    model, tokenizer = open_model(tmp_path / "adapter"), open_tokenizer(tmp_path / "adapter")
    beside = logits_of(model, loaded.pad_token_id)
    save_merged(model, tokenizer, tmp_path / "merged", ("no", "maybe", "yes"))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    merged = logits_of(plain, loaded.pad_token_id)
    torch.testing.assert_close(beside, ours, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(merged, ours, rtol=1e-5, atol=1e-5)
    assert plain.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").pad_token is not None
    assert not list((tmp_path / "merged").glob("adapter*"))
    for file in (tmp_path / "merged").glob("*.json"):
        assert loaded.backbone.path not in file.read_text()


def test_the_base_model_may_have_moved(folder_of, tmp_path):
    loaded = load(ModelSpec(folder_of("bert")), 2, 0)
    save_adapter(tmp_path, loaded, random_parts(loaded, 0))
    path = tmp_path / "adapter_config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "base_model_name_or_path": str(tmp_path / "gone")}))
    assert base_of(tmp_path) == str(tmp_path / "gone")
    with pytest.raises(ModelError, match="gone"):
        open_model(tmp_path)
    assert open_model(tmp_path, loaded.backbone.path) is not None


def test_ranks_are_those_written_layer_by_layer(folder_of, tmp_path):
    loaded = load(ModelSpec(folder_of("bert")), 2, 0)
    parts = random_parts(loaded, 0)
    save_adapter(tmp_path, loaded, parts)
    ranks = module_ranks(tmp_path)
    assert dict(ranks) == parts.ranks()
    layers = [name for name in ranks if ".layer." in name]
    assert layers == sorted(layers, key=lambda name: int(name.split(".")[3]))


@pytest.mark.parametrize("breakage", ["no config", "no weights", "bad adapter"])
def test_what_is_no_model_is_said_to_be_none(breakage, folder_of, tmp_path: Path):
    loaded = load(ModelSpec(folder_of("bert")), 2, 0)
    save_adapter(tmp_path, loaded, random_parts(loaded, 0))
    if breakage == "no config":
        (tmp_path / "config.json").unlink()
    elif breakage == "no weights":
        (tmp_path / "adapter_model.safetensors").unlink()
    else:
        (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=tmp_path.name):
        open_model(tmp_path)
