"""A client's own disk: what must stay private, and what it was sent before, by round.

One safetensors file a round, written atomically. The parts that a commit of the last rounds counts
on stay beside the newest, so that a run can go on from any of them. Nothing here is ever sent.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from atlas_flwr.engine.checkpoint import KEPT
from atlas_flwr.errors import AtlasError
from atlas_flwr.flat import KINDS, flatten, unflatten
from atlas_flwr.results.writing import atomic_write
from atlas_flwr.types import ModelParts


class Vault:
    """Parts of one partition, kept under ``root/client-<partition>/<shelf>/``."""

    def __init__(self, root: Path, partition: int, shelf: str = "") -> None:
        self._root, self._partition, self._shelf = root, partition, shelf

    def save(self, round_: int, parts: ModelParts, since: int = 0) -> None:
        """Write the parts as of the end of a round, and remove what no commit can count on.

        A commit counts on the last parts up to its round; the one in progress will be the next.

        Args:
            round_: The round that made them.
            parts: What is kept.
            since: The round they continue from, which the server may ask for again: an answer can
                be lost on its way.
        """
        # safetensors writes the buffer as it lies: other layouts would come back scrambled.
        tensors = {
            f"{kind}/{name}": np.asarray(tensor, order="C")
            for kind, named in flatten(parts).items()
            for name, tensor in named.items()
        }
        scales = {module: factors.scale for module, factors in parts.adapter.items()}
        path = self._path(round_)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, save(tensors, metadata={"scales": json.dumps(scales)}))
        names = (found.stem.removeprefix("round-") for found in path.parent.glob("round-*"))
        rounds = {int(name) for name in names if name.isdecimal()}  # "round-3 (1)" is a drive's
        oldest = max((r for r in rounds if r <= round_ - 1 - KEPT), default=0)
        for old in rounds - {round_, since}:
            if old < oldest:
                self._path(old).unlink()

    def load(self, round_: int) -> ModelParts:
        """Return the parts as of the end of a round.

        Raises:
            AtlasError: The vault does not hold that round; the partition is named.
        """
        path = self._path(round_)
        if not path.is_file():
            raise AtlasError(
                f"partition {self._partition}: its own parts of round {round_} are missing "
                f"({path}); the client's disk was lost or another run's folder is used"
            )
        kinds: dict[str, dict[str, object]] = {kind: {} for kind in KINDS}
        with safe_open(path, framework="numpy") as file:
            scales = json.loads((file.metadata() or {}).get("scales", "{}"))
            for key in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
                kind, _, name = key.partition("/")
                kinds[kind][name] = file.get_tensor(key)
        return unflatten(kinds, scales)  # type: ignore[arg-type]

    def _path(self, round_: int) -> Path:
        return self._root / vault_name(self._partition, round_, self._shelf)


def vault_name(partition: int, round_: int, shelf: str = "") -> str:
    """Return where a partition's parts of a round lie in the vault."""
    folder = f"client-{partition}/{shelf}" if shelf else f"client-{partition}"
    return f"{folder}/round-{round_}.safetensors"
