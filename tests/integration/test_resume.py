"""A run that is killed goes on, and ends as if it had not been."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atlas_flwr.engine.files import COMMIT_POINTS, END_POINTS
from fakes import write_experiment
from killing import ended, forked, kept, killed_at, listing
from runs import Run, Said, assert_refused

pytestmark = pytest.mark.usefixtures("no_report")

# At a point it is killed in the round it has come to; the points after "renamed" end one more.
ROUNDS = 4
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "flora": {"lora": {"rank": [2, 3]}},
    "fedsa": {},
    "atlas": {"run": {"clients": 4}, "data": {"tasks": ["two", "three"]}},
}


@pytest.fixture
def file(tree: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Write the small experiment with a strategy and a mirror."""

    def write(strategy: str = "fedavg", **sections: Any) -> Path:
        run = {"rounds": ROUNDS, "mirror": str(tmp_path / "mirror"), **sections.pop("run", {})}
        laid = {"run": run, "strategy": {"name": strategy}, **sections}
        return write_experiment(tmp_path / "e.toml", tree, **laid)

    return write


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(m, marks=pytest.mark.slow) if m == "fedsa" else m for m in METHODS],
)
def test_killed_at_every_point_it_ends_with_the_same_bits(
    strategy: str, file: Callable[..., Path], tmp_path: Path
) -> None:
    experiment = file(strategy, **METHODS[strategy])
    assert ended(forked(["run", experiment, "--out", tmp_path / "whole"])) == 0
    out = tmp_path / "again"
    words: list[str | Path] = ["run", experiment, "--out", out]
    for point in (*COMMIT_POINTS, *END_POINTS):
        assert ended(forked(words, killed_at(point))) == -signal.SIGKILL, point
        words = ["resume", out]
    assert ended(forked(words)) == 0
    assert kept(out) == kept(tmp_path / "whole")
    told = json.loads((out / "provenance.json").read_text())["resumed"]
    assert [each["after_round"] for each in told] == [0, 0, 0, 0, 1, 2, 3, 4, 4, 4]


def test_resuming_a_finished_run_says_so(run: Callable[..., Run], atlas: Any) -> None:
    done = run()
    (done.folder / "report.html").touch()  # left out here, and drawn where it is missing
    before = listing(done.folder)
    said = atlas("resume", done.folder)
    assert said.code == 0
    assert "is finished" in said.out
    assert listing(done.folder) == before
    (done.folder / "rounds.jsonl").unlink()
    broken = atlas("resume", done.folder)
    assert (broken.code, broken.out) == (2, "")
    assert "rounds.jsonl: missing" in broken.err


def test_stop_after_stops_between_rounds_and_the_rest_follows(
    file: Callable[..., Path], atlas: Callable[..., Said], tmp_path: Path
) -> None:
    experiment, out = file(run={"stop-after": "1h"}), tmp_path / "short"
    said = atlas("run", experiment, "--out", out, "--set", "run.stop-after=1s")
    if said.code == 0:
        pytest.skip("four rounds took less than a second")
    assert said.code == 3
    assert f"go on with: atlas resume {out}" in said.err
    stopped = json.loads((out / "summary.json").read_text())
    assert stopped["status"] == "stopped"
    assert 0 < stopped["rounds_completed"] < ROUNDS + 1
    assert atlas("resume", out, "--set", "run.stop-after=1h").code == 0
    whole = Run.read(out)
    assert [line["round"] for line in whole.rounds] == [1, 2, 3, 4]
    assert whole.summary["status"] == "completed"


@pytest.mark.parametrize("span", ["0s", "3 hours", "h", "", 90])
def test_a_span_that_is_none_is_refused(span: object, refused: Callable[..., None]) -> None:
    refused("run.stop-after", run={"stop-after": span})


# ------------------------------------------------------------------ mirrors


@pytest.fixture
def mirrored(file: Callable[..., Path], tmp_path: Path) -> Path:
    """The mirror of a run killed in its third round, whose own directory is lost."""
    out = tmp_path / "again"
    rounds = iter(range(9))

    def die_in_the_third() -> None:
        from atlas_flwr.engine import files  # noqa: PLC0415 - the child's own

        die = killed_at("round-ended")

        def third(point: str) -> None:
            if point == "round-ended" and next(rounds) == 2:
                die()
                files.WATCHERS[-1](point)

        files.WATCHERS.append(third)

    words = ["run", file("fedsa"), "--out", out]
    assert ended(forked(words, die_in_the_third)) == -signal.SIGKILL
    shutil.rmtree(out)
    return tmp_path / "mirror" / "again"


def test_a_mirror_goes_on_where_the_run_was_lost(
    mirrored: Path, file: Callable[..., Path], tmp_path: Path
) -> None:
    assert (mirrored / "vault" / "client-0").is_dir()
    assert ended(forked(["resume", mirrored])) == 0
    assert ended(forked(["run", file("fedsa"), "--out", tmp_path / "whole"])) == 0
    assert kept(mirrored)["tensors"] == kept(tmp_path / "whole")["tensors"]
    finals = [kept(folder)["summary"]["final"] for folder in (mirrored, tmp_path / "whole")]
    assert finals[0] == finals[1]


