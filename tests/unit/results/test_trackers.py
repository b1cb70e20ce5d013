"""What each tracker holds is what `rounds.jsonl` says, as the tracker's own reader reads it."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from atlas_flwr.errors import ConfigError
from atlas_flwr.results.store import RunWriter
from atlas_flwr.results.trackers import (
    MOST_CLIENTS,
    Trackers,
    check_trackers,
    final_metrics,
    round_metrics,
)

CONFIG = {"run.name": "demo", "run.rounds": "4", "strategy.name": "fedavg"}
READERS = {
    "tensorboard": """
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
found = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
for tag in found.Tags()["scalars"]:
    rows += [(tag, s.step, s.value) for s in found.Scalars(tag)]
""",
    "wandb": """
# W&B's own records; the file around them is LevelDB's log format, and no package here reads that.
import struct
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record
(path,) = Path(folder).glob("wandb/offline-run-*/*.wandb")
data, at, whole = path.read_bytes(), 7, b""
while at + 7 <= len(data):
    if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
        continue
    _, size, kind = struct.unpack_from("<IHB", data, at)
    whole += data[at + 7 : at + 7 + size]
    at += 7 + size
    if kind not in (1, 4):  # the first or a middle part
        continue
    record, whole = Record.FromString(whole), b""
    if record.WhichOneof("record_type") == "history":
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            if not name.startswith("_"):
                rows.append((name, record.history.step.num, json.loads(item.value_json)))
""",
    "mlflow": """
from mlflow.tracking import MlflowClient
client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
place = client.get_experiment_by_name("demo").experiment_id
(run,) = client.search_runs([place])
assert run.data.params["strategy.name"] == "fedavg"
assert run.info.status == "FINISHED", run.info.status
for name in run.data.metrics:
    rows += [(name, m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
""",
    "trackio": """
import os
os.environ["TRACKIO_DIR"] = folder
from trackio.sqlite_storage import SQLiteStorage
(name,) = SQLiteStorage.get_runs("atlas-flwr")
for log in SQLiteStorage.get_logs("atlas-flwr", name):
    step = log.pop("step")
    rows += [(name, step, value) for name, value in log.items() if name != "timestamp"]
""",
}
FRAME = """
import json, sys
folder, rows = sys.argv[1], []
{body}
print(json.dumps(rows))
"""


def read(name, folder, home):
    """Return ``{(metric, step): value}``, each there once."""
    done = subprocess.run(
        [sys.executable, "-c", FRAME.format(body=READERS[name]), str(folder)],
        env=os.environ | {"HOME": str(home), "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    keys = [(metric, step) for metric, step, _ in rows]
    assert len(set(keys)) == len(keys), "a step is there twice"
    return {(metric, step): value for metric, step, value in rows}


@pytest.fixture
def told(make_run):
    """Four rounds of a run, its clients' rows, and its summary."""
    run = make_run(rounds=4)
    return run.rounds, RunWriter.reopen(run.path, 4).rows_so_far(), run.summary


def started(name, out, rounds, rows, notes):
    trackers = Trackers([name], out, CONFIG, notes.append)
    trackers.start(rounds, rows)
    return trackers


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "mlflow" else n for n in READERS]
)
def test_a_killed_and_resumed_run_has_every_round_once(name, told, tmp_path, monkeypatch):
    rounds, rows, summary = told
    home, out, notes = tmp_path / "home", tmp_path / "out", []
    home.mkdir()
    for key in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(key, str(home))
    first = started(name, out, [], [], notes)
    for record in rounds[:2]:
        first.round(record, rows)
    first.round(rounds[2] | {"accuracy": 0.125}, rows)  # it was not committed
    for child in first._children.values():  # as when the run is killed: the input just ends
        assert child.end() == ""
    second = started(name, out, rounds[:2], rows, notes)
    for record in rounds[2:]:
        second.round(record, rows)
    second.end(summary)

    expected = {
        (metric, r["round"]): value
        for r in rounds
        for metric, value in round_metrics(
            r, [row for row in rows if row.round == r["round"]]
        ).items()
    }
    expected |= {(metric, 4): value for metric, value in final_metrics(summary).items()}
    assert notes == []
    assert read(name, out / "trackers" / name, home) == pytest.approx(expected, rel=1e-6)
    assert list(home.rglob("*")) == [], "something was written to the home folder"


