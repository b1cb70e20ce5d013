"""Exported folders opened again, by plain transformers and PEFT."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from atlas_flwr.errors import ModelError
from atlas_flwr.models.checkpoint import quiet
from atlas_flwr.models.experts import EXPERTS_FILE, load_experts, mixed

ADAPTER_CONFIG = "adapter_config.json"
_BROKEN = (OSError, ValueError, RuntimeError, KeyError, SafetensorError, HfHubHTTPError)


def base_of(folder: Path) -> str:
    """Return the base model that an adapter's folder names; empty for a whole model.

    Raises:
        ModelError: The folder's description of the adapter is broken.
    """
    path = folder / ADAPTER_CONFIG
    if not path.exists():
        return ""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{path}: can't be read ({error})") from error


def open_model(folder: Path, base: str | None = None) -> Any:
    """Return the classifier in a folder, in evaluation mode, with the folder's class names.

    Args:
        folder: An adapter's, or a whole model's.
        base: The base model's folder or hub id, where it isn't the one that the adapter names.

    Raises:
        ModelError: The folder or the base model can't be opened.
    """
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: holds no model (no config.json)")
    named = base_of(folder)
    try:
        with quiet():
            if not named:
                return AutoModelForSequenceClassification.from_pretrained(
                    str(folder), use_safetensors=True, trust_remote_code=False
                ).eval()
            config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
            plain = AutoModelForSequenceClassification.from_pretrained(
                base or named, config=config, use_safetensors=True, trust_remote_code=False
            )
            with warnings.catch_warnings():
                # PEFT 0.21 asks transformers 5.23 for a property under its old name.
                warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated")
                return PeftModel.from_pretrained(plain, str(folder)).eval()
    except _BROKEN as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        where = f"{folder} (base model {base or named})" if named else str(folder)
        raise ModelError(f"{where}: can't be opened: {first}") from error


def open_tokenizer(folder: Path) -> Any:
    """Return the folder's tokenizer, padding on the right as in training.

    Raises:
        ModelError: It can't be opened.
    """
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except _BROKEN as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise ModelError(f"{folder}: its tokenizer can't be opened: {first}") from error
    tokenizer.padding_side = "right"
    return tokenizer


@contextmanager
def as_served(model: Any, folder: Path) -> Iterator[Any]:
    """Give the model as its clients were served it: with the other experts, where it mixes them."""
    if not (folder / EXPERTS_FILE).exists():
        yield model
        return
    experts = load_experts(folder)
    inner = model.get_base_model()
    with mixed({name: inner.get_submodule(name) for name in experts}, experts):
        yield model


def save_merged(model: Any, tokenizer: Any, folder: Path, labels: Sequence[str]) -> None:
    """Write an opened model as a folder that plain transformers opens.

    An adapter is merged into the weights, ``W + s B A`` in float32, by PEFT: the logits stay the
    same up to rounding.

    Args:
        model: From ``open_model``; an adapter's model is changed.
        tokenizer: From ``open_tokenizer``.
        folder: Made if missing.
        labels: Names of the classes in order.
    """
    whole = model.merge_and_unload(safe_merge=True) if isinstance(model, PeftModel) else model
    name_classes(whole.config, labels)
    folder.mkdir(parents=True, exist_ok=True)
    with quiet():
        whole.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))


def name_classes(config: Any, labels: Sequence[str]) -> None:
    """Write class names into a configuration."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: i for i, label in enumerate(labels)}


def rename_classes(folder: Path, labels: Sequence[str]) -> None:
    """Write class names into a folder's ``config.json``."""
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    name_classes(config, labels)
    config.save_pretrained(str(folder))


def module_ranks(folder: Path) -> Mapping[str, int]:
    """Return the LoRA rank of each module of an adapter's folder, by layer."""
    told = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    ranks, modules = told["rank_pattern"], sorted(told["target_modules"], key=_natural)
    return {module: int(ranks.get(module, told["r"])) for module in modules}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
