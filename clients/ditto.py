"""The client that keeps a model of its own near the shared one (Ditto)."""

from __future__ import annotations

from atlas_flwr.flat import from_arrays
from atlas_flwr.models.adapter_io import read_parts, write_parts
from atlas_flwr.training.local import Goal
from atlas_flwr.types import PARTS, Array, Scalar, Stage
from clients.base import FineTuneClient


class DittoClient(FineTuneClient):
    """Trains the shared model for the server, then its own towards both its rows and the shared.

    The personal model is ``argmin f_k(v) + (λ/2)‖v − w‖²`` with w the shared model *as received*
    (Li et al. 2021, Algorithm 1); it starts from the seed, as the shared one does, and never
    leaves the vault. Both see the same number of epochs, so a client works twice as long.
    """

    def fit(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[list[Array], int, dict[str, Scalar]]:
        """Train both models; return the shared one.

        Args:
            parameters: The shared model's tensors.
            config: ``lambda``, the pull towards the shared model.
        """
        job, model, private = self.job, self.site.model, self.stores.private
        shared = from_arrays(parameters, self.layout)
        write_parts(model, shared)
        stage = Stage()
        result = self._train(0, stage, config)
        returned = read_parts(model)

        write_parts(model, shared)
        anchors = [parameter.detach().clone() for parameter in model.trainable()]
        write_parts(model, private.load(job.since) if job.since else self.site.initial(0))
        pull = Goal(prox_mu=float(config["lambda"]), anchors=anchors)
        self._train(1, stage, config, pull)
        private.save(job.round, read_parts(model).only(*PARTS), job.since)
        return self._answer(returned, result)
