"""Tiny random models, tokenizers and token tables, written to disk for tests.

Every builder is deterministic and takes milliseconds; nothing needs a hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tomli_w
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2Model,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.types import LoraFactors, ModelParts

ARCHITECTURES = ("distilbert", "bert", "roberta", "gpt2")
WORDS = (
    "a",
    "the",
    "this",
    "that",
    "film",
    "movie",
    "plot",
    "was",
    "is",
    "not",
    "very",
    "good",
    "great",
    "bad",
    "dull",
    "awful",
)
VOCAB_SIZE = 64

# Hidden 16, inner 24: in no adapted module but self-attention are d_in and d_out equal.
_BASE = {"vocab_size": VOCAB_SIZE, "bos_token_id": 2, "eos_token_id": 3}
_CONFIGS: dict[str, Any] = {
    "distilbert": DistilBertConfig(
        vocab_size=VOCAB_SIZE, dim=16, hidden_dim=24, n_layers=2, n_heads=2, pad_token_id=0,
        max_position_embeddings=64,
    ),
    "bert": BertConfig(
        vocab_size=VOCAB_SIZE, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, pad_token_id=0, max_position_embeddings=64,
    ),
    "roberta": RobertaConfig(
        **_BASE, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, pad_token_id=0, max_position_embeddings=66,
    ),
    "gpt2": GPT2Config(
        **_BASE, n_embd=16, n_inner=24, n_layer=2, n_head=2, n_positions=64,
    ),
}  # fmt: skip
_BODIES: dict[str, Any] = {
    "distilbert": DistilBertModel,
    "bert": BertModel,
    "roberta": RobertaModel,
    "gpt2": GPT2Model,
}
_CLASSIFIERS: dict[str, Any] = {
    "distilbert": DistilBertForSequenceClassification,
    "bert": BertForSequenceClassification,
    "roberta": RobertaForSequenceClassification,
    "gpt2": GPT2ForSequenceClassification,
}


def tiny_model(
    folder: Path,
    architecture: str = "distilbert",
    *,
    seed: int = 0,
    trained_head: int | None = None,
    pooler: bool = True,
) -> str:
    """Write a tiny random checkpoint and its tokenizer; return the folder as text.

    Args:
        folder: Where to write; made if missing.
        architecture: One of ``ARCHITECTURES``.
        seed: Seed of the random weights.
        trained_head: Save a classifier with that many labels; None saves the backbone alone.
        pooler: False (BERT only) saves a masked language model, whose file has no pooler.
    """
    config = type(_CONFIGS[architecture])(**_CONFIGS[architecture].to_dict())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if trained_head is not None:
            config.num_labels = trained_head
            model = _CLASSIFIERS[architecture](config)
        elif not pooler:
            model = BertForMaskedLM(config)
        else:
            model = _BODIES[architecture](config)
        _spread(model)
    model.save_pretrained(folder)
    tiny_tokenizer(architecture).save_pretrained(folder)
    return str(folder)


def _spread(model: torch.nn.Module) -> None:
    """Make weights large and biases non-zero, so that a forgotten tensor changes the logits."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)


def tiny_tokenizer(architecture: str = "distilbert") -> PreTrainedTokenizerFast:
    """Return a word-level tokenizer with the architecture's habits (GPT-2: no padding token)."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocab = {word: i for i, word in enumerate([*special, *WORDS])}
    core = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    if architecture == "gpt2":
        return PreTrainedTokenizerFast(
            tokenizer_object=core,
            unk_token="[UNK]",
            bos_token="[SEP]",
            eos_token="[SEP]",
            model_max_length=64,
            model_input_names=["input_ids", "attention_mask"],
        )
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=[*names, "token_type_ids"] if architecture == "bert" else names,
    )


def task_rows(rows: int, num_labels: int = 2, seed: int = 0) -> list[dict[str, Any]]:
    """Return rows ``{text, label}`` that can be learnt: each label has words of its own."""
    rng = np.random.default_rng(seed)
    own = np.array_split(np.array(WORDS[4:]), num_labels)
    found = []
    for i in range(rows):
        label = i % num_labels
        words = [*rng.choice(own[label], 3), *rng.choice(WORDS, rng.integers(4, 9))]
        found.append({"text": " ".join(words), "label": label})
    return found


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as the file's suffix says: csv, jsonl or parquet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".parquet":
            pd.DataFrame(rows).to_parquet(path)
        case ".csv":
            pd.DataFrame(rows).to_csv(path, index=False)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case other:
            raise ValueError(other)


def tiny_task(
    folder: Path, suffix: str = "csv", *, num_labels: int = 2, seed: int = 0, train: int = 160
) -> dict[str, Any]:
    """Write a task's train and validation files; return its ``[[task]]`` section."""
    write_rows(folder / f"train.{suffix}", task_rows(train, num_labels, seed))
    write_rows(folder / f"validation.{suffix}", task_rows(48, num_labels, seed + 1000))
    return {"name": folder.name, "path": str(folder), "text": "text", "label": "label"}


def write_experiment(path: Path, tree: dict[str, Any], **sections: dict[str, Any]) -> Path:
    """Write an experiment file: ``tree`` with the given sections laid over it, key by key."""
    merged = {name: dict(body) if isinstance(body, dict) else body for name, body in tree.items()}
    for name, body in sections.items():
        merged[name] = {**merged.get(name, {}), **body}
    path.write_text(tomli_w.dumps(merged), encoding="utf-8")
    return path


class FakeTable:
    """Random token rows whose label can be learnt: label c rows are rich in token ``10 + c``."""

    def __init__(self, rows: int = 48, num_labels: int = 2, *, seed: int = 0, longest: int = 12):
        rng = np.random.default_rng(seed)
        self.labels: NDArray[np.int64] = rng.integers(0, num_labels, rows, dtype=np.int64)
        self.lengths: NDArray[np.int32] = rng.integers(3, longest + 1, rows, dtype=np.int32)
        self._tokens = [
            np.where(rng.random(n) < 0.5, 10 + label, rng.integers(4, 10, n)).astype(np.int64)
            for n, label in zip(self.lengths, self.labels, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: NDArray[np.int64], pad_token_id: int) -> dict[str, NDArray[np.int64]]:
        """Return right-padded int64 arrays of the rows named."""
        width = int(self.lengths[indices].max())
        input_ids = np.full((len(indices), width), pad_token_id, dtype=np.int64)
        mask = np.zeros((len(indices), width), dtype=np.int64)
        for row, index in enumerate(indices):
            tokens = self._tokens[index]
            input_ids[row, : len(tokens)] = tokens
            mask[row, : len(tokens)] = 1
        return {"input_ids": input_ids, "attention_mask": mask, "labels": self.labels[indices]}


def random_parts(
    loaded: LoadedModel, seed: int, rank: int | None = None, spread: float = 1.0
) -> ModelParts:
    """Return normal tensors of a model's shapes; ranks 1 to 5 by module unless one is given."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> NDArray[np.float32]:
        return (spread * rng.normal(size=shape)).astype(np.float32)

    adapter = {}
    for i, (module, (d_out, d_in)) in enumerate(loaded.backbone.shapes.items()):
        r = rank or 1 + i % 5
        adapter[module] = LoraFactors(draw(r, d_in), draw(d_out, r), scale=0.5 + i / 7)
    return ModelParts(
        adapter=adapter,
        head={name: draw(*p.shape) for name, p in loaded.head.items()},
        weights={name: draw(*p.shape) for name, p in loaded.weights.items()},
    )
