"""What a container may use: the kernel's own files, of both versions, in a folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from atlas_flwr import host
from atlas_flwr.host import peak_resident

GB = 10**9
TWO = ("memory.max", "memory.current", "memory.stat")
ONE = ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat")


def group(folder: Path, names: tuple[str, ...], limit: str, used: int, cache: str) -> Path:
    for name, text in zip(names, (limit, str(used), cache), strict=True):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("names", "cache"),
    [(TWO, "anon 1\ninactive_file 200000000"), (ONE, "cache 9\ntotal_inactive_file 200000000")],
)
def test_a_container_has_its_limit_less_what_it_can_t_give_back(
    tmp_path: Path, names: tuple[str, ...], cache: str
) -> None:
    found = host.memory(group(tmp_path, names, str(GB), 900_000_000, cache))
    assert found.total == GB
    assert found.available == min(300_000_000, psutil.virtual_memory().available)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", "not a number"])
def test_no_limit_is_the_whole_machine(tmp_path: Path, limit: str) -> None:
    found = host.memory(group(tmp_path, TWO, limit, 1, ""))
    assert found.total == psutil.virtual_memory().total
    assert 0 < found.available <= found.total
    assert host.memory(tmp_path / "none").total == found.total


def test_a_full_container_has_nothing_left(tmp_path: Path) -> None:
    assert host.memory(group(tmp_path, TWO, "1000", 5000, "")).available == 0


@pytest.mark.parametrize(
    ("quota", "period", "cores"), [("50000", "100000", 1), ("150000", "100000", 2), ("-1", "1", 8)]
)
def test_a_quota_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, period: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert host.cores(tmp_path) == 8
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(f"{period}\n")
    assert host.cores(tmp_path) == cores
    (tmp_path / "cpu.max").write_text(f"{quota.replace('-1', 'max')} {period}\n")
    assert host.cores(tmp_path) == cores


def test_cores_are_those_that_may_be_used() -> None:
    assert 1 <= host.cores() <= len(os.sched_getaffinity(0))


_CHILD = "from atlas_flwr.host import peak_resident; print(peak_resident())"
_PARENT = f"""
import subprocess, sys
held = bytearray(400 * 2**20)
held[::4096] = b"x" * len(held[::4096])
print(subprocess.check_output([sys.executable, "-c", {_CHILD!r}], text=True))
from atlas_flwr.host import peak_resident
print(peak_resident())
"""


def test_a_peak_is_not_that_of_the_process_that_started_it() -> None:
    """A suite, a notebook or a test that holds much starts processes whose memory is measured."""
    said = subprocess.check_output([sys.executable, "-c", _PARENT], text=True).split()
    child, parent = map(int, said)
    assert 2**20 < child < 300 * 2**20
    assert 400 * 2**20 < parent < 700 * 2**20


def test_a_peak_where_the_kernel_shows_no_mark(tmp_path: Path) -> None:
    import resource  # noqa: PLC0415 - not on Windows

    least = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    factor = 1 if sys.platform == "darwin" else 1024
    assert peak_resident(tmp_path / "status") >= least * factor
    (tmp_path / "status").write_text("Name:\tpython\nVmHWM:\t    2128 kB\nVmRSS:\t 5 kB\n")
    assert peak_resident(tmp_path / "status") == 2128 * 1024
