"""What every client does: load what it is sent, train or score on its own rows, answer.

A client is a pure function of its message and its own rows. What must stay with it is kept in its
vault, named by the round in which it was written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from flwr.client import NumPyClient

from atlas_flwr.data.tokenised import TokenTable
from atlas_flwr.errors import WireError
from atlas_flwr.models.adapter_io import read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.seeding import rng_for, seed_for
from atlas_flwr.training.evaluate import evaluate
from atlas_flwr.training.local import TrainSpec, train
from atlas_flwr.types import Array, Job, ModelParts, Part, Scalar
from atlas_flwr.wire import flatten, from_arrays, to_arrays


class PrivateStore(Protocol):
    """Where a client keeps what never leaves it."""

    def save(self, round_: int, parts: ModelParts, since: int) -> None:
        """Keep the parts as of the end of a round, and those of the round they came from."""

    def load(self, round_: int) -> ModelParts:
        """Return the parts as of the end of a round."""


@dataclass(frozen=True)
class Site:
    """What a client finds at home.

    Attributes:
        model: The backbone and head its process holds; reset by every job.
        initial: Gives its seeded starting model.
        train_table: Tokenised training rows of its task.
        train_rows: Row numbers it trains on.
        score_table: Tokenised evaluation rows of its task.
        own_rows: Row numbers of its own slice.
        full_rows: Row numbers of the task's full evaluation set.
        spec: How it trains.
        eval_batch_size: Rows scored at once.
        seed: The run's seed.
    """

    model: LoadedModel
    initial: Callable[[], ModelParts]
    train_table: TokenTable
    train_rows: Array
    score_table: TokenTable
    own_rows: Array
    full_rows: Array
    spec: TrainSpec
    eval_batch_size: int
    seed: int


class FineTuneClient(NumPyClient):
    """Fine-tunes the kinds of tensors its subclass names."""

    kinds: ClassVar[tuple[Part, ...]]

    def __init__(self, site: Site, job: Job, vault: PrivateStore) -> None:
        self.site, self.job, self.vault = site, job, vault
        self.layout = to_arrays(job.parts)[1]

    def fit(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[list[Array], int, dict[str, Scalar]]:
        """Train on the client's rows from the tensors sent.

        Args:
            parameters: The tensors of the job, in ``layout``'s order.
            config: The method's numbers: ``mu`` (FedProx), ``max-steps``.

        Returns:
            The trained tensors in the same order, the rows used, and the training loss.
        """
        site, job = self.site, self.job
        self._load(from_arrays(parameters, self.layout))
        steps = config.get("max-steps")
        result = train(
            site.model,
            site.train_table,
            site.train_rows,
            site.spec,
            rng_for(site.seed, "batches", job.round, job.partition),
            seed_for(site.seed, "dropout", job.round, job.partition),
            prox_mu=float(config.get("mu", 0.0)),
            max_steps=None if steps is None else int(steps),
        )
        trained = read_parts(site.model)
        if job.private:
            self.vault.save(job.round, trained.only(*job.private), job.since)
        arrays, self.layout = to_arrays(trained.without(*job.private))
        return arrays, result.num_examples, {"loss": result.loss, "notes": "\n".join(result.notes)}

    def evaluate(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Score the tensors sent on the client's own slice, or on the task's full set.

        Returns:
            The mean loss (NaN without rows), the rows scored, and the metrics.
        """
        site = self.site
        self._load(from_arrays(parameters, self.layout))
        rows = site.full_rows if self.job.rows == "full" else site.own_rows
        result = evaluate(
            site.model,
            site.score_table,
            np.asarray(rows),
            batch_size=site.eval_batch_size,
            precision=site.spec.precision,
            device=site.spec.device,
            threads=site.spec.threads,
        )
        return result.loss, result.num_examples, dict(result.metrics)

    def _load(self, received: ModelParts) -> None:
        """Put the model together from what was sent and what was kept, and load it whole.

        Raises:
            WireError: The job carries tensors this kind of client doesn't train.
        """
        private = self.job.private
        if odd := [kind for kind in flatten(received) if kind not in self.kinds]:
            raise WireError(f"{type(self).__name__} was sent {odd[0]}")
        if private:
            source = self.vault.load(self.job.since) if self.job.since else self.site.initial()
            kept = source.only(*private)
            received = ModelParts(
                received.adapter or kept.adapter,
                received.head or kept.head,
                received.weights or kept.weights,
            )
        write_parts(self.site.model, received)
