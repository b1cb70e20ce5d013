"""Folders that are whole or not there: renamed into place, synced; and digests.

``passed`` names the moments of a commit; tests stop the process there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from atlas_flwr.results.writing import naming

# In the order a round passes them; `mirrored` only where a run has a mirror.
COMMIT_POINTS = (
    *("round-ended", "rows-written", "files-written", "manifest-written", "renamed", "pruned"),
    *("mirror-filled", "mirrored"),
)
END_POINTS = ("scored", "exported", "closed")


# What a file system answers that has no way to sync a folder: some network and cloud drives.
_CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)

# Who is told of each; nobody, but in tests.
WATCHERS: list[Callable[[str], None]] = []


def passed(point: str) -> None:
    """A named moment of a run has come: it makes no difference when the process dies here."""
    for told in WATCHERS:
        told(point)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's list of names is on the disk, where the system and the drive can.

    Raises:
        OSError: The drive failed; the error names the folder.
    """
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)


def move_into_place(made: Path, path: Path) -> None:
    """Give a finished folder its name; one that had the name is removed after it gave way."""
    sync_folder(made)
    old = path.with_name(f".{path.name}.old")
    remove(old)
    if path.exists():
        os.replace(path, old)
    os.replace(made, path)
    sync_folder(path.parent)
    remove(old)


def remove(folder: Path) -> None:
    """Remove a folder; none is no error."""
    if folder.exists():
        shutil.rmtree(folder)


def digest(data: bytes) -> str:
    """Return the SHA-256 of bytes in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
