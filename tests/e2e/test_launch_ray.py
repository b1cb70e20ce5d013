"""Flower's real SuperLink and Ray engine, with a toy app: two runs of about 15 seconds."""

import json
import textwrap
from pathlib import Path

import psutil
import pytest

from atlas_flwr.engine.launch import run_on_ray
from atlas_flwr.engine.launch_area import AppRefs
from atlas_flwr.engine.launch_daemon import lives

pytestmark = pytest.mark.ray

SERVER = """
import json, os, time
from pathlib import Path
from flwr.app import Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

@app.main()
def main(grid, context):
    settings = context.run_config
    if Path(settings["config"]).read_text() == "fail":
        raise ValueError("the toy server was told to fail")
    while len(nodes := list(grid.get_node_ids())) < 3:
        time.sleep(0.05)
    messages = [Message(RecordDict(), node, "query.hello") for node in nodes]
    answers = [dict(reply.content["hello"]) for reply in grid.send_and_receive(messages)]
    out = Path(settings["out"])
    out.mkdir()
    (out / "summary.json").write_text(json.dumps({"cwd": os.getcwd(), "answers": answers}))
"""
CLIENT = """
import os, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp
import atlas_flwr
app = ClientApp()

@app.query("hello")
def hello(message, context):
    time.sleep(0.5)
    record = {
        "partition": int(context.node_config["partition-id"]),
        "pid": os.getpid(),
        "cwd": os.getcwd(),
        "files": os.listdir(),
        "package": atlas_flwr.__file__,
        "cuda": os.environ["CUDA_VISIBLE_DEVICES"],
        "threads": os.environ["OMP_NUM_THREADS"],
    }
    return Message(RecordDict({"hello": ConfigRecord(record)}), reply_to=message)
"""


@pytest.fixture
def apps(tmp_path):
    folder = tmp_path / "apps"
    folder.mkdir()
    (folder / "toy_server.py").write_text(textwrap.dedent(SERVER))
    (folder / "toy_client.py").write_text(textwrap.dedent(CLIENT))
    return AppRefs("toy_server:app", "toy_client:app", folder)


class Watch:
    """Meets every process that this one starts, directly or not, at each tick."""

    def __init__(self) -> None:
        self.met: set[psutil.Process] = set()
        self.ticks = 0

    def __call__(self) -> None:
        self.met |= set(psutil.Process().children(recursive=True))
        self.ticks += 1

    def left(self, folder: Path) -> list[psutil.Process]:
        """Return who still lives, and whose environment names the test's folder."""
        named = set()
        for process in psutil.process_iter():
            try:
                if process != psutil.Process() and str(folder) in str(process.environ()):
                    named.add(process)
            except (psutil.Error, OSError):
                continue
        return [process for process in self.met | named if lives(process)]


def test_a_run_completes_and_leaves_only_its_result(tmp_path, apps, monkeypatch):
    # Another checkout on the caller's path, and a folder that would shadow, must not be seen.
    (tmp_path / "other" / "atlas_flwr").mkdir(parents=True)
    (tmp_path / "other" / "atlas_flwr" / "__init__.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path / "other")
    config = tmp_path / "it's odd.toml"
    config.write_text("go")
    watch = Watch()
    outcome = run_on_ray(config, tmp_path / "out", 3, 2, 1, 0.0, watch, 120, apps=apps)
    assert (outcome.status, outcome.details, outcome.log) == ("completed", "", None)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    answers = summary["answers"]
    assert sorted(answer["partition"] for answer in answers) == [0, 1, 2]
    assert len({answer["pid"] for answer in answers}) == 2
    for answer in answers:
        assert answer["cwd"] == summary["cwd"]
        assert answer["files"] == []
        assert answer["package"] == __import__("atlas_flwr").__file__
        assert (answer["cuda"], answer["threads"]) == ("", "1")
    assert watch.ticks > 20
    assert len(watch.met) > 5
    assert watch.left(apps.folder) == []
    assert not (tmp_path / "out" / "engine.log").exists()


@pytest.mark.slow
def test_a_failing_server_is_told_with_its_log(tmp_path, apps):
    config = tmp_path / "e.toml"
    config.write_text("fail")
    watch = Watch()
    outcome = run_on_ray(config, tmp_path / "out", 2, 1, 1, 0.0, watch, 120, apps=apps)
    assert outcome.status == "failed"
    assert outcome.details == "ValueError: the toy server was told to fail"
    assert outcome.log is not None
    assert "toy_server.py" in outcome.log.read_text()
    assert watch.left(apps.folder) == []
