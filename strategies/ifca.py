"""IFCA: several shared models; each client trains the one that fits its rows best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from atlas_flwr.errors import AggregationError
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Array, Job, ModelParts, Update
from strategies.base import Options, State
from strategies.cluster_mean import ClusterMeans


class IfcaOptions(Options):
    """Options of IFCA."""

    clusters: Annotated[int, Field(ge=1, strict=True)] = 4
    """M: how many models there are."""
    start: Literal["random", "assigned"] = "random"
    """How the models come to differ. ``random``, as in the paper: each is drawn. ``assigned``: each
    is drawn, and in round 1 the clients are dealt out among them, without a choice."""


class Ifca(ClusterMeans):
    """M adapters, each with a head for each label space; everybody is sent them all, every round.

    IFCA (Ghosh et al., NeurIPS 2020) with model averaging: ``j_k = argmin_j f_k(θ_j)``, then
    FedAvg of each model over those who chose it. M is given, and a round costs M downloads.

    While B = 0 all adapters are one function, so it is the *heads* that break the tie of round 1:
    model 0 is the seeded start, each other model has an A and heads of its own, drawn with the mean
    and spread of the seeded ones. Few models may win all clients for good, as the paper says of
    random starts; ``start = "assigned"`` trains every model at least once.
    """

    options_type = IfcaOptions
    options: IfcaOptions
    summary = "several models sent to all; each client trains the one of lowest loss"

    def cluster_of(self, partition: int) -> int:
        """Return the model last chosen; model 0 for who was never asked."""
        return self.clusters.get(partition, 0)

    def start(self) -> State:
        """Return the state before round 1, with every model in it."""
        bodies, heads = {}, {}
        for partition in range(self.setting.clients):
            initial = self.setting.initial_for(partition)
            for cluster in range(self.options.clusters):
                at = self.at(State(clusters={partition: cluster}))
                drawn = self._drawn(initial, cluster)
                bodies[at.body_key(partition)] = drawn.without("head")
                heads[at.head_key(partition)] = drawn.head
        return State(bodies=bodies, heads=heads)

    def _drawn(self, initial: ModelParts, cluster: int) -> ModelParts:
        """Return one of the models as it starts: model 0 as it is seeded, A and heads of others."""
        if not cluster:
            return initial

        def drawn(name: str, like: Array) -> Array:
            rng = rng_for(self.setting.seed, f"ifca/{name}/{like.shape}", 0, cluster)
            noise = rng.standard_normal(like.shape)
            like_it: Array = (like.mean() + like.std() * noise).astype(like.dtype)
            return like_it

        adapter = {m: replace(f, a=drawn(m, f.a)) for m, f in initial.adapter.items()}
        return ModelParts(adapter=adapter, head={n: drawn(n, t) for n, t in initial.head.items()})

    def plan(self, state: State, cohort: Sequence[int]) -> list[Job] | None:
        """Send every model to everybody who is drawn; in a dealt round 1, one."""
        if state.phase:
            return None
        models: dict[int, tuple[ModelParts, ...]] = {}  # by labels: the clients' jobs share them
        jobs = []
        for partition in cohort:
            labels = self.setting.num_labels[self.setting.tasks[partition]]
            if labels not in models:
                models[labels] = self._models(state, partition)
            choices = models[labels]
            if (given := self._dealt(state, partition)) is not None:
                choices = choices[given : given + 1]
            job = self.train_job(state, partition)
            jobs.append(replace(job, action="train.choose", parts=ModelParts(), choices=choices))
        return jobs

    def _models(self, state: State, partition: int) -> tuple[ModelParts, ...]:
        """Return all models, with the heads of the client's label space."""
        states = (replace(state, clusters={partition: c}) for c in range(self.options.clusters))
        return tuple(self.model_for(at, partition).parts for at in states)

    def _dealt(self, state: State, partition: int) -> int | None:
        """Return the model the client is dealt in round 1; None where it chooses."""
        if self.options.start == "random" or state.round > 1:
            return None
        order = rng_for(self.setting.seed, "ifca-deal").permutation(self.setting.clients)
        return int(order[partition]) % self.options.clusters

    def note(self, state: State, update: Update) -> State:
        """Note which model the client trained: that of lowest loss, the first of equals.

        Raises:
            AggregationError: Its losses are not one for each model it was sent.
        """
        losses, given = update.fingerprint.get("losses"), self._dealt(state, update.partition)
        sent = self.options.clusters if given is None else 1
        if losses is None or losses.shape != (sent,):
            raise AggregationError(
                f"partition {update.partition}: no loss for each of {sent} models"
            )
        chosen = int(np.argmin(losses)) if given is None else given
        return replace(state, clusters={**state.clusters, update.partition: chosen})
