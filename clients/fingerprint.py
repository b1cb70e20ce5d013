"""The client that says what its rows are like: 8 kB, and spectra of gradients where asked for."""

from __future__ import annotations

import numpy as np

from atlas_flwr.fingerprint.features import fingerprint, subspace_of
from atlas_flwr.flat import from_arrays
from atlas_flwr.ranks.importance import IMPORTANCE
from atlas_flwr.seeding import rng_for
from atlas_flwr.training.gradient import Passes, leading_values
from atlas_flwr.types import Array, Scalar, Tensors
from clients.base import FineTuneClient

# A gradient's leading energies settle with few rows, and a backward pass through all costs as much
# as a round of training.
IMPORTANCE_ROWS = 128


class FingerprintClient(FineTuneClient):
    """Measures its training rows at the seeded start; trains nothing.

    With noise, the one thing in a run that no seed repeats, for then it would protect nothing.
    """

    def fit(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[list[Array], int, dict[str, Scalar]]:
        """Measure the rows; the fingerprint is in ``self.fingerprint``.

        Args:
            parameters: None: all is drawn from the seed.
            config: ``kind``, ``clip`` (0 for none), ``noise``, and ``importance-rank``, how many
                singular values of the mean gradient are told (0 for none). For ``kind``
                ``"subspace"``: ``dimensions`` and ``class-wise``.
        """
        self._load(from_arrays(parameters, self.layout))
        measure = self._subspace if config["kind"] == "subspace" else self._print
        self.fingerprint = measure(config)
        if wanted := int(config.get("importance-rank", 0)):
            self.fingerprint = {**self.fingerprint, IMPORTANCE: self._importance(wanted)}
        return [], len(self.rows_trained), {}

    def _subspace(self, config: dict[str, Scalar]) -> Tensors:
        """Return the leading directions of the rows."""
        site = self.site
        return subspace_of(
            site.model,
            site.train_table,
            self.rows_trained,
            site.model.num_labels,
            seed=site.seed,
            dimensions=int(config["dimensions"]),
            class_wise=bool(config["class-wise"]),
            batch_size=site.eval_batch_size,
            device=site.spec.device,
            threads=site.spec.threads,
        )

    def _print(self, config: dict[str, Scalar]) -> Tensors:
        """Return means of the rows, or gradients on them."""
        site, job = self.site, self.job
        rows, noise = self.rows_trained, float(config["noise"])
        # Of round 0: the same rows give the same answer whenever they are asked for.
        rng = rng_for(site.seed, "fingerprint", 0, job.partition)
        if noise:  # the server knows the run's seed: noise drawn from it could be taken off again
            rng = np.random.default_rng()
        return fingerprint(
            site.model,
            site.train_table,
            rows,
            site.model.num_labels,
            seed=site.seed,
            rng=rng,
            kind=str(config["kind"]),  # type: ignore[arg-type]
            clip=float(config["clip"]) or None,
            noise=noise,
            batch_size=site.eval_batch_size,
            device=site.spec.device,
            threads=site.spec.threads,
        )

    def _importance(self, rank: int) -> Array:
        """Return the leading singular values of each module's mean gradient, of the largest.

        Returns:
            float16, shape ``(modules, rank)``, in the model's order, zero where a module has none.
        """
        site, job = self.site, self.job
        rng = rng_for(site.seed, IMPORTANCE, 0, job.partition)
        told = leading_values(
            site.model,
            site.train_table,
            rng.permutation(self.rows_trained)[:IMPORTANCE_ROWS],
            rank,
            Passes(site.spec.batch_size, site.spec.device, site.spec.threads),
        )
        values = np.zeros((len(told), rank))
        for row, own in zip(values, told.values(), strict=True):
            row[: len(own)] = own
        return (values / (values.max() or 1.0)).astype(np.float16)
