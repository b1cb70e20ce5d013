"""docs/deploy.md on several hosts: a server and two clients that share no network."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from atlas_flwr.apps.shards import write_shards
from atlas_flwr.config.load import load_config
from atlas_flwr.engine.deploy import Deployment, deployment
from atlas_flwr.engine.launch_area import program_folder
from atlas_flwr.engine.launch_daemon import ProcessTree
from deployed import SECONDS, assert_same, checkout, inline, on_page, plain_commands
from fakes import write_experiment
from lan import SERVER, Host, hosts
from runs import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow]
PORT = 8000


def fill_disks(file: Path, server: Host, clients: Sequence[Host], spare: Path) -> None:
    """Give the server the experiment, and each client its rows and what it is told at home."""
    shutil.copyfile(file, server.disk / "experiment.toml")
    folders = write_shards(load_config(file), spare)
    node = on_page("ini")[1]
    for number, (client, folder) in enumerate(zip(clients, folders, strict=True)):
        (client.disk / "data").mkdir()
        folder.rename(client.disk / "data" / f"client-{number}")
        told = node.replace("partition-id = 0", f"partition-id = {number}")
        (client.disk / f"node-{number}.toml").write_text(
            told.replace("client-0", f"client-{number}")
        )


def carry_keys(server: Host, clients: Sequence[Host]) -> None:
    """Give each client the authority's certificate and its own key, as the page says."""
    for number, client in enumerate(clients):
        (client.disk / "keys").mkdir()
        for name in ("ca.pem", f"node-{number}"):
            shutil.copy2(server.disk / "keys" / name, client.disk / "keys" / name)


def assert_apart(server: Host, clients: Sequence[Host]) -> None:
    """Check that clients reach the server's port, and neither each other nor the others' disks."""
    first, second = clients
    with second.listening() as port:
        assert not first.reaches(second.address, port)
        assert server.reaches(second.address, port)
    for client in clients:
        assert client.reaches(SERVER, PORT)
        assert not client.reaches("192.0.2.1", PORT)
        seen = subprocess.run(client.words("test", "-e", str(server.disk)), check=False)
        assert seen.returncode == 1


def type_in(line: str, host: Host, deployed: Deployment, folder: Path) -> None:
    """Run one line of the page on a host: daemons stay, everything else must end well."""
    program, *words = shlex.split(line)
    command = host.words(str(program_folder() / program), *words)
    env = {k: v for k, v in deployed.session.env.items() if not k.lower().endswith("_proxy")}
    env.pop("PYTHONPATH", None)  # the bundle that `flwr run .` makes holds the code
    if program.startswith("flower-"):
        env |= {"FLWR_HOME": str(folder / f"home-{host.disk.name}")}
        log = folder / f"{host.disk.name}.log"
        tree = ProcessTree.start(command, deployed.area, env, log)
        deployed.session.others.append(tree)
        return
    clone = folder / "clone"
    done = subprocess.run(command, cwd=clone, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (line, done)


def wait_for(done: Callable[[], bool], folder: Path, everyone: Sequence[Host]) -> None:
    """Wait, noting meanwhile who listens and who is connected on each host."""
    end = time.monotonic() + SECONDS
    while not done():
        logs = {path.name: path.read_text() for path in folder.glob("*.log")}
        assert time.monotonic() < end, logs
        for host in everyone:
            host.look()
        time.sleep(0.5)


def assert_one_port(server: Host, clients: Sequence[Host]) -> None:
    """Check that the server's one port is all that anybody listened on or connected to."""
    assert len(server.heard) == 1, server.heard
    assert f"tcp 0.0.0.0:{PORT} " in server.heard.pop()
    assert server.links
    assert all(f"{SERVER}:{PORT}" in link for link in server.links)  # its own `flwr` calls it too
    for client in clients:
        assert client.heard == set()
        assert client.links
        assert {other for _, other in client.links} == {f"{SERVER}:{PORT}"}


def test_the_pages_commands_run_on_hosts_that_share_no_network(
    program: Callable[..., subprocess.CompletedProcess[str]], tree: dict[str, Any], tmp_path: Path
) -> None:
    """As the page has them, word for word; each host has its own /srv/atlas."""
    file = write_experiment(tmp_path / "e.toml", tree, run={"rounds": 1, "clients": 2})
    tasks = [Path(task["path"]) for task in tree["task"]]
    with hosts(tmp_path, 2, tasks) as (server, *clients), deployment(1) as deployed:
        fill_disks(file, server, clients, tmp_path / "shards")
        (deployed.area.home / "config.toml").write_text(on_page("ini")[0])
        checkout(tmp_path / "clone")
        for line in plain_commands():
            nodes = [n for n in range(2) if f"/node-{n}.toml" in line]
            type_in(line, clients[nodes[0]] if nodes else server, deployed, tmp_path)
            if line.startswith("atlas certs"):
                carry_keys(server, clients)
            if line.startswith("flower-superlink"):
                wait_for(lambda: server.reaches(SERVER, PORT), tmp_path, [])
                assert_apart(server, clients)
        out = server.disk / "runs" / "first"
        wait_for((out / "summary.json").exists, tmp_path, [server, *clients])
    found, expected = Run.read(out), inline(program, file, tmp_path / "inline")
    assert (found.summary["engine"], found.summary["status"]) == ("deployment", "completed")
    assert_same(found, expected)
    assert_one_port(server, clients)
    theirs = expected.folder / "vault"
    kept = sorted(path.relative_to(theirs) for path in theirs.rglob("round-*.safetensors"))
    assert {path.parts[0] for path in kept} == {"client-0", "client-1"}
    for path in kept:
        disk = clients[int(path.parts[0].removeprefix("client-"))].disk
        (mine,) = (disk / "vault").glob(f"*/*/{path}")
        assert mine.read_bytes() == (theirs / path).read_bytes()
