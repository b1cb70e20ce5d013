"""The client whose layers mix its own LoRA expert with those of other clusters (FedLEASE)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import ClassVar

from torch import nn

from atlas_flwr.aggregation.experts import ROUTER, unpack
from atlas_flwr.models.adapter_io import read_parts
from atlas_flwr.models.experts import mixed
from atlas_flwr.models.lora import to_numpy
from atlas_flwr.training.local import Goal
from atlas_flwr.types import Array, ModelParts, Part, Scalar, Stage
from clients.lora import LoraClient


class ExpertsClient(LoraClient):
    """Trains its own expert, the routers and the head; the other experts stay frozen.

    The other experts and the routers come as ``weights``, named as in ``aggregation.experts``; of
    these the routers alone go back. The layers are mixtures for the length of the job.
    """

    kinds: ClassVar[tuple[Part, ...]] = (*LoraClient.kinds, "weights")

    def fit(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[list[Array], int, dict[str, Scalar]]:
        """Train on the client's rows, through the mixture."""
        with ExitStack() as self._mixing:
            return super().fit(parameters, config)

    def evaluate(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Score the mixture."""
        with ExitStack() as self._mixing:
            return super().evaluate(parameters, config)

    def _write(self, parts: ModelParts) -> None:
        """Load the own expert and the head, then mix in the other experts."""
        super()._write(replace(parts, weights={}))
        layers = self.site.model.backbone.layers
        mixture = mixed(layers, unpack(parts.weights))
        self._routers: dict[str, nn.Parameter] = self._mixing.enter_context(mixture)

    def _goal(self, stage: Stage, config: Mapping[str, Scalar]) -> Goal:
        """Move the routers too."""
        goal = super()._goal(stage, config)
        routers = self._routers.values() if "weights" in stage.trains else ()
        return replace(goal, parameters=[*(goal.parameters or ()), *routers])

    def _trained(self, start: ModelParts) -> ModelParts:
        """Return the own expert, the head and the routers."""
        routers = {module + ROUTER: to_numpy(tensor) for module, tensor in self._routers.items()}
        return replace(read_parts(self.site.model), weights=routers)
