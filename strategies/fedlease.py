"""FedLEASE: LoRA experts found by a warm-up's B, mixed by every client for itself.

Wang, Bian, Zhang & Xu, "Adaptive LoRA Experts Allocation and Selection for Federated Fine-Tuning",
NeurIPS 2025 (arXiv 2509.15087).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field

from atlas_flwr.aggregation.experts import ROUTER, pack, routers_of
from atlas_flwr.clustering.experts import Allocation, allocate, distances, nearest
from atlas_flwr.clustering.partition import Float
from atlas_flwr.errors import AggregationError
from atlas_flwr.results.record import Measured
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import Adapter, Array, Job, ModelParts, Stage, Tensors, Update
from strategies.base import Method, Options, Served, State
from strategies.folds import Tally
from strategies.lora_rule import EqualRankRule

Body = tuple[ModelParts, float]  # a client's body and its rows


class FedLeaseOptions(Options):
    """Options of FedLEASE."""

    experts: Literal["top-m", "own"] = "top-m"
    """``"top-m"``: each token chooses among all experts; ``"own"``: the cluster's alone,
    without a router."""
    max_experts: Annotated[int, Field(ge=1, strict=True)] = 4
    """Experts at most (4 in the authors' code); 1 is FedIT from round 1 on."""
    warm_up_epochs: Annotated[int, Field(ge=0, strict=True)] = 0
    """Local epochs of the warm-up; 0: the experiment's ``train.local-epochs``."""


class FedLease(EqualRankRule):
    """A LoRA expert for each cluster of clients, and a router that mixes them token by token.

    Round 1 is the warm-up: clients train a LoRA of their own from the shared seed. The server
    compares their B (cosine distance, averaged over modules), joins them by average linkage into 2
    to ``max-experts`` clusters, whichever number has the best silhouette, and starts each cluster's
    expert from the means of its A and of its B. From then on a client is served all M experts and
    its cluster's routers, trains its own expert, the routers and the head on the mixture (see
    ``atlas_flwr.models.experts``), and the server averages experts and routers inside clusters.

    The paper was read in summaries, its details in the authors' code. As there: a router without
    bias on every adapted module, softmax before the choice and weights scaled to sum 1 after it,
    token by token; routers averaged inside clusters. Not as there: means weigh clients by rows;
    routers start from one shared draw of the same distribution, for unlike draws average to
    nothing; its warm-up is five rounds, this one's is round 1 with ``warm-up-epochs``; its head
    stays frozen at its client, ours is trained and follows ``model.head``; after its warm-up
    clients go on for a round from their own factors, and not from the mean that the paper says.
    Unpublished: who is first drawn, or first heard, after round 1 warms up then and is placed with
    the nearest cluster, whose expert it leaves alone; clients all alike share one expert.

    Bytes a client and round, C being one adapter: down M·C and ``4 (2M − 1) Σ d_in`` of routers,
    also to be scored; up C and the routers. Routers and the others' experts are counted as
    ``weights``. In the warm-up, with one expert or under ``experts = "own"``: C each way. A
    mixture is no LoRA adapter: what is exported for PEFT is the cluster's own expert.
    """

    options_type = FedLeaseOptions
    options: FedLeaseOptions
    summary = "LoRA experts by clusters of B, mixed by an adaptive top-M router"
    cuts = False
    clusters: Mapping[int, int] = {}

    # -------------------------------------------------------------- who holds what

    def at(self, state: State) -> Self:
        """Return the method with a state's clusters as its groups."""
        bound = copy(self)
        bound.clusters = state.clusters
        return bound

    def body_key(self, partition: int) -> str:
        """Name the expert of the partition's cluster, or the start of those without one."""
        cluster = self.clusters.get(partition)
        return "start" if cluster is None else _expert(cluster)

    def body_for(self, state: State, partition: int) -> ModelParts:
        """Return the client's own expert; its seeded start before it has one."""
        cluster = state.clusters.get(partition)
        if cluster is None:
            return ModelParts(adapter=self.setting.initial_for(partition).adapter)
        return ModelParts(adapter=state.bodies[_expert(cluster)].adapter)

    def model_for(self, state: State, partition: int) -> Served:
        """Return the client's own expert and, where it mixes, all others with the routers."""
        served, cluster = super().model_for(state, partition), state.clusters.get(partition)
        flat = {} if cluster is None else self._mixture(state, cluster)
        parts = replace(served.parts, weights=flat)
        return replace(served, key=self._key(partition, cluster), parts=parts)

    def _key(self, partition: int, cluster: int | None) -> str:
        """Name the model: one a cluster and head."""
        head = self.head_key(partition)
        if self.private() or head == f"client-{partition}":
            return f"client-{partition}"
        name = "start" if cluster is None else f"cluster-{cluster}"
        return name if head == "global" else f"{name}-{head}"

    def _mixture(self, state: State, cluster: int) -> dict[str, Array]:
        """Return the routers and the other experts by name; none where there is nothing to mix."""
        routers = routers_of(state.bodies[_expert(cluster)].weights)
        if not routers:
            return {}
        experts = [state.bodies[_expert(c)].adapter for c in range(_count(state))]
        return pack(routers, experts, cluster)

    # -------------------------------------------------------------- jobs

    def train_job(self, state: State, partition: int) -> Job:
        """Return a job whose answer is the client's own expert, the routers and the head."""
        job = super().train_job(state, partition)
        if partition not in state.clusters:
            return replace(job, stages=(Stage(epochs=self.options.warm_up_epochs or None),))
        if not job.parts.weights:
            return job
        routers = {name: t.shape for name, t in routers_of(job.parts.weights).items()}
        return replace(job, action="train.experts", expects={**job.expects, **routers})

    def job(
        self, state: State, partition: int, action: str, rows: Literal["own", "full"] = "own"
    ) -> Job:
        """Return the job that hands a client its model; a mixture is scored as one."""
        job = super().job(state, partition, action, rows)
        mixes = action == "evaluate" and job.parts.weights
        return replace(job, action="evaluate.experts") if mixes else job

    # -------------------------------------------------------------- the merge

    def tally(self, state: State, updates: Iterator[Update]) -> tuple[Tally, State]:
        """Fold experts by cluster; a warm-up's adapters wait until they have clusters."""
        tally, noted = Tally(self.fold), state
        warm: dict[int, Body] = {}
        for update in updates:
            noted = self.note(noted, update)
            partition, weight = update.partition, float(update.report.num_examples)
            body = self.received(state, update)
            if partition in state.clusters:
                _add(tally, self.at(state).body_key(partition), body, weight)
            else:
                warm[partition] = (body, weight)
            tally.head(self.head_key(partition), update.parts.head, weight)
        if not warm:
            return tally, noted
        noted = self._placed(noted, warm)
        for partition in sorted(warm) if not state.clusters else ():
            _add(tally, self.at(noted).body_key(partition), *warm[partition])
        return tally, noted

    def received(self, state: State, update: Update) -> ModelParts:
        """Return the client's expert and routers.

        Raises:
            AggregationError: The factors' scale is not the one they were sent with.
        """
        own = self.setting.initial_for(update.partition).adapter
        for module, factors in update.parts.adapter.items():
            if module in own and factors.scale != own[module].scale:
                raise AggregationError(
                    f"{module}: scale {factors.scale}, sent with {own[module].scale}"
                )
        return super().received(state, update)

    def _placed(self, state: State, warm: Mapping[int, Body]) -> State:
        """Return the state with an expert for each client that warmed up."""
        new = {p: {m: f.b for m, f in warm[p][0].adapter.items()} for p in sorted(warm)}
        prints = {**state.prints, **new}
        if state.clusters:
            known = sorted(state.clusters)
            labels = [state.clusters[p] for p in known]
            late = {p: nearest(new[p], [state.prints[k] for k in known], labels) for p in new}
            return replace(state, prints=prints, clusters={**state.clusters, **late})
        d = distances([*new.values()])
        found = allocate(d, self.options.max_experts)
        clusters = dict(zip(new, found.labels, strict=True))
        return replace(state, prints=prints, clusters=clusters, found=_facts([*new], found, d))

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Take the mean experts; new ones are given the seeded routers."""
        mixing = self.options.experts == "top-m" and _count(state) > 1
        new = {
            group: replace(body, weights=self._routers(_count(state)))
            if mixing and group not in state.bodies
            else body
            for group, body in bodies.items()
        }
        return Method.step(self, state, new, heads)

    def _routers(self, experts: int) -> dict[str, Array]:
        """Return each module's first router: U(−1/√d_in, 1/√d_in), the same for all."""
        adapter = self.setting.initial_for(0).adapter
        routers = {}
        for module, factors in adapter.items():
            d_in = factors.a.shape[1]
            rng = rng_for(self.setting.seed, f"fedlease-router/{module}")
            bound = 1 / math.sqrt(d_in)
            drawn = rng.uniform(-bound, bound, (2 * experts - 1, d_in))
            routers[module + ROUTER] = drawn.astype(np.float32)
        return routers

    def measure(self, state: State, exact: Mapping[str, Adapter]) -> Measured:
        """Return how far the experts are from the exact means of their clients' products."""
        return Method.measure(self.at(state), state, exact)


def _expert(cluster: int) -> str:
    return f"expert-{cluster}"


def _count(state: State) -> int:
    """Return M, the number of experts."""
    return max(state.clusters.values(), default=-1) + 1


def _add(tally: Tally, group: str, body: ModelParts, weight: float) -> None:
    tally.body(group, body, weight)
    tally.products(group, body.adapter, weight)


def _facts(known: Sequence[int], found: Allocation, d: Float) -> dict[str, Any]:
    """Return how the experts were found in plain values, for the record."""
    return {
        "k": found.experts,
        "why": found.why,
        "clusters": {str(p): label for p, label in zip(known, found.labels, strict=True)},
        "silhouette_by_number_of_experts": {str(k): s for k, s in found.scores.items()},
        "partitions": [*known],
        "similarity": [[float(1 - value) for value in row] for row in d],
    }
