"""What suites leave behind joins the committed rows, and none of it is lost."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from atlas_flwr.errors import ResultError
from experiments.publish import publish

SUITE = """
name = "s"
base = "base.toml"
seeds = [1, 2]
[[setting]]
name = "iid"
[[run]]
strategy = "fedit"
[[run]]
strategy = "atlas"
"""


def folder(path: Path, accuracies: Mapping[tuple[str, int], float], commit: str) -> Path:
    """A suite's folder with a run for each label and seed."""
    path.mkdir()
    rows = [f"iid,{label},{seed},{value},completed" for (label, seed), value in accuracies.items()]
    lines = ["setting,label,seed,accuracy,status", *rows, "iid,atlas,9,0.1,failed"]
    (path / "results.csv").write_text("\n".join(lines) + "\n")
    argv = ["suite", "/home/me/s.toml", "--set", "data.root=/home/me/glue/", "--jobs", "2"]
    told = {"argv": argv, "commit": commit, "machine": {"cpu": "x"}, "seeds": [1], "suite": SUITE}
    (path / "provenance.json").write_text(json.dumps({**told, "base": "b"}))
    pair = {f"iid/{label}": {"chosen": {"rate": value}} for (label, _), value in accuracies.items()}
    (path / "tuned.json").write_text(json.dumps({"score": "x", "pairs": pair}))
    return path


def read(results: Path) -> list[tuple[str, str, str]]:
    with (results / "n.csv").open(newline="") as file:
        return [(row["label"], row["seed"], row["accuracy"]) for row in csv.DictReader(file)]


def test_rows_choices_and_sources_are_joined(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    first = folder(tmp_path / "one", {("atlas", 2): 0.2, ("gone", 1): 0.3}, "c1")
    assert publish(first, "n", results) == []
    second = folder(tmp_path / "two", {("atlas", 2): 0.25, ("fedit", 1): 0.5}, "c2")
    assert publish(second, "n", results) == ["iid/atlas/2"]
    assert read(results) == [("fedit", "1", "0.5"), ("atlas", "2", "0.25"), ("gone", "1", "0.3")]
    chosen = json.loads((results / "n.choices.json").read_text())
    assert {k: v["chosen"]["rate"] for k, v in chosen["pairs"].items()} == {
        "iid/atlas": 0.25,
        "iid/gone": 0.3,
        "iid/fedit": 0.5,
    }
    told = json.loads((results / "n.provenance.json").read_text())
    assert (told["commit"], told["seeds"]) == ("c2", [1, 2])
    assert [source["commit"] for source in told["earlier"]] == ["c1"]
    assert "suite" not in told["earlier"][0]
    assert "/home" not in (results / "n.provenance.json").read_text()
    again = (results / "n.provenance.json").read_text()
    assert publish(second, "n", results) == []
    assert (results / "n.provenance.json").read_text() == again


def test_a_folder_that_does_not_say_where_it_comes_from_is_refused(tmp_path: Path) -> None:
    bare = folder(tmp_path / "bare", {("atlas", 2): 0.2}, "c1")
    (bare / "provenance.json").unlink()
    with pytest.raises(ResultError, match=r"bare: no provenance\.json of a suite"):
        publish(bare, "n", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]


def test_a_folder_without_a_suite_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(ResultError):
        publish(tmp_path, "n", tmp_path)
    assert not list(tmp_path.iterdir())
