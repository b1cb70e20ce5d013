"""Disks that fill up, folders that can't be written, clients that run out of memory or time."""

from __future__ import annotations

import builtins
import errno
import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from atlas_flwr.engine import vault
from clients.base import FineTuneClient
from fakes import write_experiment
from runs import Run, Said, assert_refused

pytestmark = pytest.mark.usefixtures("no_report")
FULL = "No space left on device"


class Disk:
    """Counts what is written below a folder, and is full from a given write on.

    The write that meets the full disk gets half of its bytes onto it, as a real one may.
    """

    def __init__(self, folder: Path, full_at: int | None = None) -> None:
        self.folder, self.full_at, self.writes = folder, full_at, list[str]()

    def takes(self, path: str) -> bool:
        """Count a write, and say whether there is room for it."""
        self.writes.append(self._kind(path))
        return self.full_at is None or len(self.writes) < self.full_at

    def holds(self, path: object) -> bool:
        return isinstance(path, str | os.PathLike) and str(path).startswith(f"{self.folder}/")

    def _kind(self, path: str) -> str:
        """Return a file's name without numbers: what is written again counts as the same."""
        return re.sub(r"\d+", "N", str(Path(path).relative_to(self.folder)))


def no_room(path: str) -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


class Writer:
    """A file on a disk that may be full; all but ``write`` is the real file's."""

    def __init__(self, file: Any, path: str, disk: Disk) -> None:
        self._file, self._path, self._disk = file, path, disk

    def write(self, data: Any) -> int:
        if not self._disk.takes(self._path):
            self._file.write(data[: len(data) // 2])
            self._file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the system names no file
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._file)


@pytest.fixture
def on() -> Callable[[Disk], Any]:
    """Put a disk below everything that Python writes: ``open`` and ``os.write``."""

    @contextmanager
    def use(disk: Disk) -> Iterator[Disk]:
        opened, written, read = io.open, os.write, os.readlink

        def open_(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            found = opened(file, mode, *more, **named)
            plain = "r" in mode and "+" not in mode
            return found if plain or not disk.holds(file) else Writer(found, str(file), disk)

        def write_(descriptor: int, data: Any) -> int:
            path = read(f"/proc/self/fd/{descriptor}")
            if disk.holds(path) and not disk.takes(path):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return written(descriptor, data)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(io, "open", open_)
            patch.setattr(builtins, "open", open_)
            patch.setattr(os, "write", write_)
            yield disk

    return use


@pytest.fixture
def home(tree: dict[str, Any], tmp_path: Path) -> Callable[[str], tuple[str | Path, ...]]:
    """Give the command of a run whose clients keep their heads in a vault."""
    sections = {"model": {"head": "local"}, "run": {"rounds": 2, "clients": 2}}
    file = write_experiment(tmp_path / "e.toml", tree, **sections)
    return lambda out: ("run", file, "--out", tmp_path / out)


def check_full(
    atlas: Callable[..., Said],
    said: Said,
    out: Path,
    command: tuple[Any, ...],
    whole: dict[str, bytes],
) -> None:
    """Check what is said of a full disk, and that the run goes on once there is room."""
    assert said.code == 1, said
    (line,) = said.err.splitlines()
    assert FULL in line
    assert str(out) in line
    assert "Traceback" not in said.out + said.err
    begun = (out / "config.toml").exists()
    assert (f"go on with: atlas resume {out}" in line) == begun
    again = atlas("resume", out) if begun else atlas(*command)
    assert again.code == 0, again
    found = Run.read(out)
    assert found.tensors() == whole
    assert [line["round"] for line in found.rounds] == [1, 2]


@pytest.fixture
def whole(
    atlas: Callable[..., Said], home: Callable[..., Any], on: Callable[..., Any], tmp_path: Path
) -> tuple[dict[str, bytes], list[str]]:
    """Give the undisturbed run's tensors, and the files it writes, in order."""
    with on(Disk(tmp_path / "whole")) as disk:
        assert atlas(*home("whole")).code == 0
    return Run.read(tmp_path / "whole").tensors(), disk.writes


def fills_up_at(
    n: int,
    atlas: Callable[..., Said],
    home: Callable[..., Any],
    on: Callable[..., Any],
    whole: dict[str, bytes],
    tmp_path: Path,
) -> None:
    """Run with a disk that is full from the n-th write on, check, and go on."""
    out = tmp_path / f"full-{n}"
    with on(Disk(out, n)):
        said = atlas(*home(out.name))
    check_full(atlas, said, out, home(out.name), whole)


def test_a_disk_may_fill_up_at_any_kind_of_file(
    atlas: Callable[..., Said],
    home: Callable[..., Any],
    on: Callable[..., Any],
    whole: tuple[dict[str, bytes], list[str]],
    tmp_path: Path,
) -> None:
    """The last write of each kind, since then the most is there to be lost."""
    tensors, writes = whole
    kinds = {kind: number for number, kind in enumerate(writes, start=1)}
    assert len(kinds) > 12
    for number in kinds.values():
        fills_up_at(number, atlas, home, on, tensors, tmp_path)


@pytest.mark.slow
def test_a_disk_may_fill_up_at_any_write(
    atlas: Callable[..., Said],
    home: Callable[..., Any],
    on: Callable[..., Any],
    whole: tuple[dict[str, bytes], list[str]],
    tmp_path: Path,
) -> None:
    tensors, writes = whole
    # Not the first: the run's folder is claimed by it, before anything is begun.
    for number in range(2, len(writes) + 1):
        fills_up_at(number, atlas, home, on, tensors, tmp_path)


def test_a_disk_may_fill_up_below_safetensors(
    atlas: Callable[..., Said],
    home: Callable[..., Any],
    whole: tuple[dict[str, bytes], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its files are written in Rust, whose error is of a kind of its own."""

    def full(tensors: Any, path: str, metadata: Any = None) -> None:
        raise SafetensorError(f"I/O error: {FULL} (os error 28)")

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("atlas_flwr.models.export.save_file", full)
        said = atlas(*home("out"))
    check_full(atlas, said, out, home("out"), whole[0])


def test_a_client_whose_disk_is_full_is_lost_by_name(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        if "client-1" in str(path):
            raise no_room(str(path))
        real(path, data)

    real = vault.atomic_write
    monkeypatch.setattr(vault, "atomic_write", full)
    found = run(model={"head": "local"}, run={"on-failure": "skip"})
    rows = found.clients[found.clients.status != "ok"]
    assert set(rows.partition) == {1}
    assert all(FULL in error and "vault/client-1" in error for error in rows.error)
    assert found.summary["status"] == "completed"


@pytest.mark.parametrize("place", ["/proc/atlas", "a-file/run"])
def test_a_folder_that_cant_be_written(
    refused: Callable[..., None], atlas: Callable[..., Said], home: Any, place: str, tmp_path: Path
) -> None:
    """Also for root, whom permissions don't stop."""
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("needs /proc, a folder that nobody can write to")
    (tmp_path / "a-file").write_text("a letter")
    said = atlas(*home("x")[:-1], tmp_path / place)
    assert_refused(said, str(tmp_path / place), "can't be written")
    assert (tmp_path / "a-file").read_text() == "a letter"


# ------------------------------------------------------------------ clients


def test_a_client_out_of_memory_is_lost_by_name(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing can be made smaller, here an optimizer's state; the others go on."""
    real = FineTuneClient.fit

    def fit(self: FineTuneClient, parameters: Any, config: Any) -> Any:
        if self.job.partition == 1 and self.job.round == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(self, parameters, config)

    monkeypatch.setattr(FineTuneClient, "fit", fit)
    found = run(run={"on-failure": "skip"})
    (row,) = found.clients[found.clients.status != "ok"].itertuples()
    assert (row.partition, row.round, row.phase) == (1, 1, "train")
    assert "out of GPU memory" in row.error
    assert "train.batch-size" in row.error
    strict = run("strict", code=1)
    assert strict.lost() == {1}
