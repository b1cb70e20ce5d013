"""The client of sparse communication (FLASC): dense training, a sparse movement back."""

from __future__ import annotations

from atlas_flwr.aggregation.sparse import keep_largest, lost
from atlas_flwr.training.local import TrainResult
from atlas_flwr.types import Array, ModelParts, Scalar
from clients.lora import LoraClient


class SparseClient(LoraClient):
    """Sends back the largest entries of how far the adapter moved; the head travels whole.

    The job's ``up-density`` says how many; the answer's ``compression_error`` is the share of the
    movement's norm that stayed behind.
    """

    def _trained(self, start: ModelParts) -> ModelParts:
        """Return the adapter's movement, all but its largest entries set to zero."""
        trained = super()._trained(start)
        before, after = start.body(), trained.body()
        moved = {name: after[name] - before[name] for name in after}
        kept = keep_largest(moved, float(self.job.options["up-density"]))
        self._lost = lost(moved, kept)
        return trained.with_body(kept)

    def _answer(
        self, returned: ModelParts, result: TrainResult
    ) -> tuple[list[Array], int, dict[str, Scalar]]:
        arrays, rows, told = super()._answer(returned, result)
        if self._lost is not None:
            told["compression_error"] = self._lost
        return arrays, rows, told
