"""Names that become files and folders: the same on Linux, macOS and Windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

# Windows keeps these for devices, with any ending and in any case.
_DEVICES = {"con", "prn", "aux", "nul", *(f"{d}{i}" for d in ("com", "lpt") for i in range(1, 10))}


def checked_name(name: str) -> str:
    """Return the name.

    Raises:
        ValueError: No file of that name can be on Windows.
    """
    if name.partition(".")[0].lower() in _DEVICES:
        raise ValueError("is a device's name on Windows, which can't be a file's; take another")
    if name.endswith("."):
        raise ValueError("ends with a dot, which Windows leaves out of a file's name; drop it")
    return name


def twice(names: Sequence[str]) -> str | None:
    """Return the first name that was there before, in whatever case, for a disk may not tell.

    >>> twice(["a", "B", "b"])
    'b'
    """
    seen: set[str] = set()
    for name in names:
        if name.lower() in seen:
            return name
        seen.add(name.lower())
    return None


Name = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"), AfterValidator(checked_name)
]
