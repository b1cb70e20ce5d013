"""GPUs, processors, memory, disks, limits, clock."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

import psutil

from atlas_flwr import host
from atlas_flwr.apps.doctor.checks import Check, fail, ok, warn
from atlas_flwr.results.provenance import said

GB = 10**9
_LITTLE_RAM = 4 * GB  # a client on MiniLM takes about 2 GB with Ray beside it
_LITTLE_DISK = 5 * GB  # Ray's own files, and models of the hub
_NO_DISK = GB // 2
_SHM = GB
_FILES = 4096
_BUILT = 1_735_689_600  # 2025-01-01: no machine that runs this is older


def gpu() -> list[Check]:
    """Look for GPUs, and whether this torch can use them."""
    import torch  # noqa: PLC0415 - the doctor is asked when torch is broken, too

    build = f"torch {torch.__version__}, " + (
        f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    )
    if torch.cuda.is_available():
        return [ok("GPU", f"{build}"), *(_card(i) for i in range(torch.cuda.device_count()))]
    driver = _driver()
    if driver is None:
        return [ok("GPU", f"none, clients run on the CPU ({build})")]
    if not torch.version.cuda:
        mend = "install the CUDA build of torch: https://pytorch.org/get-started/locally"
        return [warn("GPU", f"{driver} is there, but {build}", mend)]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden in ("", "-1"):
        return [
            warn("GPU", f"hidden by CUDA_VISIBLE_DEVICES='{hidden}'", "unset it to use the GPU")
        ]
    mend = "update the NVIDIA driver, or install a torch built for an older CUDA"
    return [warn("GPU", f"{driver} is there, but {build} can't use it", mend)]


def _card(index: int) -> Check:
    import torch  # noqa: PLC0415 - as above

    name, (free, total) = torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)
    told = f"{name}, {free / GB:.1f} of {total / GB:.1f} GB free"
    if free < total / 2:
        mend = "end what else runs there (nvidia-smi names it), or expect fewer clients at a time"
        return warn(f"GPU {index}", told, mend)
    return ok(f"GPU {index}", told)


def _driver() -> str | None:
    """Return the first GPU as the driver names it; None without a driver."""
    told = said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return told.splitlines()[0] if told else None


def precision() -> list[Check]:
    """Say what ``train.precision = "auto"`` would take."""
    import torch  # noqa: PLC0415 - as above

    from atlas_flwr.training.precision import cpu_has_bf16  # noqa: PLC0415

    if torch.cuda.is_available():
        half = torch.cuda.get_device_capability()[0] >= 8
        return [
            ok("precision", "bf16 on the GPU" if half else "fp16 on the GPU, which has no bf16")
        ]
    told = "bf16: the CPU has instructions for it" if cpu_has_bf16() else "fp32 on this CPU"
    return [ok("precision", told)]


def cpu() -> list[Check]:
    """Look at the processors this process may use, and the threads that would share them."""
    there, allowed = psutil.cpu_count() or 1, host.cores()
    told = f"{allowed} of {there} cores" if allowed < there else f"{there} cores"
    load = psutil.getloadavg()[0]
    if load > 2 * there:
        mend = "expect runs to take longer, or wait until other work has ended"
        return [warn("CPU", f"{told}, {load:.0f} programs want them", mend)]
    return [ok("CPU", f"{told}: as many clients at a time, unless engine.workers says otherwise")]


def memory() -> list[Check]:
    """Look at the main memory that is left."""
    found = host.memory()
    told = f"{found.available / GB:.1f} of {found.total / GB:.1f} GB available"
    if found.available < _LITTLE_RAM:
        return [warn("memory", told, "lower engine.workers, or use --engine inline")]
    return [ok("memory", told)]


def shared_memory(folder: Path = Path("/dev/shm")) -> list[Check]:
    """Look at the shared memory that Ray keeps its objects in."""
    if not folder.is_dir():
        return []  # not Linux: Ray uses ordinary memory there
    free = shutil.disk_usage(folder).free
    told = f"{free / GB:.1f} GB free in {folder}"
    if free < _SHM:
        mend = "start the container with --shm-size=2g, or use --engine inline"
        return [warn("shared memory", told, mend)]
    return [ok("shared memory", told)]


def disk() -> list[Check]:
    """Look at the room here and in the temporary folder, and whether both may be written."""
    return [*_room("this folder", Path.cwd()), *_room("temporary files", _temporary())]


def _temporary() -> Path:
    return Path(tempfile.gettempdir())


def _room(name: str, folder: Path) -> list[Check]:
    free = shutil.disk_usage(folder).free
    told = f"{free / GB:.1f} GB free in {folder}"
    if not os.access(folder, os.W_OK):
        return [warn(name, f"{folder} can't be written", "go to another folder, or name --out")]
    if free < _NO_DISK:
        return [fail(name, told, "make room; run.mirror and --out may name another disk")]
    if free < _LITTLE_DISK:
        return [warn(name, told, "make room: hub models and Ray's files take gigabytes")]
    return [ok(name, told)]


def files() -> list[Check]:
    """Look at how many files a process may open: Ray opens many."""
    try:
        import resource  # noqa: PLC0415 - the module does not exist on Windows
    except ImportError:
        return []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FILES:
        most = "unlimited" if hard == resource.RLIM_INFINITY else hard
        mend = f"ulimit -n {_FILES} before atlas (the system allows {most})"
        return [warn("open files", f"{soft} at most", mend)]
    return [ok("open files", "any number" if soft < 0 else f"{soft} at most")]


def clock() -> list[Check]:
    """Look whether the date can be true: certificates are checked against it."""
    now = time.time()
    told = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    if now < _BUILT:
        return [warn("clock", told, "set it: TLS refuses certificates of the future")]
    return [ok("clock", told)]
