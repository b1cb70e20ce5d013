"""FLASC: sparse LoRA communication, dense local training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from atlas_flwr.aggregation.sparse import keep_largest, lost
from atlas_flwr.types import Adapter, Array, Job, ModelParts, Scalar, Tensors, Update
from strategies.base import Method, Options, Served, State
from strategies.lora_rule import EqualRankRule

Density = Annotated[float, Field(gt=0, le=1, strict=True)]


class FlascOptions(Options):
    """Options of FLASC."""

    down_density: Density = 0.25
    """Share of the adapter's entries that a client is sent."""
    up_density: Density = 0.25
    """Share of the entries of its movement that a client sends."""


class Flasc(EqualRankRule):
    """The largest entries go down, the client trains all, the largest movements come up.

    FLASC (Kuo et al. 2024, arXiv 2406.05233; from memory, its text could not be read): the server
    adds the mean of the sparse movements to its own dense adapter. Magnitudes are compared over
    the whole adapter. Zeros travel as one bit each. Entries of A that are not sent are zero at
    the client, as published. B begins at zero and A does not, so in the first rounds what is served
    may hold little of B, or none: ``compression_error`` tells how much is left behind.
    """

    options_type = FlascOptions
    options: FlascOptions
    summary = "sparse download, dense training, sparse movements up"

    def plan(self, state: State, cohort: Sequence[int]) -> list[Job] | None:
        """Ask for sparse movements."""
        jobs = super().plan(state, cohort)
        return jobs and [replace(job, action="train.sparse") for job in jobs]

    def job_options(self, state: State) -> Mapping[str, Scalar]:
        """Send the density of the way up."""
        return {"up-density": self.options.up_density}

    def model_for(self, state: State, partition: int) -> Served:
        """Return the adapter's largest entries."""
        served = super().model_for(state, partition)
        kept = keep_largest(served.parts.body(), self.options.down_density)
        return replace(served, parts=served.parts.with_body(kept), sparse=True)

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        """Merge, and note what sparsity lost in both directions."""
        up: list[tuple[float, int]] = []

        def noted() -> Iterator[Update]:
            for update in updates:
                error = update.report.metrics.get("compression_error")
                if error is not None:
                    up.append((error, update.report.num_examples))
                yield update

        merged = super().merge(state, noted())
        rows = sum(n for _, n in up)
        compression = {
            **(merged.measured.compression_error or {}),
            "up": sum(error * n for error, n in up) / rows if rows else None,
            "down": self._lost(merged),
        }
        return replace(merged, measured=replace(merged.measured, compression_error=compression))

    def _lost(self, state: State) -> float | None:
        """Return the share of the global adapter's norm that the way down leaves behind."""
        dense = {
            f"{group}/{name}": tensor
            for group, body in state.bodies.items()
            for name, tensor in body.body().items()
        }
        if not dense:
            return None
        kept: dict[str, Array] = {}
        for group, body in state.bodies.items():
            sparse = keep_largest(body.body(), self.options.down_density)
            kept |= {f"{group}/{name}": tensor for name, tensor in sparse.items()}
        return lost(dense, kept)

    def effective(self, state: State, partition: int, body: ModelParts) -> Adapter:
        """Return where the client ended: what it was sent, and its movement as received."""
        sent = self.model_for(state, partition).parts
        moved = {name: t + body.body()[name] for name, t in sent.body().items()}
        return sent.with_body(moved).adapter

    def step(
        self, state: State, bodies: Mapping[str, ModelParts], heads: Mapping[str, Tensors]
    ) -> State:
        """Add the mean movements to the dense adapters."""
        new = {}
        for group, moved in bodies.items():
            before = {m: self._before(state, group, m) for m in moved.adapter}
            base = ModelParts(adapter=before)
            change = moved.body()
            new[group] = base.with_body({n: t + change[n] for n, t in base.body().items()})
        return Method.step(self, state, new, heads)
