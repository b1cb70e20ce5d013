"""Peak memory as the machine counts it, and what to do when there is too little."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import psutil
import torch

from atlas_flwr import host
from atlas_flwr.errors import AtlasError
from atlas_flwr.results.provenance import said

T = TypeVar("T")
MEND = "lower model.max-length or engine.workers, or choose a smaller model"


def with_smaller_batches(run: Callable[[int], T], batch_size: int, what: str) -> T:
    """Return ``run(batch_size)``, with half the batch size each time memory runs out.

    Args:
        run: Called with a number of rows; it starts afresh each time.
        batch_size: Rows to begin with, at least 1.
        what: Word for the error.

    Raises:
        AtlasError: There is too little memory for a single row.
    """
    while True:
        try:
            return run(batch_size)
        except torch.OutOfMemoryError as error:
            if batch_size == 1:
                raise AtlasError(f"{what}: out of memory with a single row; {MEND}") from error
        # Outside the handler: the traceback, and the tensors its frames hold, are gone.
        batch_size //= 2
        give_back()


@contextmanager
def memory_given_back() -> Iterator[None]:
    """Let go of the memory that a job held when it failed: its process goes on with other jobs.

    Also a decorator.

    Raises:
        AtlasError: In place of running out of a GPU's memory where nothing can be made smaller.
    """
    try:
        yield
    except Exception as error:
        _forget(error)
        give_back()
        if isinstance(error, torch.OutOfMemoryError):
            raise AtlasError(f"out of GPU memory; lower train.batch-size, {MEND}") from None
        raise


def give_back() -> None:
    """Return what no tensor uses to the GPU, where other processes may need it."""
    gc.collect()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _forget(error: BaseException | None) -> None:
    """Clear the local variables, tensors among them, that an error's frames hold."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


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
    return host.peak_resident()


# What a process holds on a GPU before its first tensor, where nothing tells it: 300 to 500 MB on
# cards of 2018 to 2023, by what their users report; not measured here.
CONTEXT_BYTES = 600 * 10**6


def process_bytes(device: torch.device) -> int:
    """Return the most that this process ever held, with all that it holds beside tensors, in bytes.

    CUDA: the allocator's pool at its largest, and the context. CPU: the peak resident set.
    """
    if device.type != "cuda":
        return peak_bytes(device)
    return int(torch.cuda.max_memory_reserved(device)) + _context_bytes(device)


def device_memory(device: torch.device) -> tuple[int, int]:
    """Return what others leave free of a device, and its whole memory, in bytes.

    CUDA: of the visible GPU that has least free. CPU: main memory. What this process holds counts
    as free: it is about to end.
    """
    if device.type != "cuda":
        memory = host.memory()
        return memory.available + int(psutil.Process().memory_info().rss), memory.total
    own = int(torch.cuda.memory_reserved(device)) + _context_bytes(device)
    found = [torch.cuda.mem_get_info(index) for index in range(torch.cuda.device_count())]
    here = device.index or 0
    left = [
        (min(total, free + own) if index == here else free, total)
        for index, (free, total) in enumerate(found)
    ]
    return min(left)


def _context_bytes(device: torch.device) -> int:
    """Return what the process holds on a GPU beside its tensors; an assumption if nobody tells."""
    query = ("--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits")
    rows = [line.split(",") for line in (said("nvidia-smi", *query) or "").splitlines()]
    try:
        used = [int(mib) for pid, mib in rows if int(pid) == psutil.Process().pid]
    except ValueError:  # "[N/A]" in some containers
        return CONTEXT_BYTES
    reserved = int(torch.cuda.memory_reserved(device))
    return max(0, sum(used) * 2**20 - reserved) if used else CONTEXT_BYTES
