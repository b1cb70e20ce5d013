"""Peak memory as the machine counts it."""

from __future__ import annotations

import sys

import psutil
import torch


def reset_peak(device: torch.device) -> None:
    """Start CUDA's peak counter afresh; a process's peak resident set can't be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Return the peak in bytes.

    CUDA: the most that tensors held since ``reset_peak``. CPU: the most the process ever had
    resident, with everything it loaded.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # noqa: PLC0415 - the module does not exist on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
