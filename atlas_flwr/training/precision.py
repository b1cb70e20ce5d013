"""Devices and number formats: what was asked, resolved against what is there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Literal

import torch

from atlas_flwr.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]
DeviceChoice = Literal["auto", "cpu", "cuda"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(choice: DeviceChoice) -> torch.device:
    """Return the device to train on; ``"auto"`` takes CUDA where this process sees it.

    Raises:
        UserError: ``"cuda"`` was asked for and this process sees none (Flower hides the GPU from
            clients whose share of it is 0): training on the CPU instead would be silent.
    """
    visible = torch.cuda.is_available()
    if choice == "cuda" and not visible:
        raise UserError(
            "engine.device: 'cuda' was asked for, but this process sees no CUDA device; set "
            "engine.device = 'cpu', or give clients a share with engine.gpus-per-client"
        )
    return torch.device("cuda" if choice != "cpu" and visible else "cpu")


def device_name(device: torch.device) -> str:
    """Return ``"cpu"``, or the GPU's name as its driver gives it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def choose_precision(choice: PrecisionChoice, device: torch.device) -> Precision:
    """Return the number format of the forward pass.

    ``"auto"``: on CUDA bf16 from compute capability 8 on, else fp16 (with loss scaling); on a CPU
    bf16 only if it has instructions for it (AVX512-BF16, AMX-BF16), for emulation is slower than
    fp32. The parameters and the optimizer stay float32 in all cases.

    Raises:
        UserError: fp16 on a CPU, which has no loss scaling to go with it.
    """
    if choice == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(device)[0] >= 8 else "fp16"
        return "bf16" if cpu_has_bf16() else "fp32"
    if choice == "fp16" and device.type == "cpu":
        raise UserError("train.precision: 'fp16' needs a GPU; on a CPU use 'auto' or 'fp32'")
    return choice


def cpu_has_bf16() -> bool:
    """Tell whether the CPU multiplies bf16 natively."""
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context a forward pass runs in; fp32 gives one that does nothing."""
    if precision == "fp32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


@contextlib.contextmanager
def threads_of(threads: int) -> Iterator[None]:
    """Run with that many torch threads, and put the number back afterwards.

    Float sums depend on the number of threads; a fixed one makes a job's bits repeatable.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run with torch's generators at ``seed``; their former states come back afterwards."""
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield
