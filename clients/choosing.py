"""Clients that compare models on their own training rows: to tell the losses, or to train the best.

The models come whole in one message (``Job.choices``); only their losses and, where one is trained,
that one go back.
"""

from __future__ import annotations

import numpy as np

from atlas_flwr.flat import to_arrays
from atlas_flwr.types import Array, Scalar
from clients.lora import LoraClient


class ScoringClient(LoraClient):
    """Scores every model it is sent on its training rows, or on those held back; trains nothing.

    The losses, float64 of shape ``(choices,)``, and the number of rows are in ``self.fingerprint``.
    """

    def fit(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[list[Array], int, dict[str, Scalar]]:
        """Score the models of the job.

        Args:
            parameters: None: the models are in ``job.choices``.
            config: ``hold-back``, the share of the training rows that is held back.

        Returns:
            No tensors, the rows scored, and nothing else.
        """
        rows = self.rows_held if self.job.rows == "held" else self.rows_trained
        self.fingerprint = {"losses": self._losses(rows), "rows": np.array([len(rows)])}
        return [], len(rows), {}

    def _losses(self, rows: Array) -> Array:
        """Return the mean loss under each model; NaN without rows."""
        losses = []
        for choice in self.job.choices:
            self._load(choice)
            losses.append(self._score(self.site.train_table, rows).loss)
        return np.array(losses, np.float64)


class ChoosingClient(ScoringClient):
    """Trains the model that fits its training rows best, as IFCA's clients do.

    The lowest mean loss decides, the first of equals. The losses go back with the trained model, so
    that the server knows which one it was.
    """

    def fit(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[list[Array], int, dict[str, Scalar]]:
        """Choose, then train as any client does.

        Args:
            parameters: None: the models are in ``job.choices``.
            config: As in training.
        """
        losses = self._losses(self.rows_trained)
        chosen, self.layout = to_arrays(self.job.choices[int(np.argmin(losses))])
        self.fingerprint = {"losses": losses}
        return super(ScoringClient, self).fit(chosen, config)
