"""What every client does: put its model together, train or score on its own rows, answer.

A client is a pure function of its message and its own rows. What must stay with it, and what it
was sent before, is kept in its vault, named by the round in which it was written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
from flwr.client import NumPyClient
from numpy.typing import NDArray

from atlas_flwr.aggregation.delta import accumulate
from atlas_flwr.aggregation.square import between
from atlas_flwr.data.tokenised import TokenTable
from atlas_flwr.errors import WireError
from atlas_flwr.flat import from_arrays, to_arrays
from atlas_flwr.models.adapter_io import read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.seeding import rng_for, seed_for
from atlas_flwr.training.evaluate import EvalResult, evaluate, logits_of
from atlas_flwr.training.local import Goal, TrainResult, TrainSpec, train
from atlas_flwr.training.prior import fitted_offset, log_prior
from atlas_flwr.types import PARTS, Adapter, Array, Job, ModelParts, Part, Scalar, Stage, Tensors


class PrivateStore(Protocol):
    """Where a client keeps model parts between messages."""

    def save(self, round_: int, parts: ModelParts, since: int) -> None:
        """Keep the parts as of the end of a round, and those of the round they came from."""

    def load(self, round_: int) -> ModelParts:
        """Return the parts as of the end of a round."""


@dataclass(frozen=True)
class Stores:
    """A client's own disk: ``private`` never leaves it, ``carried`` is what the server sent."""

    private: PrivateStore
    carried: PrivateStore


