"""The client that tells where full fine-tuning would go first (Fed-SB's initialisation)."""

from __future__ import annotations

import numpy as np

from atlas_flwr.flat import from_arrays, to_arrays
from atlas_flwr.training.gradient import Passes, leading_gradient
from atlas_flwr.types import Array, ModelParts, Scalar
from clients.lora import LoraClient


class GradientClient(LoraClient):
    """Sends the leading directions of its mean gradient at the checkpoint; trains nothing."""

    def fit(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[list[Array], int, dict[str, Scalar]]:
        """Measure the gradient.

        Args:
            parameters: The head.
            config: ``gradient-rank``, how many directions are sent.
        """
        site = self.site
        self._load(from_arrays(parameters, self.layout))
        rows = np.asarray(site.train_rows)
        gradient = leading_gradient(
            site.model,
            site.train_table,
            rows,
            int(config["gradient-rank"]),
            Passes(site.spec.batch_size, site.spec.device, site.spec.threads),
        )
        arrays, self.layout = to_arrays(ModelParts(adapter=gradient))
        return arrays, len(rows), {}
