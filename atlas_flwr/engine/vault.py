"""A client's own disk: what must stay private, and what it was sent before, by round.

One safetensors file a round, written atomically. The parts a round started from stay beside those
it made, so that it can be repeated. Nothing here is ever sent.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from atlas_flwr.errors import AtlasError
from atlas_flwr.flat import KINDS, flatten, unflatten
from atlas_flwr.types import ModelParts


class Vault:
    """Parts of one partition, kept under ``root/client-<partition>/<shelf>/``."""

    def __init__(self, root: Path, partition: int, shelf: str = "") -> None:
        self._folder = root / f"client-{partition}" / shelf
        self._partition = partition

    def save(self, round_: int, parts: ModelParts, since: int = 0) -> None:
        """Write the parts as of the end of a round; only those they came from stay beside them.

        Args:
            round_: The round that made them.
            parts: What is kept.
            since: The round they continue from, which the server may ask for again: an answer can
                be lost on its way.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        # safetensors writes the buffer as it lies: other layouts would come back scrambled.
        tensors = {
            f"{kind}/{name}": np.asarray(tensor, order="C")
            for kind, named in flatten(parts).items()
            for name, tensor in named.items()
        }
        scales = {module: factors.scale for module, factors in parts.adapter.items()}
        path = self._path(round_)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        save_file(tensors, temporary, metadata={"scales": json.dumps(scales)})
        os.replace(temporary, path)
        rounds = {int(p.stem.removeprefix("round-")) for p in self._folder.glob("round-*")}
        for old in rounds - {round_, since}:
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
        return self._folder / f"round-{round_}.safetensors"