def test_a_tracker_named_on_the_way_learns_of_the_rounds_before(told, tmp_path):
    rounds, rows, summary = told
    late = started("tensorboard", tmp_path / "out", rounds[:3], rows, [])
    late.round(rounds[3], rows)
    late.end(summary)
    found = read("tensorboard", tmp_path / "out/trackers/tensorboard", tmp_path)
    assert sorted(step for metric, step in found if metric == "loss") == [1, 2, 3, 4]


def test_a_tracker_that_fails_is_one_note_and_the_others_go_on(told, tmp_path):
    rounds, rows, summary = told
    out, notes = tmp_path / "out", []
    (out / "trackers/mlflow").mkdir(parents=True)
    (out / "trackers/mlflow/mlflow.db").write_text("no database, but long enough to be read as one")
    trackers = Trackers(["mlflow", "tensorboard"], out, CONFIG, notes.append)
    trackers.start([], [])
    for record in rounds:
        trackers.round(record, rows)
    trackers.end(summary)
    (note,) = notes
    assert note.startswith("tracker mlflow is switched off, the run goes on without it: ")
    assert "\n" not in note
    assert read("tensorboard", out / "trackers/tensorboard", tmp_path)


def test_a_folder_that_cannot_be_made_is_one_note(tmp_path):
    (tmp_path / "trackers").write_text("a file")
    notes = []
    trackers = Trackers(["tensorboard"], tmp_path, CONFIG, notes.append)
    trackers.start([], [])
    assert len(notes) == 1


def test_no_file_name_tells_the_machine(told, tmp_path):
    rounds, rows, summary = told
    trackers = started("tensorboard", tmp_path, rounds, rows, [])
    trackers.end(summary)
    names = {path.name for path in (tmp_path / "trackers/tensorboard").iterdir()}
    assert names == {"events.out.tfevents.000001", "output.log"}


def test_numbers_that_do_not_exist_are_left_out(told):
    rounds, rows, _ = told
    assert rounds[0]["aggregation_error"] is None
    metrics = round_metrics(rounds[0], rows[:0])
    assert "aggregation_error" not in metrics
    assert metrics["bytes/adapter"] == 300
    assert metrics["task/bbc/accuracy"] == rounds[0]["by_task"]["bbc"]["accuracy"]


def test_many_clients_are_not_shown_one_by_one(told):
    rounds, rows, _ = told
    scored = next(row for row in rows if row.phase == "evaluate")
    some = [replace(scored, partition=p) for p in range(MOST_CLIENTS + 1)]
    assert not any(name.startswith("client/") for name in round_metrics(rounds[0], some))
    assert sum(n.startswith("client/") for n in round_metrics(rounds[0], some[1:])) == MOST_CLIENTS


def test_a_missing_package_is_told_with_its_mend(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "wandb").mkdir()  # its own folder of results is no package
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError, match=r"run\.trackers: 'wandb'.*atlas-flwr\[wandb\]"):
        check_trackers(["wandb"])


def test_no_tracker_starts_no_process(told, tmp_path):
    trackers = Trackers([], tmp_path, CONFIG, pytest.fail)
    trackers.start(told[0], told[1])
    trackers.end(told[2])
    assert not Path(tmp_path / "trackers").exists()


def test_a_tracker_that_is_killed_and_a_folder_that_is_gone_are_one_note(told, tmp_path):
    rounds, rows, summary = told
    for code, words in ((-9, "was ended by signal 9"), (1, "No such file or directory")):
        out, notes = tmp_path / f"out{code}", []
        trackers = started("tensorboard", out, [], [], notes)
        (child,) = trackers._children.values()
        if code > 0:
            child.send({"log": 1})  # it can't take that
        else:
            child._process.kill()
        child._process.wait(60)
        shutil.rmtree(out)
        trackers.round(rounds[0], rows)
        trackers.end(summary)
        (note,) = notes
        assert words in note


def test_a_mode_that_wandb_does_not_know_is_told_in_one_line(told, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    notes = []
    started("wandb", tmp_path, *told[:2], notes).end(told[2])
    assert "WANDB_MODE: 'ofline' is none of offline, online" in notes[0]