@dataclass(frozen=True)
class Site:
    """What a client finds at home.

    Attributes:
        model: The backbone and head its process holds; reset by every job.
        initial: Gives a draw of its seeded starting model, 0 for the first.
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
    initial: Callable[[int], ModelParts]
    train_table: TokenTable
    train_rows: Array
    score_table: TokenTable
    own_rows: Array
    full_rows: Array
    spec: TrainSpec
    eval_batch_size: int
    seed: int


class FineTuneClient(NumPyClient):
    """Fine-tunes the parts its job names; subclasses say which parts their model has."""

    kinds: ClassVar[tuple[Part, ...]] = PARTS

    def __init__(self, site: Site, job: Job, stores: Stores) -> None:
        self.site, self.job, self.stores = site, job, stores
        self.layout = to_arrays(job.parts)[1]
        self.fingerprint: Tensors = {}

    def fit(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[list[Array], int, dict[str, Scalar]]:
        """Train on the client's rows, stage by stage, from the tensors sent.

        Args:
            parameters: The tensors of the job, in ``layout``'s order.
            config: The method's numbers: ``mu`` (FedProx), ``max-steps``.

        Returns:
            The tensors the job wants back, in the order of the new ``layout``, the rows used, and
            the training loss of the last stage.
        """
        job = self.job
        start = self._load(from_arrays(parameters, self.layout))
        for number, stage in enumerate(job.stages):
            result = self._train(number, stage, config)
        trained = self._trained(start)
        if job.private:
            self.stores.private.save(job.round, trained.only(*job.private), job.since)
        returned = trained.without(*job.private).only(*job.returns)
        return self._answer(returned, result)

    def evaluate(
        self, parameters: list[Array], config: dict[str, Scalar]
    ) -> tuple[float, int, dict[str, Scalar]]:
        """Score the tensors sent on the client's own slice, the task's full set, or held rows.

        Returns:
            The mean loss (NaN without rows), the rows scored, and the metrics.
        """
        site = self.site
        self._load(from_arrays(parameters, self.layout))
        rows = site.full_rows if self.job.rows == "full" else site.own_rows
        if self.job.rows == "held":
            result = self._score(site.train_table, self.rows_held)
        else:
            result = self._score(site.score_table, rows)
        return result.loss, result.num_examples, dict(result.metrics)

    # -------------------------------------------------------------- what a subclass may change

    def _goal(self, stage: Stage, config: Mapping[str, Scalar]) -> Goal:
        """Return what a stage trains, and its terms beside the loss."""
        moving = self.site.model.trainable(stage.trains)
        return Goal(parameters=moving, prox_mu=float(config.get("mu", 0.0)))

    def _trained(self, start: ModelParts) -> ModelParts:
        """Return the tensors after training, given those before."""
        return read_parts(self.site.model)

    # -------------------------------------------------------------- its rows

    @property
    def rows_trained(self) -> Array:
        """The training rows but those held back."""
        return np.setdiff1d(self.site.train_rows, self.rows_held, assume_unique=True)

    @property
    def rows_held(self) -> Array:
        """The last share of a seeded permutation of the training rows, the same in every round.

        Where a share is asked for and there are two rows, there is one to hold and one to train on.
        """
        rows = np.asarray(self.site.train_rows)
        share = float(self.job.options.get("hold-back", 0.0))
        held = min(math.ceil(share * len(rows)), len(rows) - 1)
        rng = rng_for(self.site.seed, "hold-back", 0, self.job.partition)
        return rng.permutation(rows)[len(rows) - held :]

    # -------------------------------------------------------------- the steps

    def _score(self, table: TokenTable, rows: Array) -> EvalResult:
        """Score the loaded model; on the client's own rows with what is known of its label mix."""
        site = self.site
        return evaluate(
            site.model,
            table,
            np.asarray(rows),
            batch_size=site.eval_batch_size,
            precision=site.spec.precision,
            device=site.spec.device,
            threads=site.spec.threads,
            prior=self._offset() if len(rows) else None,
        )

    def _offset(self) -> NDArray[np.float32] | None:
        """Return what is added to the logits where the loaded model is scored; None: nothing.

        A fitted one knows all training rows, those too that are held back from training.
        """
        if self.job.rows == "full":
            return None
        prior, site, rows = self._prior(), self.site, self.rows_trained
        if not self.job.action.startswith("evaluate") or site.spec.own_offset == "mix":
            return prior
        table, batch, how = site.train_table, site.eval_batch_size, site.spec
        logits = logits_of(site.model, table, rows, batch, how.precision, how.device, how.threads)
        return fitted_offset(logits, table.labels[rows], prior)

    def _prior(self) -> NDArray[np.float32] | None:
        """Return what is added to the logits of the client's own rows; None: no adjustment."""
        site, strength = self.site, self.site.spec.logit_adjustment
        if not strength:
            return None
        own = site.train_table.labels[self.rows_trained]
        return log_prior(own, site.model.num_labels, strength, self.job.pooled)

    def _train(
        self, number: int, stage: Stage, config: Mapping[str, Scalar], goal: Goal | None = None
    ) -> TrainResult:
        """Train one stage; each has streams of its own."""
        site, job = self.site, self.job
        role = f"/{number}" if number else ""
        steps = config.get("max-steps")
        epochs = site.spec.epochs if stage.epochs is None else stage.epochs
        return train(
            site.model,
            site.train_table,
            self.rows_trained,
            replace(site.spec, epochs=epochs),
            rng_for(site.seed, f"batches{role}", job.round, job.partition),
            seed_for(site.seed, f"dropout{role}", job.round, job.partition),
            replace(goal or self._goal(stage, config), prior=self._prior()),
            max_steps=None if steps is None else int(steps),
        )

    def _answer(
        self, returned: ModelParts, result: TrainResult
    ) -> tuple[list[Array], int, dict[str, Scalar]]:
        arrays, self.layout = to_arrays(returned)
        told: dict[str, Scalar] = {"loss": result.loss, "notes": "\n".join(result.notes)}
        return arrays, result.num_examples, told

    def _load(self, received: ModelParts) -> ModelParts:
        """Put the model together and load it whole; return its tensors.

        Raises:
            WireError: The job carries tensors this kind of client doesn't have.
        """
        parts = self._whole(received)
        self._write(folded(parts))
        return parts

    def _write(self, parts: ModelParts) -> None:
        """Load factors, weights and head; cores are put there by who trains them."""
        write_parts(self.site.model, replace(parts, core={}))

    def _whole(self, received: ModelParts) -> ModelParts:
        """Return what was sent, completed from the vault and from the seed."""
        job, odd = self.job, received.without(*self.kinds)
        if odd != ModelParts():
            raise WireError(f"{type(self).__name__} was sent tensors it doesn't have")
        parts = self._advanced(received)
        if job.private:
            source = self.stores.private.load(job.since) if job.since else self.site.initial(0)
            parts = parts.filled(source.only(*job.private))
        if job.seeded:
            parts = parts.filled(self.site.initial(job.draw).only(*job.seeded))
        return parts

    def _advanced(self, received: ModelParts) -> ModelParts:
        """Return what was sent on top of what was sent before, which moves to the new version."""
        held, new = self.job.carried
        if not new:
            return received
        before = self.stores.carried.load(held) if held else ModelParts()
        delta = _sum(before.delta, received.delta)
        parts = replace(received, delta={}).filled(replace(before, delta={}))
        parts = replace(parts, delta=delta)
        if new != held:
            self.stores.carried.save(new, parts.only(*CARRIED), held)
        return parts


def folded(parts: ModelParts) -> ModelParts:
    """Return the parts with cores multiplied into B, as a plain LoRA layer wants them."""
    if not parts.core:
        return parts
    adapter = {
        module: between(factors, parts.core[module]).astype(np.float32)
        for module, factors in parts.adapter.items()
    }
    return replace(parts, adapter=adapter, core={})


CARRIED: tuple[Part, ...] = ("lora_A", "lora_B", "delta")


def _sum(before: Adapter, change: Adapter) -> Adapter:
    """Return two changes of the frozen weights as one, float32 as it is loaded."""
    return {module: f.astype(np.float32) for module, f in accumulate(before, change).items()}
