from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from atlas_flwr.errors import ModelError
from atlas_flwr.models import backbone
from atlas_flwr.models.adapter_io import initial_parts, read_parts, write_parts
from atlas_flwr.models.backbone import ModelSpec, load, load_fresh, load_tokenizer
from atlas_flwr.types import ModelParts
from fakes import ARCHITECTURES, FakeTable, tiny_model

HEADS = {
    "distilbert": ("pre_classifier", "classifier"),
    "bert": ("classifier",),
    "roberta": ("classifier",),
    "gpt2": ("score",),
    "minilm": ("classifier",),
}
EVERY = (*ARCHITECTURES, "minilm")


def logits_of(model, pad: int, rows: int = 6) -> torch.Tensor:
    table = FakeTable(rows)
    batch = table.batch(np.arange(rows), pad)
    batch.pop("labels")
    with torch.inference_mode():
        return model.eval()(**{k: torch.from_numpy(v) for k, v in batch.items()}).logits


@pytest.mark.parametrize("architecture", EVERY)
def test_head_is_what_lies_outside_the_backbone(architecture, folder_of):
    loaded = load(ModelSpec(folder_of(architecture)), 3, 0)
    assert loaded.head_modules == HEADS[architecture]
    assert all(name.split(".")[0] in HEADS[architecture] for name in loaded.head)
    assert not any(p.is_meta for p in loaded.model.parameters())


@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_label_counts_share_one_backbone(adaptation, folder_of):
    spec = ModelSpec(folder_of("bert"), adaptation=adaptation)
    two, five = load(spec, 2, 0), load(spec, 5, 0)
    assert two.model.bert is five.model.bert
    assert load(spec, 2, 0) is two
    assert logits_of(five.model, 0).shape == (6, 5)
    assert logits_of(two.model, 0).shape == (6, 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_backbone_is_the_checkpoints(architecture, folder_of):
    """Oracle: transformers' own loading, with our head copied in."""
    spec = ModelSpec(folder_of(architecture), adaptation="full")
    loaded = load_fresh(spec, 3, 7)
    plain = AutoModelForSequenceClassification.from_pretrained(spec.name, num_labels=3)
    plain.config.pad_token_id = loaded.pad_token_id
    plain.load_state_dict({n: p.detach() for n, p in loaded.head.items()}, strict=False)
    ours, theirs = logits_of(loaded.model, loaded.pad_token_id), logits_of(plain, 0)
    if loaded.pad_token_id != 0:
        theirs = logits_of(plain, loaded.pad_token_id)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_head_start_depends_on_its_arguments_alone(architecture, folder_of):
    spec = ModelSpec(folder_of(architecture))
    first = {n: t.clone() for n, t in load(spec, 3, 42).initial_head.items()}
    load(spec, 4, 42)
    torch.rand(17)
    backbone.forget()
    load(spec, 2, 1)
    again = load(spec, 3, 42).initial_head
    other = load(spec, 3, 43).initial_head
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_loading_leaves_torchs_generator_alone(folder_of):
    backbone.forget()
    before = torch.random.get_rng_state()
    load(ModelSpec(folder_of("roberta")), 3, 42)
    assert torch.equal(before, torch.random.get_rng_state())


def test_loading_is_silent(folder_of, capfd):
    backbone.forget()
    load(ModelSpec(folder_of("distilbert")), 3, 42)
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_head_has_the_architectures_spread(tmp_path):
    loaded = load(ModelSpec(tiny_model(tmp_path, "roberta")), 3, 42)
    dense = loaded.initial_head["classifier.dense.weight"]
    assert 0.015 < float(dense.std()) < 0.025
    assert not loaded.initial_head["classifier.dense.bias"].any()


def test_trained_head_of_this_size_is_kept_and_of_another_is_not(tmp_path):
    folder = tiny_model(tmp_path, "distilbert", trained_head=3)
    saved = AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
    spec = ModelSpec(folder)
    three, two = load(spec, 3, 0), load(spec, 2, 0)
    assert all(torch.equal(saved[name], t) for name, t in three.initial_head.items())
    name = "pre_classifier.weight"
    assert not torch.equal(saved[name], two.initial_head[name])


def test_backbone_module_the_checkpoint_lacks_is_head(tmp_path):
    spec = ModelSpec(tiny_model(tmp_path, "bert", pooler=False))
    loaded = load(spec, 2, 0)
    assert loaded.head_modules == ("bert.pooler", "classifier")
    assert "bert.pooler.dense" not in loaded.backbone.shapes
    assert loaded.head["bert.pooler.dense.weight"].requires_grad
    again = load_fresh(spec, 2, 0)
    for name, tensor in loaded.initial_head.items():
        assert torch.equal(tensor, again.initial_head[name])
    first = initial_parts(spec, 2, 4, 2.0, 0)
    write_parts(loaded, first)
    load(spec, 3, 0)  # shares the pooler, which is in use
    held = read_parts(loaded).head
    assert all(np.array_equal(first.head[name], held[name]) for name in first.head)


def test_full_start_is_the_checkpoint_whatever_was_trained(folder_of):
    spec = ModelSpec(folder_of("distilbert"), adaptation="full")
    first = initial_parts(spec, 2, 1, 1.0, 0)
    loaded = load(spec, 2, 0)
    changed = {name: array + 1 for name, array in first.weights.items()}
    write_parts(loaded, ModelParts(head=first.head, weights=changed))
    again = initial_parts(spec, 2, 1, 1.0, 0)
    assert all(np.array_equal(first.weights[n], again.weights[n]) for n in first.weights)
    assert np.array_equal(read_parts(loaded).weights[n := next(iter(changed))], changed[n])


def test_only_factors_and_head_are_trainable_with_lora(folder_of):
    loaded = load(ModelSpec(folder_of("bert")), 2, 0)
    want = {id(p) for p in loaded.trainable()}
    assert want == {id(p) for p in loaded.model.parameters() if p.requires_grad}
    everything = load(ModelSpec(folder_of("bert"), adaptation="full"), 2, 0)
    assert len(everything.trainable()) == len(list(everything.model.parameters()))


def test_missing_padding_token_is_the_end_token(folder_of):
    spec = ModelSpec(folder_of("gpt2"))
    tokenizer, loaded = load_tokenizer(spec), load(spec, 2, 0)
    assert tokenizer.pad_token == tokenizer.eos_token
    assert loaded.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.padding_side == "right"
    assert load_tokenizer(spec) is tokenizer


def test_padding_does_not_change_gpt2(folder_of):
    spec = ModelSpec(folder_of("gpt2"))
    loaded = load(spec, 2, 0)
    table = FakeTable(8)
    together = logits_of(loaded.model, loaded.pad_token_id, 8)
    for row in range(8):
        batch = table.batch(np.array([row]), loaded.pad_token_id)
        batch.pop("labels")
        with torch.inference_mode():
            alone = loaded.model(**{k: torch.from_numpy(v) for k, v in batch.items()}).logits
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-6)


def test_no_padding_and_no_end_token_is_refused(tmp_path):
    folder = tiny_model(tmp_path, "gpt2")
    tokenizer = load_tokenizer(ModelSpec(folder))
    backbone.forget()
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="neither a padding nor an end token"):
        load(ModelSpec(folder), 2, 0)
