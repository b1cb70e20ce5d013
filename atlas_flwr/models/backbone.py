"""A pretrained backbone, opened once per process, and a task head of any size on top of it.

The head is every parameter outside the backbone, and every backbone module that the checkpoint
does not hold (a BERT pooler, where a masked language model was saved). Head wrappers of several
label counts share one backbone object, so holding several tasks costs only their heads.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from atlas_flwr.errors import ModelError
from atlas_flwr.models import lora
from atlas_flwr.models.checkpoint import (
    Backbone,
    ModelSpec,
    head_names,
    load_tokenizer,
    open_backbone,
    quiet,
    tokenizer_digest,
    tokenizer_of,
)
from atlas_flwr.seeding import seed_for
from atlas_flwr.types import PARTS, Part

__all__ = [
    "Backbone",
    "LoadedModel",
    "ModelSpec",
    "forget",
    "load",
    "load_fresh",
    "load_tokenizer",
    "quiet",
    "tokenizer_digest",
]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A backbone with a head of one size, ready to be written to, trained and read.

    Attributes:
        spec: The model asked for.
        num_labels: Size of the head.
        backbone: Shared with every other head size of the process.
        model: The transformers model; it holds whatever the last job left in it.
        head: Head parameters by their name in the plain model.
        weights: The backbone's own parameters by name; empty for ``"lora"``.
        head_modules: Modules that hold ``head``, by their path in the plain model.
        initial_head: The head before training, on the CPU.
    """

    spec: ModelSpec
    num_labels: int
    backbone: Backbone
    model: Any
    head: Mapping[str, nn.Parameter]
    weights: Mapping[str, nn.Parameter]
    head_modules: tuple[str, ...]
    initial_head: Mapping[str, torch.Tensor]

    @property
    def pad_token_id(self) -> int:
        """The token that fills short rows; the model knows it too."""
        return int(self.model.config.pad_token_id)

    def trainable(self, parts: Collection[Part] = PARTS) -> list[nn.Parameter]:
        """Return the tensors that training may change: factors, then weights, then head.

        Args:
            parts: Which of them; a core or a delta has no tensor of its own here.
        """
        pairs = [lora.factor_parameters(layer) for layer in self.backbone.layers.values()]
        chosen = [
            parameter
            for pair in pairs
            for part, parameter in zip(("lora_A", "lora_B"), pair, strict=True)
            if part in parts
        ]
        for part, held in (("weights", self.weights), ("head", self.head)):
            chosen += held.values() if part in parts else ()
        return chosen


@functools.cache
def load(spec: ModelSpec, num_labels: int, seed: int) -> LoadedModel:
    """Return the model with a head of ``num_labels``; one object per process and arguments.

    The checkpoint is read once per process and spec. The head's first values depend on
    ``(spec, num_labels, seed)`` alone; a checkpoint that was saved with a trained head of this
    size keeps it. A later call returns the same object as it is: nothing is reset, so write the
    parts of a job before training or scoring it.

    Args:
        spec: The model.
        num_labels: Labels of the task, at least 2.
        seed: The run's seed.

    Raises:
        ModelError: The files can't be had, the architecture has no sequence-classification
            class or no separate backbone, or a LoRA target matches nothing.
    """
    return _wrap(_backbone(spec), num_labels, seed)


def load_fresh(spec: ModelSpec, num_labels: int, seed: int) -> LoadedModel:
    """Return what ``load`` returns on its first call, read again from the checkpoint, uncached."""
    return _wrap(open_backbone(spec), num_labels, seed)


def longest_input(spec: ModelSpec) -> int | None:
    """Return how many tokens the model has positions for; ``None`` when it says nothing.

    RoBERTa's first positions belong to padding and are not counted.

    Raises:
        ModelError: The model can't be had.
    """
    backbone = open_backbone(spec)
    for name, module in backbone.module.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            padding = module.padding_idx
            return module.num_embeddings - (0 if padding is None else padding + 1)
    positions = getattr(backbone.config, "max_position_embeddings", None)
    return positions if isinstance(positions, int) and positions > 0 else None


def forget() -> None:
    """Drop every model and tokenizer this process holds."""
    load.cache_clear()
    _backbone.cache_clear()
    tokenizer_of.cache_clear()
    tokenizer_digest.cache_clear()


@functools.cache
def _backbone(spec: ModelSpec) -> Backbone:
    return open_backbone(spec)


def _wrap(backbone: Backbone, num_labels: int, seed: int) -> LoadedModel:
    """Build the classification class around the shared backbone, with its head initialised."""
    config = type(backbone.config).from_dict(backbone.config.to_dict())
    config.num_labels = num_labels
    config.problem_type = "single_label_classification"
    with torch.device("meta"):
        model = backbone.model_class(config)
    setattr(model, backbone.prefix, backbone.module)
    modules = _head_modules(model, backbone)
    drawn = _draw_head(model, backbone.prefix, modules, seed_for(seed, "head-init", 0, num_labels))
    if _keeps_head(backbone, num_labels):
        drawn = {name: tensor.clone() for name, tensor in backbone.trained_head.items()}
    head = head_names(model, backbone.prefix, backbone.new_modules)
    if missing := [name for name in head if name not in drawn]:
        raise ModelError(
            f"model.name: '{backbone.spec.name}': head tensor '{missing[0]}' is in no module"
        )
    for name, parameter in head.items():
        parameter.requires_grad_(True)
        if not name.startswith(backbone.prefix + "."):
            parameter.data.copy_(drawn[name])
    weights: dict[str, nn.Parameter] = {}
    if backbone.spec.adaptation == "full":
        weights = {name: p for name, p in model.named_parameters() if name not in head}
    return LoadedModel(
        spec=backbone.spec,
        num_labels=num_labels,
        backbone=backbone,
        model=model.eval(),
        head=head,
        weights=weights,
        head_modules=modules,
        initial_head={name: drawn[name] for name in head},
    )


def _keeps_head(backbone: Backbone, num_labels: int) -> bool:
    """Tell whether the checkpoint was saved with a trained head of this size."""
    return bool(backbone.trained_head) and backbone.config.num_labels == num_labels


def _head_modules(model: nn.Module, backbone: Backbone) -> tuple[str, ...]:
    """Return the paths of the modules that make the head, in the model's order."""
    outside = [
        name
        for name, child in model.named_children()
        if name != backbone.prefix and any(True for _ in child.parameters())
    ]
    return (*(f"{backbone.prefix}.{path}" for path in backbone.new_modules), *outside)


def _draw_head(
    model: Any, prefix: str, modules: tuple[str, ...], seed: int
) -> dict[str, torch.Tensor]:
    """Return the head's random first values, drawn on the CPU; give its own modules storage.

    What lies inside the shared backbone is drawn on a copy, for another job may be using it.
    """
    drawn: dict[str, torch.Tensor] = {}
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for path in modules:
            module = model.get_submodule(path)
            if path.startswith(prefix + "."):
                module = copy.deepcopy(module).to("cpu")
            else:
                module.to_empty(device="cpu")
            _initialise(model, module)
            for name, parameter in module.named_parameters():
                drawn[f"{path}.{name}"] = parameter.detach().clone()
    return drawn


def _initialise(model: Any, head: nn.Module) -> None:
    """Give a head module the architecture's own random first values."""
    for module in head.modules():
        for parameter in module.parameters(recurse=False):
            # transformers skips what it believes is loaded already.
            parameter.__dict__.pop("_is_hf_initialized", None)
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
        model._init_weights(module)
