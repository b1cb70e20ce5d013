"""docs/deploy.md and deploy/: what they tell people to type is typed here."""

from __future__ import annotations

import re
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from atlas_flwr.apps.shards import write_shards
from atlas_flwr.config.load import load_config
from atlas_flwr.engine.deploy import deployment
from atlas_flwr.engine.launch_area import free_port, program_folder
from atlas_flwr.engine.launch_daemon import ProcessTree
from deployed import ROOT, SECONDS, checkout, on_page, plain_commands
from fakes import write_experiment
from runs import Run


@pytest.mark.ray
@pytest.mark.slow
def test_the_pages_plain_commands_run(tree: dict[str, Any], tmp_path: Path) -> None:
    """Certificates, SuperLink, keys, SuperNodes and run, typed as the page has them."""
    ports = {"8000": free_port(), "9094": free_port(), "9095": free_port()}
    place = {"superlink.example.org": "127.0.0.1", "0.0.0.0": "127.0.0.1", "/srv/atlas": tmp_path}
    swaps = {**place, **ports}

    def here(text: str) -> str:
        for old, new in swaps.items():
            text = text.replace(old, str(new))
        return text

    lines = plain_commands()
    connection, node = on_page("ini")
    small = {"rounds": 1, "clients": 2}
    file = write_experiment(tmp_path / "experiment.toml", tree, run=small)
    write_shards(load_config(file), tmp_path / "data")
    for number in range(2):
        text = node.replace("partition-id = 0", f"partition-id = {number}")
        told = here(text.replace("client-0", f"client-{number}"))
        (tmp_path / f"node-{number}.toml").write_text(told)
    with deployment(1) as deployed:
        session, area = deployed.session, deployed.area
        session.env.pop("PYTHONPATH", None)  # the bundle that `flwr run .` makes holds the code
        (area.home / "config.toml").write_text(here(connection))
        clone = checkout(tmp_path / "clone")
        for number, line in enumerate(lines):
            command = shlex.split(here(line))
            words = [str(program_folder() / command[0]), *command[1:]]
            if command[0].startswith("flower-"):
                home = {"FLWR_HOME": str(tmp_path / f"home-{number}")}
                log = tmp_path / f"daemon-{number}.log"
                session.others.append(ProcessTree.start(words, area, session.env | home, log))
                time.sleep(15 if command[0] == "flower-superlink" else 1)
                continue
            done = subprocess.run(
                words, cwd=clone, env=session.env, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (line, done)
        out, end = tmp_path / "runs" / "first", time.monotonic() + SECONDS
        while not (out / "summary.json").exists():
            logs = {path: path.read_text() for path in tmp_path.glob("daemon-*.log")}
            assert time.monotonic() < end, logs
            time.sleep(1)
        assert Run.read(out).summary["status"] == "completed"
        assert Run.read(out).summary["engine"] == "deployment"


def test_the_compose_file_says_words_that_flower_knows() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    assert set(services) == {"superlink", "supernode-0", "supernode-1"}
    for service in services.values():
        program, *words = service["command"]
        known = subprocess.run(
            [program_folder() / program, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for word in words:
            assert word.partition("=")[0] in known
        mounted = [str(volume).split(":")[1] for volume in service["volumes"]]
        for path in re.findall(r"(?<==)/[\w./]+", " ".join(words)):
            assert any(path == m or path.startswith(f"{m}/") for m in mounted), path
