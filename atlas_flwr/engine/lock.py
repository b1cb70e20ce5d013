"""One writer for one run directory: the lock goes with its process, however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from atlas_flwr.errors import ResultError

LOCK = ".writer.lock"
# A server whose command was killed notices, and ends.
PATIENCE = 30.0


@contextmanager
def only_writer(out: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Be the only process that writes a run directory while the block runs.

    Raises:
        ResultError: Another process still writes there.
    """
    lock = FileLock(out / LOCK, timeout=patience)
    try:
        lock.acquire()
    except Timeout as error:
        raise ResultError(
            f"{out}: another process still writes there; wait for it to end, or stop it"
        ) from error
    try:
        yield
    finally:
        lock.release()
