"""The client that trains a square matrix between two frozen factors (Fed-SB)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.utils import parametrize

from atlas_flwr.models.lora import ADAPTER, to_numpy
from atlas_flwr.training.local import Goal
from atlas_flwr.types import Array, ModelParts, Scalar, Stage
from clients.lora import LoraClient


class _Times(nn.Module):
    """``B = B⁰ R``: the layer reads B, the optimizer moves R."""

    def __init__(self, up: torch.Tensor) -> None:
        super().__init__()
        self.up: torch.Tensor
        self.register_buffer("up", up)

    def forward(self, core: torch.Tensor) -> torch.Tensor:
        """Return B, shape ``(d_out, r)``, for R of shape ``(r, r)``."""
        return self.up @ core


class CoreClient(LoraClient):
    """Trains R in ``W + s B⁰ R A⁰``, and the head; the factors around R never move."""

    def fit(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[list[Array], int, dict[str, Scalar]]:
        """Train the cores of the job."""
        self._cores: dict[str, nn.Parameter] = {}
        with self._parametrised():
            return super().fit(parameters, config)

    def _load(self, received: ModelParts) -> ModelParts:
        """Load the frozen factors, then put the cores between them as what is trained."""
        parts = self._whole(received)
        super()._write(parts)
        for module, core in parts.core.items():
            up = self.site.model.backbone.layers[module].lora_B[ADAPTER]
            frozen = torch.tensor(parts.adapter[module].b, device=up.weight.device)
            up.weight = nn.Parameter(torch.tensor(core, device=up.weight.device))
            parametrize.register_parametrization(up, "weight", _Times(frozen), unsafe=True)
            self._cores[module] = up.parametrizations.weight.original
        return parts

    def _goal(self, stage: Stage, config: Mapping[str, Scalar]) -> Goal:
        """Move the cores and the head."""
        return Goal([*self._cores.values(), *self.site.model.head.values()])

    def _trained(self, start: ModelParts) -> ModelParts:
        """Return the cores and the head; the layers hold only their products with B⁰."""
        head = {name: to_numpy(tensor) for name, tensor in self.site.model.head.items()}
        core = {module: to_numpy(tensor) for module, tensor in self._cores.items()}
        return ModelParts(head=head, core=core)

    @contextmanager
    def _parametrised(self) -> Iterator[None]:
        """Leave plain layers behind, whatever happens."""
        try:
            yield
        finally:
            for module in self._cores:
                up = self.site.model.backbone.layers[module].lora_B[ADAPTER]
                parametrize.remove_parametrizations(up, "weight", leave_parametrized=True)
                up.weight.requires_grad_(True)
