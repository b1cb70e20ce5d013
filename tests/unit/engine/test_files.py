"""Folders into place on file systems that can less than a disk, and strangers among commits."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.engine.checkpoint import prune
from atlas_flwr.engine.codec import decode, encode
from atlas_flwr.engine.files import sync_folder
from atlas_flwr.engine.mirror import MARK, Mirror, VaultDigests
from atlas_flwr.errors import ResultError


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_drive_that_can_not_sync_folders(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    sync_folder(tmp_path)


def test_a_drive_that_breaks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error") as told:
        sync_folder(tmp_path)
    assert told.value.filename == str(tmp_path)


def test_what_others_put_beside_commits_stays(tmp_path: Path) -> None:
    for name in ("round-1", "round-5", ".round-5.tmp", ".round-4.old", "round-5 copy"):
        (tmp_path / name).mkdir()
    for name in (".DS_Store", "desktop.ini", "round-7"):
        (tmp_path / name).write_text("mine")
    prune(tmp_path, 5)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".DS_Store", "desktop.ini", "round-5", "round-5 copy", "round-7"]


def test_names_that_meet_hold_tensors_of_their_own() -> None:
    value = {"a/b": np.zeros(2), "a": {"b": np.ones(3)}, 1: np.full(1, 4.0), "1": np.full(1, 5.0)}
    back = decode(*encode(value), ())
    assert [back["a/b"].size, back["a"]["b"].size, back[1][0], back["1"][0]] == [2, 3, 4.0, 5.0]


def test_a_run_that_goes_on_in_its_mirror_is_not_written_over(tmp_path: Path) -> None:
    out, mirror = tmp_path / "out", Mirror(tmp_path / "mirror")
    commit = out / "checkpoints" / "round-1"
    commit.mkdir(parents=True)
    for name in ("provenance.json", "config.toml"):
        (out / name).write_text("{}")
    mirror.begin(out)
    mirror.add(out, commit, {})
    (mirror.folder / MARK).unlink()  # as `atlas resume` does
    with pytest.raises(ResultError, match="somebody resumed it there"):
        mirror.add(out, commit, {})


def test_digests_of_files_that_no_commit_names_are_forgotten(tmp_path: Path) -> None:
    digests = VaultDigests(tmp_path)
    for number in range(3):
        (tmp_path / f"round-{number}").write_text("x")
        digests.of([f"round-{number}"])
    assert list(digests._known) == ["round-2"]
