"""What a client says when it is greeted: which partition it is, and how many rows it declares."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ConfigRecord, RecordDict

from atlas_flwr.errors import WireError
from atlas_flwr.payload import shown

HELLO = "query.hello"
PARTITION_ID = "partition-id"  # Flower's own node-config key
ROWS, OWN_ROWS = "rows", "own-rows"
_HELLO = "hello"


def pack_hello(partition: int, declared: Mapping[str, int] | None = None) -> RecordDict:
    """Return a client's answer to ``query.hello``.

    Args:
        partition: Which client it is.
        declared: Its rows by ``ROWS`` (to train on) and ``OWN_ROWS`` (its own slice), where it
            knows them.
    """
    return RecordDict({_HELLO: ConfigRecord({PARTITION_ID: partition, **(declared or {})})})


def read_hello(content: RecordDict) -> int:
    """Return the partition a client says it is.

    Raises:
        WireError: The answer names no partition.
    """
    record = content.config_records.get(_HELLO, ConfigRecord())
    partition = record.get(PARTITION_ID)
    if type(partition) is not int or partition < 0:
        raise WireError(f"hello: {PARTITION_ID} must be an integer >= 0, got {shown(partition)}")
    return partition


def read_declared(content: RecordDict) -> dict[str, int]:
    """Return the rows a client declares, by ``ROWS`` and ``OWN_ROWS``, where it does.

    Raises:
        WireError: A declaration is not an integer >= 0.
    """
    record = content.config_records.get(_HELLO, ConfigRecord())
    declared: dict[str, int] = {}
    for key in (ROWS, OWN_ROWS):
        if key not in record:
            continue
        rows = record[key]
        if type(rows) is not int or rows < 0:
            raise WireError(f"hello: {key} must be an integer >= 0, got {shown(rows)}")
        declared[key] = rows
    return declared
