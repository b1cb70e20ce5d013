"""A model's footprint: numbers of its configuration, and what autograd is seen to keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from atlas_flwr.errors import ModelError
from atlas_flwr.models.adapter_io import initial_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.models.footprint import footprint, predicted, shape_of, step
from atlas_flwr.ranks.budget import cost, rank_costs
from atlas_flwr.ranks.memory import HEAP_SLACK, PROCESS_BYTES, Load, Shape, predict, rank_bytes
from atlas_flwr.training.local import TrainSpec, train
from atlas_flwr.training.memory import peak_bytes, reset_peak
from benchmarks.memory import Rows

WIDTH, INNER, HEADS, LAYERS = 96, 256, 4, 3
_HF = {
    "vocab_size": 64,
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "pad_token_id": 0,
}
_DISTIL = {"vocab_size": 64, "dim": WIDTH, "hidden_dim": INNER, "n_layers": LAYERS}
_GPT2 = {"vocab_size": 64, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "pad_token_id": 0}
_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
MODELS: dict[str, Any] = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**_HF)),
    "bert, no dropout": lambda: BertForSequenceClassification(
        BertConfig(**_HF, attention_probs_dropout_prob=0.0)
    ),
    "distilbert": lambda: DistilBertForSequenceClassification(
        DistilBertConfig(**_DISTIL, n_heads=HEADS, pad_token_id=0)
    ),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**_HF)),
    "gpt2": lambda: GPT2ForSequenceClassification(GPT2Config(**_GPT2, **_ENDS, n_inner=INNER)),
    "gpt2, inner by default": lambda: GPT2ForSequenceClassification(GPT2Config(**_GPT2, **_ENDS)),
    "llama": lambda: LlamaForSequenceClassification(
        LlamaConfig(**_HF, **_ENDS, num_key_value_heads=HEADS // 2)
    ),
}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Give a model of ``MODELS``, of realistic proportions, opened as a client opens it."""
    made: dict[str, LoadedModel] = {}

    def open_(name: str) -> LoadedModel:
        if name not in made:
            folder = tmp_path_factory.mktemp("shape")
            MODELS[name]().save_pretrained(folder)
            spec = ModelSpec(str(folder))
            made[name] = load(spec, 2, 0)
            write_parts(made[name], initial_parts(spec, 2, 1, 2.0, 0))
        return made[name]

    return open_


def kept(loaded: LoadedModel, batch: int, length: int) -> int:
    """Return the bytes autograd keeps of one forward pass, parameters and buffers apart."""
    tensors = [*loaded.model.parameters(), *loaded.model.buffers()]
    own = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    seen: dict[int, int] = {}
    alive = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)  # or an address is given again
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens = torch.randint(3, 60, (batch, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, -3:] = 0
    loaded.model.train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = loaded.model(input_ids=tokens, attention_mask=mask).logits.sum()
    loaded.model.eval()
    del loss
    return sum(size for address, size in seen.items() if address not in own)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("batch", "length"), [(4, 32), (4, 128)])
def test_activations_are_those_autograd_keeps(
    opened: Any, name: str, batch: int, length: int
) -> None:
    """Oracle: PyTorch's own saved tensors. The embeddings' share of a few layers is not told."""
    loaded = opened(name)
    told = predict({}, shape_of(loaded), Load(batch, length)).activations
    assert told == pytest.approx(kept(loaded, batch, length), rel=0.05)


@pytest.mark.parametrize("name", MODELS)
def test_shapes_are_the_configuration_s(opened: Any, name: str) -> None:
    shape = shape_of(opened(name))
    assert (shape.layers, shape.width, shape.heads) == (LAYERS, WIDTH, HEADS)
    assert shape.inner == (0 if name.endswith("default") else INNER)


def test_maps_are_kept_by_attention_with_dropout_on_a_cpu(opened: Any) -> None:
    assert shape_of(opened("bert")).maps == 3
    assert shape_of(opened("bert"), "cuda").maps == 1 / HEADS  # the mask
    assert shape_of(opened("bert, no dropout")).maps == 1 / HEADS


