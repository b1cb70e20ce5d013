"""A run that is shown in a tracker: stopped, gone on with, and the same as without one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atlas_flwr.results.record import MEASURED_FIELDS
from runs import Run, Said, assert_refused

pytestmark = pytest.mark.usefixtures("no_report")


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder / "trackers/tensorboard")).Reload()
    return [(scalar.step, scalar.value) for scalar in found.Scalars(tag)]


def unmeasured(run: Run) -> list[dict[str, object]]:
    return [{k: v for k, v in r.items() if k not in MEASURED_FIELDS} for r in run.rounds]


def test_a_run_and_its_resumption_are_one_curve(
    run: Callable[..., Run], atlas: Callable[..., Said]
) -> None:
    plain = run("plain", run={"rounds": 3})
    shown = run("shown", run={"rounds": 3, "trackers": ["tensorboard"]})
    assert unmeasured(shown) == unmeasured(plain)
    assert atlas("resume", shown.folder, "--from", "2").code == 0
    again = Run.read(shown.folder)
    assert unmeasured(again) == unmeasured(plain)
    expected = [(r["round"], pytest.approx(r["accuracy"])) for r in again.rounds]
    assert scalars(shown.folder, "accuracy") == expected
    seconds = [(r["round"], pytest.approx(r["time_seconds"])) for r in again.rounds]
    assert scalars(shown.folder, "time_seconds") == seconds  # the repeated round's own


def test_a_tracker_can_be_named_on_the_way(
    run: Callable[..., Run], atlas: Callable[..., Said]
) -> None:
    out = run("out", run={"rounds": 2}).folder
    said = atlas("resume", out, "--from", "1", "--set", "run.trackers=tensorboard")
    assert said.code == 0, said
    assert [step for step, _ in scalars(out, "loss")] == [1, 2]


def test_a_package_that_is_missing_is_told_before_anything_runs(
    atlas: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("atlas_flwr.results.trackers.find_spec", lambda name: None)
    said = atlas("run", "demo", "--set", "run.trackers=wandb", "--out", tmp_path / "out")
    assert_refused(said, "run.trackers: 'wandb' is not installed")
    assert not (tmp_path / "out").exists()


def test_events_say_when(run: Callable[..., Run]) -> None:
    lines = (run("out").folder / "events.jsonl").read_text().splitlines()
    times = [json.loads(line)["time"] for line in lines]
    assert times == sorted(times)
