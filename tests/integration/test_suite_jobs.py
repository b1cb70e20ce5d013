"""``atlas suite --jobs``: the same rows and bits as one at a time, and no child left behind."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w

from fakes import write_experiment
from runs import Run, Said

CLOCKS = {"seconds", "peak_memory_mb", "bytes_up", "bytes_down"}
TUNE = {"keys": {"train.learning-rate": [1e30, 0.01]}, "rounds": 1, "seed": 5}


@pytest.fixture
def write(tree: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """Write a small suite of two strategies."""

    def suite(rounds: int = 1, **keys: Any) -> Path:
        write_experiment(tmp_path / "base.toml", tree, run={"rounds": rounds, "clients": 2})
        plain = {
            "name": "small",
            "base": "base.toml",
            "seeds": [1],
            "run": [{"strategy": "fedavg"}, {"strategy": "local_only"}],
        }
        (tmp_path / "s.toml").write_text(tomli_w.dumps(plain | keys))
        return tmp_path / "s.toml"

    return suite


def rows_of(out: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def bits(out: Path) -> dict[str, Any]:
    runs = {str(p.parent.relative_to(out)): Run.read(p.parent) for p in out.rglob("summary.json")}
    done = {place: run for place, run in runs.items() if run.summary["status"] == "completed"}
    return {place: (run.measured(), run.tensors()) for place, run in done.items()}


def test_a_run_in_a_child_has_the_bits_of_one_in_this_process(
    atlas: Callable[..., Said], write: Callable[..., Path], tmp_path: Path
) -> None:
    file = write()
    for out, words in (("one", ()), ("two", ("--jobs", "2"))):
        said = atlas("suite", file, "--only", "fedavg", "--out", tmp_path / out, *words)
        assert said.code == 0, said
    assert rows_of(tmp_path / "two") == rows_of(tmp_path / "one")
    assert bits(tmp_path / "two") == bits(tmp_path / "one")
    assert list((tmp_path / "two" / ".jobs").iterdir()) == []


@pytest.mark.slow
def test_two_at_a_time_leave_what_one_at_a_time_does(
    atlas: Callable[..., Said], write: Callable[..., Path], tmp_path: Path
) -> None:
    """A tuned value whose run fails is the same line, and the others go on."""
    file = write(tune=TUNE, run=[{"strategy": "fedavg"}, {"strategy": "local_only", "tune": {}}])
    one, two = tmp_path / "one", tmp_path / "two"
    alone = atlas("suite", file, "--out", one)
    said = atlas("suite", file, "--out", two, "--jobs", "2")
    assert (alone.code, said.code) == (1, 1), said
    assert said.err == alone.err
    assert "[4/4] " in said.out
    assert "tune base/fedavg seed 5 train.learning-rate=1e+30 … failed: " in said.out
    assert rows_of(two) == rows_of(one)
    assert len(bits(two)) == 3
    assert bits(two) == bits(one)
    scores = [(folder / "tuned.json").read_text() for folder in (one, two)]
    assert scores[1].replace(str(two), str(one)) == scores[0]
    told = json.loads((two / "base/fedavg/seed-1/provenance.json").read_text())
    assert told["argv"][-2:] == ["--jobs", "2"]
    left = {path.suffix for path in (two / ".jobs").iterdir()}  # of the one that failed
    assert left == {".toml", ".json", ".log"}
    again = atlas("suite", file, "--out", two, "--jobs", "2")
    assert (again.code, again.out.count("finished before")) == (0, 3)
    assert again.out.count("failed before: ") == 1
    assert f"atlas table {two}" in again.out


# ---------------------------------------------------------------- stopped and killed


def begun(file: Path, out: Path) -> subprocess.Popen[str]:
    """Start a suite of two runs at a time, and wait until both are in their rounds."""
    suite = subprocess.Popen(
        [sys.executable, "-m", "atlas_flwr.apps.cli", "suite", file, "--out", out, "--jobs", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    end = time.monotonic() + 300
    while len({at.parent for at in out.glob("base/*/seed-1/checkpoints/round-*")}) < 2:
        assert suite.poll() is None, suite.communicate()
        assert time.monotonic() < end
        time.sleep(0.1)
    return suite


def gone(processes: list[psutil.Process]) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=30)
    return not alive


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whoever_ends_the_suite_ends_its_children_and_it_goes_on(
    atlas: Callable[..., Said], write: Callable[..., Path], tmp_path: Path, number: signal.Signals
) -> None:
    file, out = write(rounds=25), tmp_path / "out"
    suite = begun(file, out)
    children = psutil.Process(suite.pid).children(recursive=True)
    assert len(children) >= 2
    os.kill(suite.pid, number)
    printed, error = suite.communicate(timeout=180)
    assert gone(children)
    if number != signal.SIGKILL:
        assert suite.returncode == 3, error
        assert "the same atlas suite command goes on" in error
        assert "stopped; the same command goes on from here" in printed
    said = atlas("suite", file, "--out", out, "--jobs", "2")
    assert said.code == 0, said
    assert "did not finish" not in said.out
    # What was stopped went on from its commits, to the bits of one that nothing disturbed.
    assert atlas("suite", file, "--out", tmp_path / "whole").code == 0
    for label in ("fedavg", "local_only"):
        place = Path("base", label, "seed-1")
        told = json.loads((out / place / "provenance.json").read_text())
        assert told["resumed"]
        here, there = (Run.read(folder / place) for folder in (out, tmp_path / "whole"))
        assert here.measured() == there.measured()
        assert here.tensors() == there.tensors()


@pytest.mark.slow
def test_a_child_that_is_killed_is_a_line(
    atlas: Callable[..., Said], write: Callable[..., Path], tmp_path: Path
) -> None:
    file, out = write(rounds=25), tmp_path / "out"
    suite = begun(file, out)
    child = psutil.Process(suite.pid).children()[0]
    child.kill()
    printed, error = suite.communicate(timeout=400)
    assert suite.returncode == 1, error
    assert "its process ended by signal 9 (log: " in printed
    assert len(rows_of(out)) == 1
    assert atlas("suite", file, "--out", out).code == 0
    assert len(rows_of(out)) == 2