@pytest.mark.parametrize("torn", ["checkpoints/round-2/state.safetensors", "vault"])
def test_a_torn_mirror_goes_on_from_the_commit_before(
    torn: str, mirrored: Path, atlas: Callable[..., Said]
) -> None:
    path = mirrored / torn
    if torn == "vault":
        path = mirrored / "vault" / "client-0" / "round-2.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    said = atlas("resume", mirrored)
    assert said.code == 0, said
    assert "an older commit is used" in said.out
    assert "resumed after round 1" in said.out
    assert [line["round"] for line in Run.read(mirrored).rounds] == [1, 2, 3, 4]


def test_a_new_run_never_writes_over_a_mirrored_one(
    mirrored: Path, file: Callable[..., Path], atlas: Callable[..., Said], tmp_path: Path
) -> None:
    before = listing(mirrored)
    assert_refused(atlas("run", file(), "--out", tmp_path / "again"), "run.mirror", "already holds")
    assert listing(mirrored) == before


# ------------------------------------------------------------------ what can't go on


@pytest.fixture
def stopped(run: Callable[..., Run]) -> Path:
    """A run of three rounds whose summary is gone, as after a kill in the final evaluation."""
    folder = run(run={"rounds": 3}, strategy={"name": "fedsa"}).folder
    for name in ("summary.json", "summary.csv"):
        (folder / name).unlink()
    return folder


def tamper(folder: Path, kind: str) -> None:
    state = folder / "checkpoints" / "round-3" / "state.safetensors"
    match kind:
        case "truncated":
            state.write_bytes(state.read_bytes()[:-1])
        case "foreign":
            text = (folder / "config.toml").read_text()
            (folder / "config.toml").write_text(text.replace("seed = 7", "seed = 8"))
        case "vault":
            (folder / "vault" / "client-1" / "round-3.safetensors").unlink()
        case "config":
            (folder / "config.toml").unlink()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("truncated", ("state.safetensors", "is damaged", "--from 2")),
        ("foreign", ("belongs to another run", "--from 2")),
        ("vault", ("client-1/round-3.safetensors", "is missing", "--from 2")),
        ("config", ("holds no run", "atlas run FILE")),
    ],
)
def test_what_can_not_go_on_is_refused_and_left_as_it_is(
    kind: str, words: tuple[str, ...], stopped: Path, atlas: Callable[..., Said]
) -> None:
    tamper(stopped, kind)
    before = listing(stopped)
    assert_refused(atlas("resume", stopped), *words)
    assert listing(stopped) == before


def test_an_older_commit_is_used_when_asked_for(stopped: Path, atlas: Callable[..., Said]) -> None:
    tensors = Run.read_tensors(stopped)
    tamper(stopped, "truncated")
    assert atlas("resume", stopped, "--from", "2").code == 0
    assert Run.read(stopped).tensors() == tensors


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--from", "9"), "no such commit (there: 1, 2, 3)"),
        (("--set", "run.seed=9"), "makes another run of it"),
        (("--set", "train.batch-size=4"), "makes another run of it"),
    ],
)
def test_a_wrong_word_is_refused(
    words: tuple[str, ...], told: str, stopped: Path, atlas: Callable[..., Said]
) -> None:
    before = listing(stopped)
    assert_refused(atlas("resume", stopped, *words), told)
    assert listing(stopped) == before


def test_a_folder_that_is_none_is_refused(atlas: Callable[..., Said], tmp_path: Path) -> None:
    assert_refused(atlas("resume", tmp_path / "nowhere"), "holds no run")


# ------------------------------------------------------------------ run --resume auto


def test_auto_begins_goes_on_and_is_finished(
    file: Callable[..., Path], atlas: Callable[..., Said], tmp_path: Path
) -> None:
    experiment, out = file(), tmp_path / "again"
    words = ["run", experiment, "--out", out, "--resume", "auto"]
    assert ended(forked(words, killed_at("renamed"))) == -signal.SIGKILL
    said = atlas(*words)
    assert said.code == 0
    assert "resumed after round 1" in said.out
    assert "is finished" in atlas(*words).out


def test_auto_refuses_another_experiment(
    stopped: Path, file: Callable[..., Path], atlas: Callable[..., Said]
) -> None:
    before = listing(stopped)
    said = atlas("run", file(), "--out", stopped, "--resume", "auto")
    assert_refused(said, "holds another run", "strategy.name is 'fedavg' here, 'fedsa' there")
    assert listing(stopped) == before


def test_auto_needs_a_directory(file: Callable[..., Path], atlas: Callable[..., Said]) -> None:
    assert_refused(atlas("run", file(), "--resume", "auto"), "--out")
