"""A mirror belongs to one run, is whole before it says so, and is told early where it can't be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import write_experiment
from killing import listing
from runs import Run, Said, assert_refused

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    return tmp_path / "drive"


@pytest.fixture
def mirrored(run: Callable[..., Run], drive: Path) -> Path:
    """A finished run's mirror."""
    run("a", run={"mirror": str(drive)})
    return drive / "a"


def test_a_run_refused_for_its_mirror_has_not_begun(
    mirrored: Path, atlas: Callable[..., Said], tree: dict[str, Any], drive: Path, tmp_path: Path
) -> None:
    """Else `--resume auto` would find a run, go on with it, and prune the other one's commits."""
    file = write_experiment(tmp_path / "b.toml", tree, run={"mirror": str(drive), "seed": 9})
    out, before = tmp_path / "new" / "a", listing(mirrored)
    for _ in range(2):
        said = atlas("run", file, "--out", out, "--resume", "auto")
        assert_refused(said, "run.mirror", "already holds", f"atlas resume {mirrored}")
        assert not out.exists()
    assert listing(mirrored) == before


def test_a_run_that_goes_on_never_takes_another_ones_mirror(
    mirrored: Path, run: Callable[..., Run], atlas: Callable[..., Said], tmp_path: Path, drive: Path
) -> None:
    other = run("b", run={"seed": 9}).folder
    moved = tmp_path / "new" / "a"
    shutil.copytree(other, moved)
    (moved / "summary.json").unlink()
    before, held = listing(mirrored), listing(moved)
    said = atlas("resume", moved, "--set", f"run.mirror={drive}")
    assert_refused(said, "run.mirror", "another run", "run.seed")
    assert (listing(mirrored), listing(moved)) == (before, held)


def test_a_run_may_begin_a_mirror_on_the_way(
    run: Callable[..., Run], atlas: Callable[..., Said], drive: Path
) -> None:
    out = run("a").folder
    (out / "summary.json").unlink()
    assert atlas("resume", out, "--set", f"run.mirror={drive}", "--from", "1").code == 0
    assert Run.read(drive / "a").tensors() == Run.read(out).tensors()


@pytest.mark.parametrize("place", ["", "out", "out/deep"])
def test_a_mirror_in_the_run_itself_is_refused(
    place: str, refused: Callable[..., None], tmp_path: Path
) -> None:
    refused("run.mirror", "a folder elsewhere", run={"mirror": str(tmp_path / place)})


def test_a_relative_mirror_starts_where_the_command_was_typed(run: Callable[..., Run]) -> None:
    """Ray's server runs in a folder that is removed with it."""
    run("a", run={"mirror": "copies"})
    folder = Path.cwd() / "copies" / "a"
    assert str(folder.parent) in (folder / "config.toml").read_text()


def test_the_summary_comes_last_and_is_caught_up_on(
    mirrored: Path, atlas: Callable[..., Said], tmp_path: Path
) -> None:
    """A copy that was cut short must not call itself finished."""
    before = listing(mirrored)
    (tmp_path / "a" / "report.html").touch()  # left out here, and drawn where it is missing
    for name in ("summary.json", "clients.parquet"):
        (mirrored / name).unlink()
    said = atlas("resume", tmp_path / "a")
    assert "is finished" in said.out
    assert listing(mirrored) == {**before, "report.html": b""}


def test_a_mirror_that_went_on_by_itself_is_not_taken_back(
    mirrored: Path, atlas: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "a" / "summary.json").unlink()
    assert atlas("resume", mirrored, "--from", "1").code == 0
    before = listing(mirrored)
    assert_refused(atlas("resume", tmp_path / "a"), "gone on in", f"atlas resume {mirrored}")
    assert listing(mirrored) == before


def test_a_damaged_commit_in_the_mirror_ends_nothing(
    mirrored: Path, atlas: Callable[..., Said], tmp_path: Path
) -> None:
    (mirrored / "checkpoints" / "round-1" / "state.json").write_text("torn")
    assert atlas("resume", tmp_path / "a", "--from", "1").code == 0


def test_a_summary_that_was_cut_names_the_way_on(
    mirrored: Path, atlas: Callable[..., Said]
) -> None:
    (mirrored / "summary.json").write_text("")
    assert_refused(atlas("resume", mirrored), "summary.json", "remove it")
    (mirrored / "summary.json").unlink()
    assert atlas("resume", mirrored).code == 0
    assert json.loads((mirrored / "summary.json").read_text())["status"] == "completed"
