"""The seeded start of a client, with ranks by module: nested, scaled, and really in the layers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from transformers import AutoModel, AutoModelForSequenceClassification

from atlas_flwr.config.load import parse_config
from atlas_flwr.config.schema import Config
from atlas_flwr.models.adapter_io import read_parts, write_parts
from atlas_flwr.models.backbone import load
from atlas_flwr.models.export import save_adapter
from clients.site import model_spec, starting_parts

FolderOf = Callable[[str], str]
PATTERN = {"attention.q_lin": 3, "layer.1.attention.q_lin": 7, "ffn.lin1": 5}


def config_of(folder: str, **lora: object) -> Config:
    return parse_config({"model": {"name": folder}, "data": {"tasks": ["bbc"]}, "lora": lora})


@pytest.fixture
def config(folder_of: FolderOf) -> Config:
    return config_of(folder_of("distilbert"), **{"rank-pattern": PATTERN})


def rank_wanted(module: str, base: int) -> int:
    if module.endswith("attention.q_lin"):
        return 7 if "layer.1." in module else 3
    return 5 if module.endswith("lin1") else base


def test_the_layers_have_the_ranks_asked_for(config: Config) -> None:
    loaded = load(model_spec(config), 2, config.run.seed)
    for base in (2, 6):
        write_parts(loaded, starting_parts(config, 2, base))
        assert len(loaded.backbone.layers) == 12
        for module, layer in loaded.backbone.layers.items():
            d_out, d_in = loaded.backbone.shapes[module]
            rank = rank_wanted(module, base)
            assert layer.lora_A["default"].weight.shape == (rank, d_in)
            assert layer.lora_B["default"].weight.shape == (d_out, rank)
            assert layer.r["default"] == rank
        assert read_parts(loaded).ranks() == starting_parts(config, 2, base).ranks()


def test_peft_gives_the_same_modules_the_same_ranks(folder_of: FolderOf) -> None:
    pattern = {"attention.q_lin": 3, "layer.1.attention.v_lin": 7, "lin1": 5}
    config = config_of(folder_of("distilbert"), rank=4, **{"rank-pattern": pattern})
    ours = starting_parts(config, 2, 4).ranks()
    plain = AutoModel.from_pretrained(folder_of("distilbert"))
    names = [module.removeprefix("distilbert.") for module in ours]
    inject_adapter_in_model(LoraConfig(r=4, target_modules=names, rank_pattern=pattern), plain)
    theirs = {
        f"distilbert.{name}": plain.get_submodule(name).lora_A["default"].out_features
        for name in names
    }
    assert ours == theirs
    assert set(ours.values()) == {3, 4, 5, 7}


def test_starts_are_nested_over_base_ranks_and_patterns(folder_of: FolderOf) -> None:
    folder = folder_of("distilbert")
    plain = starting_parts(config_of(folder), 2, 9).adapter
    for pattern in ({}, PATTERN, {"q_lin": 1, "lin2": 9}):
        config = config_of(folder, **{"rank-pattern": pattern})
        for base in (1, 2, 8):
            for module, factors in starting_parts(config, 2, base).adapter.items():
                np.testing.assert_array_equal(factors.a, plain[module].a[: factors.rank])
                assert not factors.b.any()


@pytest.mark.parametrize(("scaling", "power"), [("constant", 0.0), ("standard", 1.0), ("rs", 0.5)])
def test_the_scale_is_that_of_the_modules_own_rank(
    folder_of: FolderOf, scaling: str, power: float
) -> None:
    choice = {"scaling": scaling, "alpha": 12.0, "scale": 12.0, "rank-pattern": PATTERN}
    config = config_of(folder_of("distilbert"), **choice)
    for module, factors in starting_parts(config, 2, 2).adapter.items():
        rank = rank_wanted(module, 2)
        assert factors.scale == pytest.approx(12.0 / rank**power), module


def test_the_same_start_is_drawn_once(config: Config) -> None:
    assert starting_parts(config, 2, 4) is starting_parts(config, 2, 4)


def test_a_pattern_over_conv1d_modules(folder_of: FolderOf) -> None:
    config = config_of(folder_of("gpt2"), rank=2, **{"rank-pattern": {"attn.c_attn": 4}})
    loaded = load(model_spec(config), 2, config.run.seed)
    parts = starting_parts(config, 2, 2)
    write_parts(loaded, parts)
    ranks = {name: rank for name, rank in parts.ranks().items() if name.endswith("c_attn")}
    assert set(ranks.values()) == {4}
    assert set(parts.ranks().values()) == {2, 4}


def test_an_export_tells_peft_the_ranks(config: Config, tmp_path: Path) -> None:
    loaded = load(model_spec(config), 2, config.run.seed)
    parts = starting_parts(config, 2, 2)
    save_adapter(tmp_path, loaded, parts)
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    assert told["r"] == 2
    off = {module: rank for module, rank in parts.ranks().items() if rank != 2}
    assert told["rank_pattern"] == off
    assert sorted(off.values()) == [3, 5, 5, 7]
    base = AutoModelForSequenceClassification.from_pretrained(config.model.name, num_labels=2)
    model = PeftModel.from_pretrained(base, str(tmp_path))
    for module, factors in parts.adapter.items():
        weight = model.base_model.model.get_submodule(module).lora_A["default"].weight
        torch.testing.assert_close(weight.detach(), torch.from_numpy(factors.a))
