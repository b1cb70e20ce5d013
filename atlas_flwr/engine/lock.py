"""One writer for one run directory: the lock goes with its process, however that ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from atlas_flwr.errors import ResultError

LOCK = ".writer.lock"
# The command's own, from before there is a writer to its end.
CLAIM = ".command.lock"
# A server whose command was killed notices, and ends.
PATIENCE = 30.0


@contextmanager
def held(path: Path, patience: float, taken: str) -> Iterator[None]:
    """Hold a lock file while the block runs.

    Args:
        path: The file.
        patience: Seconds to wait for another process that holds it.
        taken: What to say of one that doesn't let go.

    Raises:
        ResultError: It is held elsewhere, or can't be locked (a read-only or odd drive).
    """
    lock = FileLock(path, timeout=patience)
    try:
        lock.acquire()
    except Timeout as error:
        raise ResultError(taken) from error
    except OSError as error:
        raise ResultError(f"{path}: can't be locked ({error.strerror or error})") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def only_writer(out: Path, patience: float = PATIENCE) -> Iterator[None]:
    """Be the only process that writes a run directory while the block runs.

    Raises:
        ResultError: Another process still writes there.
    """
    taken = f"{out}: another process still writes there; wait for it to end, or stop it"
    with held(out / LOCK, patience, taken):
        yield
