"""Real processes on loopback: one SuperLink, a SuperNode for each client, a process per message."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from atlas_flwr.apps.shards import write_shards
from atlas_flwr.config.load import dump_config, load_config
from atlas_flwr.engine.deploy import SERVER_APP, Deployment, deployment
from atlas_flwr.engine.deploy_keys import write_certificates, write_node_key
from atlas_flwr.engine.launch_area import AppRefs, write_app
from deployed import SECONDS, assert_same, inline
from fakes import write_experiment
from runs import Run
from strategies.registry import STRATEGIES

pytestmark = pytest.mark.ray
ATLAS = Path(sys.executable).with_name("atlas")


def test_a_deployment_with_keys_computes_what_the_simulation_does(
    program: Callable[..., subprocess.CompletedProcess[str]],
    leftovers: Callable[[str, str], list[psutil.Process]],
    tree: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Two nodes, one round, TLS, registered keys, each node's own rows."""
    small = {"rounds": 1, "clients": 2}
    file = write_experiment(tmp_path / "e.toml", tree, run=small, model={"head": "per_task"})
    up = program("up", file, "--out", tmp_path / "up", "--tls")
    assert up.returncode == 0, up
    found = Run.read(tmp_path / "up")
    assert (found.summary["engine"], found.summary["status"]) == ("deployment", "completed")
    expected = inline(program, file, tmp_path / "inline")
    assert_same(found, expected)
    assert found.tensors() == expected.tensors()
    assert "round 1/1" in up.stdout
    assert up.stderr == ""
    assert leftovers("ATLAS_E2E", str(tmp_path)) == []
    assert not list((tmp_path / "cwd").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["atlas", "fedsa", "flora"])
def test_what_clients_keep_stays_with_them(
    program: Callable[..., subprocess.CompletedProcess[str]],
    tree: dict[str, Any],
    tmp_path: Path,
    name: str,
) -> None:
    """Fingerprints, private factors and carried deltas over two rounds: the simulation's bits."""
    sections = {
        "run": {"clients": 3},
        "data": {"tasks": ["two"]},
        "model": {"head": STRATEGIES[name].head or "per_task"},
    }
    strategy = {"strategy": {"name": name}}
    file = write_experiment(tmp_path / "e.toml", tree | strategy, **sections)
    shards = tmp_path / "shards"
    assert program("shards", file, "--out", shards).returncode == 0
    up = program("up", file, "--out", tmp_path / "up", "--data", shards)
    assert up.returncode == 0, up
    found, expected = Run.read(tmp_path / "up"), inline(program, file, tmp_path / "inline")
    assert_same(found, expected)
    assert not (found.folder / "vault").exists()
    disks = found.folder / "nodes"
    theirs = expected.folder / "vault"
    for path in theirs.rglob("round-*.safetensors"):
        client = path.relative_to(theirs)
        (mine,) = (disks / client.parts[0] / "vault").glob(f"*/{client}")
        assert mine.read_bytes() == path.read_bytes()


# ---------------------------------------------------------------------- faults


class Up:
    """A deployment under test: its run in a thread of its own, its processes at hand."""

    def __init__(self, deployed: Deployment, file: Path, folder: Path, tls: bool) -> None:
        self.deployed, self.out = deployed, folder / "out"
        self.config = load_config(file)
        self.folders = write_shards(self.config, folder / "shards")
        resolved = folder / "resolved.toml"
        resolved.write_text(dump_config(self.config))
        write_app(deployed.area, AppRefs(), resolved, self.out)
        deployed.start_link(tls)

    def start(self, partition: int, **more: Any) -> None:
        told = {"data-path": str(self.folders[partition])}
        self.deployed.start_node(partition, told, **more)

    def wait_for(self, done: Callable[[], bool], seconds: float = SECONDS) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.told()
            time.sleep(0.2)

    def told(self) -> str:
        path = self.out / "events.jsonl"
        return path.read_text() if path.exists() else ""

    def log(self, partition: int) -> str:
        return self.deployed.log_of(partition).read_text(errors="replace")

    def began(self, round_: int, phase: str) -> bool:
        return f'"event": "phase", "round": {round_}, "phase": "{phase}"' in self.told()

    def finish(self) -> Run:
        outcome = self.deployed.session.watch(self.out, SERVER_APP, SECONDS)
        assert outcome.status == "completed", outcome
        return Run.read(self.out)


