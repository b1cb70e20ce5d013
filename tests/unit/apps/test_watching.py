"""How watching ends: with the runs, with their exit code; and locks are only looked at."""

import io
import json
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from atlas_flwr.apps import watching
from atlas_flwr.apps.watching import watch, writes
from atlas_flwr.errors import ResultError

ROUND = {
    **{"round": 1, "accuracy": 0.5, "loss": 1.0, "train_loss": 1.0, "time_seconds": 1.0},
    **{"memory_mb": 10.0, "communication_mb": 1.0, "bytes_up": 1, "bytes_down": 2, "lost": []},
    **{"worst_client_accuracy": 0.4, "by_task": {"bbc": {"accuracy": 0.5}}},
}


def run_in(folder, status=None):
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('[run]\nname = "demo"\nrounds = 2\nclients = 2\n')
    (folder / "rounds.jsonl").write_text(json.dumps(ROUND) + "\n")
    if status:
        told = {"status": status, "seconds": 2.0, "final": {"accuracy": None}}
        (folder / "summary.json").write_text(json.dumps(told))
    return folder


def watched(folder, **options):
    out = io.StringIO()
    code = watch(Console(file=out, width=200), folder, interval=0.01, **options)
    return code, out.getvalue()


@pytest.mark.parametrize(("status", "code"), [("completed", 0), ("failed", 1), ("stopped", 3)])
def test_the_exit_code_is_the_runs(tmp_path, status, code):
    found, text = watched(run_in(tmp_path / "run", status))
    assert found == code
    assert text.splitlines()[-1].endswith(status)


def test_a_killed_run_ends_with_3_and_its_mend(tmp_path):
    if not Path("/proc/locks").exists():
        pytest.skip("/proc/locks is Linux's: elsewhere nobody says who holds a lock")
    folder = run_in(tmp_path / "run")
    code, text = watched(folder)
    assert code == 3
    assert text.splitlines()[0].startswith("demo  round 1/2  accuracy 0.5000")
    assert f"atlas resume {folder} goes on" in text


def test_of_several_the_worst_counts(tmp_path):
    for name, status in (("a", "completed"), ("b", "stopped"), ("c", "failed")):
        run_in(tmp_path / name, status)
    assert watched(tmp_path)[0] == 1


def test_once_of_a_run_that_goes_on_is_no_failure(tmp_path):
    code, text = watched(run_in(tmp_path / "run"), once=True)
    assert code == 0
    assert "accuracy" in text


def test_a_lock_is_seen_and_left_as_it_is(tmp_path):
    if not Path("/proc/locks").exists():
        pytest.skip("/proc/locks is Linux's: elsewhere nobody says who holds a lock")
    folder = run_in(tmp_path / "run")
    assert writes(folder) is False
    with FileLock(folder / ".command.lock"):
        assert writes(folder) is True
    assert writes(folder) is False


def test_ctrl_c_leaves_the_run_alone(tmp_path, monkeypatch):
    folder = run_in(tmp_path / "run")

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupted)
    before = sorted(path.name for path in folder.iterdir())
    assert watched(folder)[0] == 0
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_run_that_ends_is_watched_to_its_end(tmp_path, monkeypatch):
    folder = run_in(tmp_path / "run")
    monkeypatch.setattr(watching, "writes", lambda path: True)

    def ends(seconds):
        told = {"status": "completed", "seconds": 2.0, "final": {"accuracy": 0.5}}
        told["final"]["worst_client_accuracy"] = 0.4
        (folder / "summary.json").write_text(json.dumps(told))

    monkeypatch.setattr(watching.time, "sleep", ends)
    code, text = watched(folder)
    assert code == 0
    assert [line.split("  ")[1] for line in text.splitlines()] == ["round 1/2", "completed"]


def test_a_suite_that_has_just_begun_is_waited_for(tmp_path):
    if not Path("/proc/locks").exists():
        pytest.skip("/proc/locks is Linux's: elsewhere nobody says who holds a lock")
    with pytest.raises(ResultError, match="holds no run yet"):
        watched(tmp_path, once=True)
    with FileLock(tmp_path / watching.SUITE_LOCK):
        code, text = watched(tmp_path, once=True)
    assert (code, "0 of 0 runs completed" in text) == (0, True)


def test_a_run_that_a_suite_renames_in_the_meantime_ends_nothing(tmp_path, monkeypatch):
    gone = run_in(tmp_path / "s/a/seed-2", "failed")
    run_in(tmp_path / "s/a/seed-1", "completed")
    find = watching.runs_in

    def late(folder):
        found = find(folder)
        if gone.exists():
            gone.rename(gone.with_name("seed-2.failed-1"))
        return found

    monkeypatch.setattr(watching, "runs_in", late)
    assert watched(tmp_path)[0] == 0
