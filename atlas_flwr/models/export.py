"""Models as folders that plain PEFT and transformers open, with the same logits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peft import LoraConfig
from safetensors.numpy import save_file

from atlas_flwr.errors import ModelError
from atlas_flwr.models import lora
from atlas_flwr.models.adapter_io import write_parts
from atlas_flwr.models.backbone import LoadedModel, load_tokenizer, quiet
from atlas_flwr.types import Adapter, ModelParts

SERVES = "atlas.json"
"""In each model's folder: whom it serves, and the label names of their tasks."""


def save_adapter(
    folder: Path, loaded: LoadedModel, parts: ModelParts, labels: Sequence[str] = ()
) -> None:
    """Write LoRA factors and head as a folder that ``PeftModel.from_pretrained`` opens.

    Writes ``adapter_config.json``, ``adapter_model.safetensors`` (head included), the base
    model's ``config.json`` with the number of labels and the padding token, and the tokenizer.
    ``loaded`` is only asked for names; its tensors are neither read nor changed.

    Args:
        folder: Made if missing.
        loaded: The model the parts belong to.
        parts: Adapter and head; ranks and scales may differ from module to module.
        labels: Names of the classes in order; empty leaves transformers' ``LABEL_0``.

    Raises:
        ModelError: There is no adapter to write.
    """
    if not parts.adapter:
        raise ModelError("export: the model has no adapter; full weights go through save_full")
    folder.mkdir(parents=True, exist_ok=True)
    _lora_config(loaded, parts.adapter).save_pretrained(str(folder))
    tensors = {}
    for module, factors in parts.adapter.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = factors.a
        tensors[f"base_model.model.{module}.lora_B.weight"] = factors.b
    tensors |= {f"base_model.model.{name}": array for name, array in parts.head.items()}
    flat = {name: np.ascontiguousarray(array, np.float32) for name, array in tensors.items()}
    save_file(flat, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    _base_config(loaded, labels).save_pretrained(str(folder))
    load_tokenizer(loaded.spec).save_pretrained(str(folder))


def save_full(
    folder: Path, loaded: LoadedModel, parts: ModelParts, labels: Sequence[str] = ()
) -> None:
    """Write a fully fine-tuned model as a folder that transformers opens.

    ``parts`` are written into ``loaded`` first and stay there.

    Args:
        folder: Made if missing.
        loaded: A model of adaptation ``"full"``.
        parts: Weights and head.
        labels: Names of the classes in order.

    Raises:
        ModelError: The model is adapted with LoRA.
        WriteBackError: ``parts`` are not those of ``loaded``.
    """
    if loaded.spec.adaptation != "full":
        raise ModelError("export: a LoRA model goes through save_adapter")
    write_parts(loaded, parts)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        loaded.model.save_pretrained(str(folder))
    config = _base_config(loaded, labels)
    config.architectures = [type(loaded.model).__name__]
    config.save_pretrained(str(folder))
    load_tokenizer(loaded.spec).save_pretrained(str(folder))


def _lora_config(loaded: LoadedModel, adapter: Adapter) -> Any:
    """Return PEFT's description of the adapter; modules off the common rank or scale by name."""
    ranks = {module: factors.rank for module, factors in adapter.items()}
    alphas = {module: _alpha(f.rank, f.scale) for module, f in adapter.items()}
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    return LoraConfig(
        task_type="SEQ_CLS",
        base_model_name_or_path=loaded.backbone.path,
        inference_mode=True,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=loaded.spec.dropout,
        target_modules=list(adapter),
        fan_in_fan_out=lora.has_conv1d(loaded.backbone.layers),
        modules_to_save=list(loaded.head_modules),
        rank_pattern={module: r for module, r in ranks.items() if r != rank},
        alpha_pattern={module: a for module, a in alphas.items() if a != alpha},
    )


def _alpha(rank: int, scale: float) -> float:
    """Return PEFT's alpha, an integer where it is one: PEFT scales by ``alpha / rank``."""
    alpha = scale * rank
    return int(alpha) if float(alpha).is_integer() else alpha


def _commonest(values: Any) -> Any:
    return Counter(values).most_common(1)[0][0]


def _base_config(loaded: LoadedModel, labels: Sequence[str]) -> Any:
    """Return a copy of the model's configuration that knows its classes by name."""
    config = type(loaded.model.config).from_dict(loaded.model.config.to_dict())
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    return config
