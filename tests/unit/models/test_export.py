from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from atlas_flwr.errors import ModelError
from atlas_flwr.models.adapter_io import read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.models.export import save_adapter, save_full
from atlas_flwr.types import ModelParts
from fakes import ARCHITECTURES, FakeTable, random_parts, tiny_model

EVERY = (*ARCHITECTURES, "minilm")
# PEFT 0.21 asks transformers 5.23 for a property under its old name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)


def logits_of(model, pad: int) -> torch.Tensor:
    batch = FakeTable(6).batch(np.arange(6), pad)
    batch.pop("labels")
    with torch.inference_mode():
        return model.eval()(**{k: torch.from_numpy(v) for k, v in batch.items()}).logits


def small_parts(loaded: LoadedModel, seed: int) -> ModelParts:
    """Random parts, small enough that float32 stays accurate through every layer."""
    return random_parts(loaded, seed, spread=0.1)


def reopened(folder: Path, base: str, num_labels: int):
    """Open the folder as any PEFT user would, the padding token from the saved tokenizer."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=num_labels)
    model.config.pad_token_id = AutoTokenizer.from_pretrained(folder).pad_token_id
    return PeftModel.from_pretrained(model, folder)


@pytest.mark.parametrize("architecture", EVERY)
def test_peft_opens_the_adapter_with_the_same_logits(architecture, folder_of, tmp_path):
    loaded = load(ModelSpec(folder_of(architecture)), 3, 0)
    parts = small_parts(loaded, 0)
    save_adapter(tmp_path, loaded, parts, labels=("no", "maybe", "yes"))
    write_parts(loaded, parts)
    ours = logits_of(loaded.model, loaded.pad_token_id)
    theirs = logits_of(reopened(tmp_path, loaded.backbone.path, 3), loaded.pad_token_id)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.num_labels, config.pad_token_id) == (3, loaded.pad_token_id)
    assert config.id2label == {0: "no", 1: "maybe", 2: "yes"}


def test_saved_config_opens_the_base_with_its_padding_token(folder_of, tmp_path):
    loaded = load(ModelSpec(folder_of("gpt2")), 2, 0)
    parts = small_parts(loaded, 1)
    save_adapter(tmp_path, loaded, parts)
    base = AutoModelForSequenceClassification.from_pretrained(
        loaded.backbone.path, config=AutoConfig.from_pretrained(tmp_path)
    )
    write_parts(loaded, parts)
    theirs = logits_of(PeftModel.from_pretrained(base, tmp_path), loaded.pad_token_id)
    ours = logits_of(loaded.model, loaded.pad_token_id)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)


def test_head_inside_the_backbone_is_exported(tmp_path):
    base = tiny_model(tmp_path / "base", "bert", pooler=False)
    loaded = load(ModelSpec(base), 2, 0)
    parts = small_parts(loaded, 0)
    save_adapter(tmp_path / "out", loaded, parts)
    write_parts(loaded, parts)
    theirs = logits_of(reopened(tmp_path / "out", base, 2), 0)
    torch.testing.assert_close(theirs, logits_of(loaded.model, 0), rtol=1e-5, atol=1e-6)


def test_one_rank_needs_no_patterns(folder_of, tmp_path):
    loaded = load(ModelSpec(folder_of("bert")), 2, 0)
    parts = random_parts(loaded, 0, rank=4)
    same = {m: type(f)(f.a, f.b, 2.0) for m, f in parts.adapter.items()}
    save_adapter(tmp_path, loaded, ModelParts(adapter=same, head=parts.head))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        "adapter_model.safetensors"
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_transformers_opens_the_full_model_with_the_same_logits(architecture, folder_of, tmp_path):
    loaded = load(ModelSpec(folder_of(architecture), adaptation="full"), 3, 0)
    parts = read_parts(loaded)
    nudged = ModelParts(
        head={n: a + np.float32(0.01) for n, a in parts.head.items()},
        weights={n: a * np.float32(1.1) for n, a in parts.weights.items()},
    )
    save_full(tmp_path, loaded, nudged, labels=("a", "b", "c"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ours = logits_of(loaded.model, loaded.pad_token_id)
    theirs = logits_of(model, loaded.pad_token_id)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=0)
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert AutoTokenizer.from_pretrained(tmp_path).pad_token is not None


def test_each_kind_has_its_own_door(folder_of, tmp_path):
    lora = load(ModelSpec(folder_of("bert")), 2, 0)
    full = load(ModelSpec(folder_of("bert"), adaptation="full"), 2, 0)
    with pytest.raises(ModelError, match="save_adapter"):
        save_full(tmp_path, lora, read_parts(lora))
    with pytest.raises(ModelError, match="save_full"):
        save_adapter(tmp_path, full, read_parts(full))
