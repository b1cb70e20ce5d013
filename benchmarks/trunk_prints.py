"""Fingerprints that take gradients of the whole model: the older ones, on the clients of a draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.fingerprint.features import Kind, fingerprint
from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.training.batches import TokenTable
from atlas_flwr.types import Array, Tensors
from benchmarks.task_clients import FLIPPED, Client, tables_of


@dataclass(frozen=True)
class Named:
    """A table some of whose rows have other labels."""

    table: TokenTable
    labels: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Number of tokens of each row."""
        return self.table.lengths

    def __len__(self) -> int:
        return len(self.table)

    def batch(self, indices: NDArray[np.int64], pad_token_id: int) -> dict[str, NDArray[np.int64]]:
        """Return the table's batch under the other labels."""
        return self.table.batch(indices, pad_token_id) | {"labels": self.labels[indices]}


@dataclass
class Trunk:
    """The seeded model and the tasks' rows; what was measured for one method serves the next."""

    loaded: LoadedModel
    tables: dict[str, tuple[TokenTable, Array]]
    done: dict[tuple[Kind, int, bytes], list[Tensors]] = field(default_factory=dict)

    @classmethod
    def open(cls, names: Sequence[str], glue: Path | None, rows: int) -> Trunk:
        """Return those of ``tables_of``."""
        return cls(*tables_of(names, glue, rows))

    def prints(self, kind: Kind, clients: Sequence[Client], seed: int) -> list[Tensors]:
        """Return each client's fingerprint, as a run takes it at the shared start."""
        key = kind, seed, b"".join(c.rows.tobytes() for c in clients)
        if key not in self.done:
            self.done[key] = [self._print(kind, c, seed, i) for i, c in enumerate(clients)]
        return self.done[key]

    def _print(self, kind: Kind, client: Client, seed: int, index: int) -> Tensors:
        table, at = self.tables[client.task.removesuffix(FLIPPED)]
        rows = at[client.rows]
        labels = table.labels.copy()
        labels[rows] = client.labels
        rng = np.random.default_rng([seed, index])
        named = Named(table, labels)
        return fingerprint(
            self.loaded, named, rows, client.classes, seed=seed, rng=rng, kind=kind, device="cpu"
        )
