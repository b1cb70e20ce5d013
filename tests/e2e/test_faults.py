"""Real processes that are killed, hang or are told to stop, over a tiny model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from atlas_flwr.engine.launch import run_on_ray
from atlas_flwr.engine.launch_area import AppRefs
from fakes import write_experiment
from runs import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow]
MARK = "ATLAS_E2E"
Found = Callable[[str, str], list[psutil.Process]]


@contextmanager
def started(tmp_path: Path, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start ``atlas`` in a session of its own, as a terminal does; end it whatever happens."""
    atlas = Path(sys.executable).with_name("atlas")
    child = subprocess.Popen(
        [atlas, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, MARK: str(tmp_path)},
        start_new_session=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def until(done: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait for something to be true, and return it."""
    end = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
    return found


def events(out: Path, name: str) -> list[dict[str, Any]]:
    """Return the run's events of a kind so far."""
    path = out / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def at_work(found: Found, mark: Path) -> list[psutil.Process]:
    """Return the Ray workers that run a client at this moment."""
    processes = found(MARK, str(mark))
    return [p for p in processes if "ray::ClientAppActor.run" in " ".join(p.cmdline())]


@pytest.fixture
def slowly(tree: dict[str, Any]) -> dict[str, Any]:
    """Give the experiment with clients that work long enough to be met: about two seconds."""
    return {**tree, "train": {**tree["train"], "local-epochs": 60}}


def test_a_killed_worker_changes_no_bit(
    leftovers: Found, slowly: dict[str, Any], tmp_path: Path
) -> None:
    """`kill -9` of a worker while it trains, although lost clients are not forgiven."""
    file = write_experiment(tmp_path / "e.toml", slowly)
    inline = ("--engine", "inline", "--set", "engine.workers=1")
    with started(tmp_path, "run", file, "--out", tmp_path / "whole", *inline) as child:
        assert child.wait(120) == 0, child.communicate()
    with started(tmp_path, "run", file, "--out", tmp_path / "out", "--engine", "ray") as child:
        until(lambda: [e for e in events(tmp_path / "out", "phase") if e["phase"] == "train"])
        (worker, *_) = until(lambda: at_work(leftovers, tmp_path))
        worker.kill()
        began = time.monotonic()
        (note,) = until(lambda: events(tmp_path / "out", "note"))
        told, partition = time.monotonic() - began, note["partition"]
        until(lambda: partition in [e["partition"] for e in events(tmp_path / "out", "client")])
        print(f"told after {told:.1f} s, answered after {time.monotonic() - began:.1f} s")
        assert child.wait(120) == 0, child.communicate()
    found, whole = Run.read(tmp_path / "out"), Run.read(tmp_path / "whole")
    assert found.tensors() == whole.tensors()
    assert found.measured() == whole.measured()
    assert found.lost() == set()
    assert events(tmp_path / "out", "note") == [note]
    assert "worker process died" in note["text"]
    until(lambda: not leftovers(MARK, str(tmp_path)), 10)


def finished(child: subprocess.Popen[str], seconds: float = 120.0) -> tuple[int, str, str]:
    """Wait for a command's end; return its code and what it printed."""
    out, err = child.communicate(timeout=seconds)
    return child.returncode, out, err


def test_a_killed_command_leaves_nothing_running(
    leftovers: Found, slowly: dict[str, Any], tmp_path: Path
) -> None:
    """`kill -9` of ``atlas`` itself; the run can be gone on with at once, and ends as it would."""
    file, out = write_experiment(tmp_path / "e.toml", slowly), tmp_path / "out"
    with started(tmp_path, "run", file, "--out", out, "--engine", "ray") as child:
        until(lambda: events(out, "round"))
        until(lambda: at_work(leftovers, tmp_path))
        child.kill()
        child.wait()
        began = time.monotonic()
        until(lambda: not leftovers(MARK, str(tmp_path)), 20)
        print(f"gone after {time.monotonic() - began:.1f} s")
    size = (out / "events.jsonl").stat().st_size
    time.sleep(1)
    assert (out / "events.jsonl").stat().st_size == size
    with started(tmp_path, "resume", out) as child:
        assert finished(child)[0] == 0
    assert Run.read(out).summary["status"] == "completed"


@pytest.mark.parametrize("engine", ["inline", "ray"])
@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=["int", "term", "hup"]
)
def test_a_run_told_to_stop_can_be_gone_on_with(
    leftovers: Found, slowly: dict[str, Any], tmp_path: Path, engine: str, number: signal.Signals
) -> None:
    file, out = write_experiment(tmp_path / "e.toml", slowly), tmp_path / "out"
    words = ("--engine", engine, "--set", f"engine.workers={1 if engine == 'inline' else 2}")
    with started(tmp_path, "run", file, "--out", out, *words) as child:
        until(lambda: events(out, "round"))
        child.send_signal(number)
        code, _, err = finished(child)
    assert code == 3, err
    (line,) = err.splitlines()
    assert f"atlas resume {out}" in line
    found = Run.read(out)
    assert (found.summary["status"], found.summary["rounds_completed"]) == ("stopped", 1)
    until(lambda: not leftovers(MARK, str(tmp_path)), 10)


ODD = """
import os, time
from flwr.clientapp import ClientApp
from atlas_flwr.apps import client
from atlas_flwr.wire import read_job

app = ClientApp()

@app.query("hello")
def hello(message, context):
    return client.hello(message, context)

@app.evaluate()
def evaluate(message, context):
    return client.evaluate(message, context)

@app.train()
def train(message, context):
    job, _ = read_job(message.content)
    match job.round, job.partition:
        case 1, 1:
            os.kill(os.getpid(), 9)
        case 2, 2:
            time.sleep(600)
    return client.train(message, context)
"""


def test_culprits_are_lost_by_name_and_nobody_else(
    leftovers: Found, tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client kills every worker it gets, another never answers; then both behave again."""
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "odd_client.py").write_text(ODD)
    monkeypatch.setenv(MARK, str(tmp_path))
    run = {"rounds": 3, "on-failure": "skip", "client-timeout": 60.0}
    file, out = write_experiment(tmp_path / "e.toml", tree, run=run), tmp_path / "out"
    apps = AppRefs(client="odd_client:app", folder=tmp_path / "apps")
    outcome = run_on_ray(file, out, 4, 2, 1, 0.0, timeout=400, apps=apps)
    assert outcome.status == "completed", outcome
    found = Run.read(out)
    bad = found.clients[found.clients.status != "ok"]
    told = {(row.round, row.partition, row.phase): row.error for row in bad.itertuples()}
    assert sorted(told) == [(1, 1, "train"), (2, 2, "train")]
    assert told[1, 1, "train"] == "its worker process died twice (out of memory?)"
    assert "run.client-timeout" in told[2, 2, "train"]
    assert [line["participants"] for line in found.rounds] == [[0, 2, 3], [0, 1, 3], [0, 1, 2, 3]]
    # This process itself has the mark too, but not in the environment that it was started with.
    until(lambda: not leftovers(MARK, str(tmp_path)), 10)
