"""The client that says what its rows are like, in 8 kB."""

from __future__ import annotations

import numpy as np

from atlas_flwr.fingerprint.features import fingerprint
from atlas_flwr.flat import from_arrays
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Array, Scalar
from clients.base import FineTuneClient


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
            config: ``kind``, ``clip`` (0 for none) and ``noise``.
        """
        site, job = self.site, self.job
        self._load(from_arrays(parameters, self.layout))
        rows, noise = np.asarray(site.train_rows), float(config["noise"])
        rng = rng_for(site.seed, "fingerprint", job.round, job.partition)
        if noise:  # the server knows the run's seed: noise drawn from it could be taken off again
            rng = np.random.default_rng()
        self.fingerprint = fingerprint(
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
        return [], len(rows), {}
