"""What a run finds reaches its files: clusters and ranks apart, η and its losses in each round."""

import json
import math
from pathlib import Path

import pytest

import experiments
from atlas_flwr.apps.record import Recorder
from atlas_flwr.config.load import load_config
from atlas_flwr.errors import ResultError
from atlas_flwr.results.record import Bytes, Measured, round_record
from atlas_flwr.results.store import RunWriter, read_extra

RANKS = {"how": "uniform", "clients": {"0": {"device": "phone", "ranks": {"q": 2, "v": 8}}}}


@pytest.fixture
def recorder(tmp_path: Path) -> tuple[Recorder, list[dict]]:
    heard: list[dict] = []
    config = load_config(Path(experiments.__file__).parent / "demo.toml")
    return Recorder(config, tmp_path / "run", "inline", ["atlas"], heard.append), heard


def test_ranks_are_a_file_of_their_own_and_told_in_a_line(recorder):
    writer, heard = recorder
    facts = {"k": 2, "why": "They differ", "ranks": RANKS}
    writer.clusters(facts)
    assert read_extra(writer.out / "clusters.json") == {"k": 2, "why": "They differ"}
    assert read_extra(writer.out / "ranks.json") == RANKS
    assert [event["text"] for event in heard[1:]] == [
        *("clusters: 2. They differ", "ranks (uniform) of phone: 2–8"),
    ]
    assert "ranks" in facts  # what was given is as it was


def test_without_ranks_there_is_no_such_file(recorder):
    writer, heard = recorder
    writer.clusters({"k": 1, "why": "one"})
    assert not (writer.out / "ranks.json").exists()
    assert read_extra(writer.out / "ranks.json") == {}
    assert len(heard) == 2


def test_broken_files_are_refused(tmp_path):
    for text in ("{", "[1]"):
        (tmp_path / "ranks.json").write_text(text)
        with pytest.raises(ResultError, match=r"ranks\.json"):
            read_extra(tmp_path / "ranks.json")


def test_eta_and_its_losses_are_written_and_what_is_not_finite_is_null(tmp_path):
    losses = {"0": {"0": 0.5, "1": math.nan}, "1": {"0": 0.25, "1": 0.75}}
    record = round_record(1, [], Bytes(), 1.0, Measured(eta={"0": 0.0, "1": 1}, eta_loss=losses))
    RunWriter(tmp_path).append_round(record)
    line = json.loads((tmp_path / "rounds.jsonl").read_text())
    assert line["eta"] == {"0": 0.0, "1": 1.0}
    assert line["eta_loss"] == {"0": {"0": 0.5, "1": None}, "1": {"0": 0.25, "1": 0.75}}
    assert line == record.to_dict()
    bare = round_record(1, [], Bytes(), 1.0).to_dict()
    assert bare["eta"] is bare["eta_loss"] is None
