"""What this process may use of the machine; in a container that is less than the machine has."""

from __future__ import annotations

import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
# As a container sees its own group: version 2, then version 1.
_MEMORY = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
_CACHE = ("inactive_file", "total_inactive_file")  # what the kernel gives back when asked for room


@dataclass(frozen=True)
class Memory:
    """Main memory, in bytes.

    Attributes:
        available: What is left, caches that can be dropped included.
        total: All there is, or the container's limit.
    """

    available: int
    total: int


def cores(cgroups: Path = CGROUPS) -> int:
    """Return how many cores this process may keep busy: its affinity, within the container's quota.

    A part of a core counts as one.

    Args:
        cgroups: Where the kernel shows control groups.
    """
    there = psutil.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        there = len(os.sched_getaffinity(0))
    both = _text(cgroups / "cpu.max").split() or [
        _text(cgroups / f"cpu/cpu.cfs_{name}_us") for name in ("quota", "period")
    ]
    quota, period = (int(word) if word.isdecimal() else 0 for word in both)
    return min(there, math.ceil(quota / period)) if quota and period else there


def memory(cgroups: Path = CGROUPS) -> Memory:
    """Return the main memory that this process may use, within the container's limit.

    Args:
        cgroups: Where the kernel shows control groups.
    """
    host = psutil.virtual_memory()
    for limit_file, used_file, stat_file in _MEMORY:
        limit, used = _number(cgroups / limit_file), _number(cgroups / used_file)
        if limit is not None and used is not None and limit < host.total:
            held = max(0, used - _cache(cgroups / stat_file))
            return Memory(min(int(host.available), max(0, limit - held)), limit)
    return Memory(int(host.available), int(host.total))


def peak_resident(status: Path = Path("/proc/self/status")) -> int:
    """Return the most that this process ever had resident, in bytes.

    Linux's ``getrusage`` is no answer: a process that was started by a larger one begins with the
    peak of that one (its ``ru_maxrss`` survives ``exec``), so the kernel's mark of the memory that
    is this program's own is read, where it is shown.

    Args:
        status: Where the kernel shows that mark, as ``VmHWM``.
    """
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    if mark := re.search(r"^VmHWM:\s*(\d+) kB$", _text(status), flags=re.MULTILINE):
        return int(mark[1]) * 1024
    import resource  # noqa: PLC0415 - the module does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _number(path: Path) -> int | None:
    """Return a file's number; None where there is none, or ``max``, which means no limit."""
    text = _text(path)
    return int(text) if text.isdecimal() else None


def _cache(path: Path) -> int:
    lines = [line.split() for line in _text(path).splitlines()]
    found = {words[0]: int(words[1]) for words in lines if len(words) == 2}
    return max((found[name] for name in _CACHE if name in found), default=0)


def _text(path: Path) -> str:
    """Return what the kernel says; nothing where there is no such group, or nobody may look."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
