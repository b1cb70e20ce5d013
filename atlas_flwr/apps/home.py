"""What a node is told at home: its partition, and in a deployment its own folders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_flwr.data.folder import read_facts
from atlas_flwr.errors import DataError, WireError
from atlas_flwr.greeting import PARTITION_ID
from atlas_flwr.holding import Holding

DATA_PATH, VAULT_PATH = "data-path", "vault-path"


@dataclass(frozen=True)
class Home:
    """One node's config, read.

    Attributes:
        partition: Which client it is.
        data: Its own rows; None where the run's data are dealt to it.
        vault: Where it keeps what is private; None for the run directory.
    """

    partition: int
    data: Path | None = None
    vault: Path | None = None

    def holding(self) -> Holding:
        """Return what the client says of its rows when it is greeted.

        Raises:
            DataError: Its folder is missing or wrong.
        """
        if self.data is None:
            return Holding(own_vault=self.vault is not None)
        facts = read_facts(self.data, self.partition)
        return Holding(True, True, facts.train_rows, facts.score_rows, facts.task, facts.labels)


def read_home(node_config: Mapping[str, Any]) -> Home:
    """Return what a node's config says; the vault lies in ``data-path`` unless it has a place.

    Raises:
        WireError: ``partition-id`` is missing or no integer.
        DataError: A path is not an absolute one: who starts a message's process picks its folder.
    """
    partition = node_config.get(PARTITION_ID)
    if not isinstance(partition, int) or isinstance(partition, bool):
        raise WireError(f"node config: {PARTITION_ID} must be an integer, got {partition!r}")
    data, vault = (_folder(node_config, key) for key in (DATA_PATH, VAULT_PATH))
    if data is not None and vault is None:
        vault = data / "vault"
    return Home(partition, data, vault)


def _folder(node_config: Mapping[str, Any], key: str) -> Path | None:
    if key not in node_config:
        return None
    value = node_config[key]
    if not isinstance(value, str) or not Path(value).is_absolute():
        raise DataError(f"node config: {key} must be an absolute path, got {value!r}")
    return Path(value)