def until_said(log: Callable[[], str], word: str, seconds: float = 60.0) -> str:
    """Wait until a log has a word, for a while; return the log."""
    end = time.monotonic() + seconds
    while not re.search(word, log()) and time.monotonic() < end:
        time.sleep(0.5)
    return log()


@pytest.mark.slow
def test_strangers_and_wrong_authorities_are_refused(tree: dict[str, Any], tmp_path: Path) -> None:
    """The run goes on without them: neither ever appears among the nodes."""
    small = {"rounds": 1, "clients": 2}
    file = write_experiment(tmp_path / "e.toml", tree, run=small, model={"head": "per_task"})
    with deployment(1) as deployed:
        up = Up(deployed, file, tmp_path, tls=True)
        stranger = tmp_path / "stranger"
        write_node_key(stranger)
        other = write_certificates(tmp_path / "other", ["127.0.0.1"]).authority
        key = deployed.register(0)
        nodes = {7: (stranger, None), 8: (key, other), 9: (None, None)}
        for number, (private, authority) in nodes.items():
            told = {"data-path": str(up.folders[0])}
            deployed.start_node(number, told, private, authority)
        for partition in range(2):
            private = key if partition == 0 else deployed.register(partition)
            up.start(partition, key=private)
        deployed.session.submit()
        run = up.finish()
        refused = {7: r"code: 200\d", 8: "CERTIFICATE_VERIFY_FAILED", 9: "code: 2001"}
        for number, word in refused.items():
            said = until_said(lambda number=number: up.log(number), word)
            assert re.search(word, said), (number, said)
            assert "could not establish a connection" in said, (number, said)
        assert set(run.clients.partition) == {0, 1}
        assert set(run.clients.status) == {"ok"}


@pytest.mark.slow
def test_a_killed_supernode_comes_back(tree: dict[str, Any], tmp_path: Path) -> None:
    """kill -9 in the middle of a round: named as lost, and served again under its partition."""
    run = {"rounds": 3, "clients": 2, "on-failure": "skip"}
    file = write_experiment(tmp_path / "e.toml", tree, run=run, model={"head": "per_task"})
    with deployment(1) as deployed:
        up = Up(deployed, file, tmp_path, tls=False)
        for partition in range(2):
            up.start(partition)
        deployed.session.submit()
        up.wait_for(lambda: up.began(1, "train"))
        for process in deployed.nodes[1].look():
            process.send_signal(signal.SIGKILL)
        up.start(1)
        run = up.finish()
        rows = run.clients[run.clients.partition == 1]
        lost = rows[rows.status != "ok"]
        assert "Node Unavailable" in lost.iloc[0]["error"]
        assert (lost.iloc[0]["round"], lost.iloc[0]["phase"]) == (1, "train")
        assert set(rows[rows["round"] == 3].status) == {"ok"}
        assert set(run.clients[run.clients.partition == 0].status) == {"ok"}


@pytest.mark.slow
def test_a_run_whose_superlink_was_killed_goes_on(
    program: Callable[..., subprocess.CompletedProcess[str]],
    leftovers: Callable[[str, str], list[psutil.Process]],
    tree: dict[str, Any],
    tmp_path: Path,
) -> None:
    """kill -9 of the SuperLink in round 2: exit 1, nothing left; then the uninterrupted bits."""
    file = write_experiment(tmp_path / "e.toml", tree, run={"rounds": 2, "clients": 2})
    out = tmp_path / "up"
    words = [str(ATLAS), "up", str(file), "--out", str(out)]
    env = {**os.environ, "ATLAS_E2E": str(tmp_path)}
    with subprocess.Popen(words, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as up:
        end = time.monotonic() + SECONDS
        while '"round": 2, "phase": "train"' not in _text(out / "events.jsonl"):
            assert time.monotonic() < end
            assert up.poll() is None
            time.sleep(0.2)
        for process in leftovers("ATLAS_E2E", str(tmp_path)):
            if any(word.endswith("flower-superlink") for word in process.cmdline()[:3]):
                process.kill()
        _, printed = up.communicate(timeout=SECONDS)
    assert up.returncode == 1, printed
    assert "SuperLink died during the run" in printed
    assert leftovers("ATLAS_E2E", str(tmp_path)) == []
    said = program("up", file, "--out", out, "--resume", "auto")
    assert said.returncode == 0, said
    found, expected = Run.read(out), inline(program, file, tmp_path / "inline")
    assert found.summary["status"] == "completed"
    assert_same(found, expected)


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
