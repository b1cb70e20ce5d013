"""A checkpoint's files: configuration, tokenizer, and the backbone with what it lacks named."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as hf_logging

from atlas_flwr.errors import ModelError
from atlas_flwr.models import catalog, lora


@dataclass(frozen=True)
class ModelSpec:
    """Which model, and which of its tensors are trained.

    Attributes:
        name: A name of the catalog, a hub id, or a folder.
        adaptation: ``"lora"`` trains factors and the head; ``"full"`` trains everything.
        targets: ``"auto"`` (all linear layers of the backbone) or endings of module names.
        dropout: Dropout on the input of A, in [0, 1).
    """

    name: str
    adaptation: Literal["lora", "full"] = "lora"
    targets: lora.Targets = "auto"
    dropout: float = 0.0


@dataclass(frozen=True, eq=False)
class Backbone:
    """What a checkpoint gives, whatever the number of labels.

    Attributes:
        spec: The model asked for.
        path: Folder or hub id it came from.
        config: Its configuration, padding token set.
        model_class: The sequence-classification class.
        prefix: Name of the backbone inside that class, e.g. ``bert``.
        module: The backbone itself.
        new_modules: Modules of the backbone that the checkpoint lacks; they count as head.
        trained_head: Head tensors the checkpoint holds; empty if it lacks any of them.
        shapes: ``{module path: (d_out, d_in)}`` of the adapted modules; empty for ``"full"``.
        layers: PEFT layers by module path; empty for ``"full"``.
    """

    spec: ModelSpec
    path: str
    config: Any
    model_class: Any
    prefix: str
    module: nn.Module
    new_modules: tuple[str, ...]
    trained_head: Mapping[str, torch.Tensor]
    shapes: Mapping[str, tuple[int, int]]
    layers: Mapping[str, Any]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' progress bars and load reports; errors still show."""
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def load_tokenizer(spec: ModelSpec) -> Any:
    """Return the model's tokenizer, padding on the right; one object per process and model.

    A tokenizer without a padding token (GPT-2) pads with its end token; the mask hides it.

    Raises:
        ModelError: The files can't be had, or there is neither a padding nor an end token.
    """
    return tokenizer_of(spec.name)


@functools.cache
def tokenizer_of(name: str) -> Any:
    """Return a named model's tokenizer, one object per process."""
    path = catalog.locate(name)
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # what broken files raise there has no common base
        raise catalog.refusal(name, error) from error
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelError(f"model.name: '{name}' has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@functools.cache
def tokenizer_digest(name: str) -> str:
    """Return a digest of what a named model's tokenizer does with a text.

    A folder's files may change under its name. How long the last texts were cut, which a tokenizer
    remembers, is no part of it.

    Raises:
        ModelError: The tokenizer can't be had.
    """
    tokenizer = tokenizer_of(name)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    facts = json.loads(backend.to_str()) if backend else tokenizer.get_vocab()
    facts |= {"truncation": None, "padding": None} if backend else {}
    text = json.dumps([type(tokenizer).__name__, facts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def open_backbone(spec: ModelSpec) -> Backbone:
    """Read a checkpoint and make its backbone ready for ``spec``'s adaptation."""
    path = catalog.locate(spec.name)
    config, model_class = _config(spec.name, path)
    try:
        # Missing tensors are drawn while loading: that must not move the caller's generator.
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model, info = model_class.from_pretrained(
                path,
                config=config,
                dtype=torch.float32,
                use_safetensors=True,  # nothing is unpickled
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise catalog.refusal(spec.name, error) from error
    prefix = model.base_model_prefix
    module = getattr(model, prefix, None)
    if not isinstance(module, nn.Module):
        raise ModelError(f"model.name: '{spec.name}': {model_class.__name__} has no backbone apart")
    missing = set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}
    new = _new_modules(spec.name, module, prefix, missing)
    names = head_names(model, prefix, new)
    complete = not missing.intersection(names)
    shapes, layers = _adapt(spec, module, new)
    return Backbone(
        spec=spec,
        path=path,
        config=config,
        model_class=model_class,
        prefix=prefix,
        module=module,
        new_modules=new,
        trained_head={n: p.detach().clone() for n, p in names.items()} if complete else {},
        shapes={f"{prefix}.{name}": shape for name, shape in shapes.items()},
        layers={f"{prefix}.{name}": layer for name, layer in layers.items()},
    )


def _config(name: str, path: str) -> tuple[Any, Any]:
    """Return the checkpoint's configuration, padding set, and its classification class."""
    try:
        with quiet():
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise catalog.refusal(name, error) from error
    classes = AutoModelForSequenceClassification._model_mapping
    if type(config) not in classes:
        raise ModelError(
            f"model.name: '{name}' is a {config.model_type} model, which transformers has no "
            "sequence-classification class for"
        )
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = tokenizer_of(name).pad_token_id
    config.use_cache = False
    found = classes[type(config)]
    return config, found[0] if isinstance(found, list | tuple) else found


def _new_modules(name: str, module: nn.Module, prefix: str, missing: set[str]) -> tuple[str, ...]:
    """Return the largest modules of the backbone none of whose tensors the checkpoint holds."""
    held = {f"{prefix}.{key}" for key, _ in module.named_parameters()}
    absent = held & missing
    if 2 * len(absent) > len(held):
        raise ModelError(
            f"model.name: '{name}' holds {len(held) - len(absent)} of its backbone's {len(held)} "
            "tensors; its files are not those of this model"
        )
    new: list[str] = []
    for path, child in module.named_modules():
        keys = {f"{prefix}.{path}.{key}" for key, _ in child.named_parameters()}
        inside = any(path.startswith(done + ".") for done in new)
        if path and keys and keys <= absent and not inside:
            new.append(path)
    return tuple(new)


def _adapt(
    spec: ModelSpec, module: nn.Module, new: tuple[str, ...]
) -> tuple[dict[str, tuple[int, int]], dict[str, Any]]:
    """Inject LoRA where asked; return shapes and layers by name inside the backbone."""
    if spec.adaptation == "full":
        return {}, {}
    shapes = lora.linear_shapes(module, new)
    names = lora.resolve_targets(shapes, spec.targets)
    layers = lora.inject(module, names, spec.dropout)
    return {name: shapes[name] for name in names}, layers


def head_names(model: nn.Module, prefix: str, new: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Return the head's parameters by their name in the plain model."""
    inside = tuple(f"{prefix}.{path}." for path in new)
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(prefix + ".") or name.startswith(inside)
    }