def test_frozen_parameters_are_all_but_the_head_and_the_factors(folder_of: Any) -> None:
    plain = load(ModelSpec(folder_of("bert"), adaptation="full"), 3, 0).model
    loaded = load(ModelSpec(folder_of("bert")), 3, 0)
    found = footprint(loaded)
    assert found.head == sum(p.numel() for n, p in plain.named_parameters() if n in loaded.head)
    assert found.frozen == {"float32": sum(p.numel() for p in plain.parameters()) - found.head}


def test_half_precision_weights_are_counted_by_their_dtype(tmp_path: Path) -> None:
    BertForSequenceClassification(BertConfig(**_HF)).save_pretrained(tmp_path)
    loaded = load(ModelSpec(str(tmp_path)), 2, 0)
    whole = footprint(loaded)
    table = loaded.model.bert.embeddings.word_embeddings
    table.to(torch.bfloat16)
    found = footprint(loaded)
    assert found.frozen["bfloat16"] == table.weight.numel()
    assert sum(found.frozen.values()) == sum(whole.frozen.values())


def test_the_prediction_of_a_cpu_has_a_process_and_its_heap(opened: Any) -> None:
    loaded = opened("bert")
    cpu, cuda = predicted(loaded, 4, 32, adapter=100), predicted(loaded, 4, 32, device="cuda")
    assert cpu.adapter == 1600
    assert cpu.workspace == pytest.approx(PROCESS_BYTES + HEAP_SLACK * cpu.activations, abs=1)
    assert cuda.adapter == 0
    assert cuda.activations < cpu.activations


@pytest.mark.parametrize(
    ("capability", "config", "want"),
    [
        ((7, 5), "", 2 * 8_519_680),  # a T4; 8,519,680 B is what users see in its memory snapshots
        ((9, 0), "", 2 * 33_554_432),
        (None, "", 2 * 33_554_432),
        ((9, 0), ":4096:2:16:8", 2 * 8_519_680),
        ((9, 0), "nonsense", 2 * 33_554_432),
    ],
)
def test_the_prediction_of_a_gpu_has_cublas_s_workspaces(
    opened: Any,
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int] | None,
    config: str,
    want: int,
) -> None:
    """One for the thread that trains, one for that of the backward pass."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", config)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert predicted(opened("bert"), 4, 32, device="cuda").workspace == want


@pytest.mark.gpu
def test_the_peak_of_a_gpu_is_predicted() -> None:
    """MiniLM, 16 rows of 64 tokens: within the 15 % that the memory model promises."""
    spec = ModelSpec("minilm")
    loaded = load(spec, 2, 0)
    write_parts(loaded, initial_parts(spec, 2, 8, 2.0, 0))
    ranks = dict.fromkeys(loaded.backbone.shapes, 8)
    adapter = cost(ranks, rank_costs(loaded.backbone.shapes))
    told = predicted(
        loaded, 16, 64, adapter=adapter, ranks=sum(ranks.values()), device="cuda"
    ).total
    rows = Rows(64, 64)
    plan = TrainSpec(batch_size=16, precision="fp32", device="cuda")
    reset_peak(torch.device("cuda"))
    train(loaded, rows, np.arange(64), plan, np.random.default_rng(0), torch_seed=0)
    assert told == pytest.approx(peak_bytes(torch.device("cuda")), rel=0.15)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_rank_s_activations_are_in_the_prediction(opened: Any, device: str) -> None:
    loaded = opened("bert")
    more = predicted(loaded, 4, 32, ranks=50, device=device).total
    more -= predicted(loaded, 4, 32, device=device).total
    assert more == pytest.approx(50 * rank_bytes(step(4, 32, device)), abs=50)


def test_a_number_that_is_missing_is_named(opened: Any) -> None:
    config = SimpleNamespace(model_type="mamba", hidden_size=8, num_attention_heads=2)
    model = SimpleNamespace(config=config, named_modules=dict)
    loaded = replace(opened("bert"), model=model)
    with pytest.raises(ModelError, match="no num_hidden_layers or n_layers or n_layer, so its"):
        shape_of(loaded)


def test_shapes_default_to_bert_s() -> None:
    assert Shape(1, 1) == Shape(1, 1, kept=10.0, maps=3.0, inner_kept=2.0)
