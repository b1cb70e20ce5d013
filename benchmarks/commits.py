"""(g) What does a round's commit cost against writing the same bytes once?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from atlas_flwr.engine.checkpoint import Commit, settled, write_commit
from atlas_flwr.results.record import Bytes
from atlas_flwr.results.writing import write_synced
from atlas_flwr.seeding import rng_for
from atlas_flwr.types import LoraFactors, ModelParts
from benchmarks.measure import Ratio, in_turn
from benchmarks.sizes import Size
from strategies.state import State

CLIENTS, RANK = 100, 8
# The linear layers of MiniLM: (d_out, d_in) by how many there are.
MODULES = {(384, 384): 24, (1536, 384): 6, (384, 1536): 6}


def commit(size: Size) -> Ratio:
    """Measure a commit of personal adapters: encoding, SHA-256, synced files, rename, pruning."""
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as name:
        root = Path(name)
        state = settled(State(round=1, bodies=_personal()), (State,))
        folder = write_commit(root, Commit(1, state, Bytes(), 0.0, "bench"))
        data = b"".join(path.read_bytes() for path in folder.iterdir())
        pairs = in_turn(
            lambda: write_commit(root, Commit(1, state, Bytes(), 0.0, "bench")),
            lambda: write_synced(root / "plain", data),
            size.repetitions,
        )
    told = {"clients": CLIENTS, "rank": RANK, "megabytes": len(data) / 1e6}
    return Ratio("commit of a round", "its bytes written once", pairs, "<=", 4.0, told)


def _personal() -> dict[str, ModelParts]:
    """An adapter of its own for each client, as ATLAS keeps them."""
    shapes = [shape for shape, count in MODULES.items() for _ in range(count)]

    def drawn(client: int) -> ModelParts:
        rng = rng_for(0, "bench", 0, client)
        factors = {
            f"module-{i}": LoraFactors(
                rng.standard_normal((RANK, d_in), np.float32),
                rng.standard_normal((d_out, RANK), np.float32),
                2.0,
            )
            for i, (d_out, d_in) in enumerate(shapes)
        }
        return ModelParts(adapter=factors)

    return {f"client-{client}": drawn(client) for client in range(CLIENTS)}
