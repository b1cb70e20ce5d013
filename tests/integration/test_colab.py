"""Finished experiments side by side, and measured again without this code base."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from atlas_flwr.errors import ResultError
from experiments.colab import atlas_found, evidence, read_done, write_plots, write_summary
from experiments.colab.results import COLUMNS
from experiments.guided import ATLAS_SET
from experiments.real_training import run_directory, run_quick_experiment
from guide import atlas_set

LORA: dict[str, Any] = {"use_lora": True, "lora_rank": [2, 4], "num_rounds": 1, "num_clients": 4}


@pytest.fixture(scope="module")
def home(
    tmp_path_factory: pytest.TempPathFactory,
    folder_of: Callable[[str], str],
    sections: dict[str, dict[str, Any]],
) -> Iterator[Path]:
    """Run full fine-tuning and ATLAS on the same two tasks, once."""
    out = tmp_path_factory.mktemp("guide") / "results"
    with pytest.MonkeyPatch.context() as patch:
        tasks = [sections["two"], sections["three"]]
        patch.setenv(ATLAS_SET, atlas_set(folder_of("distilbert"), tasks))
        patch.setattr("atlas_flwr.apps.server.publish", lambda out: None)
        run_quick_experiment("exp1_standard_fl", num_rounds=1, num_clients=4, out=out)
        run_quick_experiment("exp4_atlas", **LORA, strategy="atlas", out=out)
        yield out


def test_the_table_has_the_guides_columns(home: Path) -> None:
    write_summary(read_done(out=home), home)
    with (home / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["Experiment"] for row in rows] == ["Standard FL", "ATLAS"]
    assert [row["LoRA"] for row in rows] == ["No", "Yes (2, 4)"]
    told = json.loads((home / "exp4_atlas.json").read_text())
    assert float(rows[1]["Final Accuracy"]) == pytest.approx(told["final_accuracy"])
    assert float(rows[1]["Avg Comm (MB)"]) == told["round_results"][0]["communication_mb"]


def test_plots_are_drawn_of_like_runs_alone(home: Path) -> None:
    done = read_done(out=home)
    for path in write_plots(done, home):
        assert path.stat().st_size > 10_000
    assert (home / "comparison" / "comparison.html").exists()
    run_quick_experiment("other", num_rounds=1, num_clients=3, out=home)
    with pytest.raises(ResultError, match=r"other: run.clients is 3, but 4 in exp1"):
        read_done(("exp1_standard_fl", "other"), home)
    with pytest.raises(ResultError, match="no experiment has ended"):
        read_done(("exp9",), home)


def test_what_atlas_found_is_told(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atlas_found(out=home)
    said = capsys.readouterr().out
    assert "clusters: " in said
    assert "client 0 (two)" in said
    assert "client 3 (three)" in said
    assert "ranks" in said


@pytest.mark.parametrize("name", ["exp1_standard_fl", "exp4_atlas"])
def test_what_a_run_claims_is_found_again(home: Path, name: str) -> None:
    found = evidence(run_directory(name, home))
    assert list(found.columns) == ["check", "measured", "expected", "ok"]
    assert found["ok"].all(), found.to_string()
    assert found["measured"].iloc[-1] == "none: trained on the CPU"


@pytest.mark.parametrize("key", ["data.evaluation-rows=20", "data.holdout=0.3"])
def test_the_rows_that_were_scored_are_scored_again(home: Path, key: str) -> None:
    name = key.partition("=")[0].replace("data.", "")
    run_quick_experiment(name, **LORA, strategy="flexlora", out=home, overrides=[key])
    found = evidence(run_directory(name, home))
    assert found["ok"].all(), found.to_string()


@pytest.mark.parametrize("name", ["flora", "fedsb", "local_only", "cluster_fedavg"])
def test_methods_that_send_less_than_a_model_are_not_accused(home: Path, name: str) -> None:
    """A folded change, one small matrix, nothing at all; and models of clusters."""
    run_quick_experiment(name, **{**LORA, "lora_rank": 2}, strategy=name, out=home)
    found = evidence(run_directory(name, home))
    assert found["ok"].all(), found.to_string()


def test_a_run_of_a_gpu_is_looked_at_on_a_cpu(home: Path) -> None:
    """It was scored in half precision: a loss in float32 lies further off."""
    folder = run_directory("exp4_atlas", home)
    path, rows = folder / "clients.parquet", pd.read_parquet(folder / "clients.parquet")
    config, told = folder / "config.toml", folder / "provenance.json"
    kept = {file: file.read_bytes() for file in (path, config, told)}
    rows.loc[rows["phase"] == "final", "loss"] *= 1.01
    rows.to_parquet(path)
    try:
        assert not evidence(folder)["ok"].all()
        there = config.read_text().replace('device = "cpu"', 'device = "auto"')
        config.write_text(there.replace('precision = "fp32"', 'precision = "auto"'))
        machine = json.loads(told.read_text())
        machine["machine"]["gpus"] = ["Tesla T4"]
        told.write_text(json.dumps(machine))
        found = evidence(folder)
    finally:
        for file, content in kept.items():
            file.write_bytes(content)
    assert found["ok"].all(), found.to_string()


def test_a_broken_file_says_how_to_write_it_again(home: Path) -> None:
    path = home / "exp4_atlas.json"
    kept = path.read_text()
    try:
        for content in ("{oops", "[]", "{}"):
            path.write_text(content)
            with pytest.raises(ResultError, match=r"exp4_atlas\.json: .*run its cell again"):
                read_done(out=home)
    finally:
        path.write_text(kept)


def test_what_was_not_measured_is_drawn_as_such(home: Path, tmp_path: Path) -> None:
    done = read_done(("exp4_atlas",), home)[0]
    nothing = {"accuracy": None, "loss": None, "memory_mb": None}
    rounds = [{**record, **nothing} for record in done.run.rounds]
    summary = {**done.run.summary, "peak_memory_mb": None}
    run = replace(done.run, rounds=rounds, summary=summary)
    results = [{**each, **nothing} for each in done.data["round_results"]]
    data = {**done.data, "final_accuracy": None, "round_results": results}
    bare = replace(done, run=run, data=data)
    assert all(path.exists() for path in write_plots([bare], tmp_path))
    write_summary([bare], tmp_path)


def test_a_model_that_was_not_trained_is_found_out(home: Path) -> None:
    """The adapter as it started, B = 0, under the trained run's records."""
    folder = run_directory("exp4_atlas", home) / "adapters" / "client-0"
    path = folder / "adapter_model.safetensors"
    kept = path.read_bytes()
    tensors = load_file(path)
    save_file({n: t * 0 if "lora_B" in n else t for n, t in tensors.items()}, path)
    try:
        found = evidence(run_directory("exp4_atlas", home)).set_index("check")["ok"]
    finally:
        path.write_bytes(kept)
    assert not found["parameters changed (client-0)"]


def test_numbers_that_were_made_up_are_found_out(home: Path) -> None:
    path = run_directory("exp4_atlas", home) / "clients.parquet"
    kept = path.read_bytes()
    rows = pd.read_parquet(path)
    final = rows["phase"] == "final"
    rows.loc[final, "loss"] *= 0.9
    rows.loc[rows["phase"] == "train", "bytes_up"] //= 10
    rows.to_parquet(path)
    try:
        found = evidence(run_directory("exp4_atlas", home)).set_index("check")["ok"]
    finally:
        path.write_bytes(kept)
    refused = sorted(check.split(" (")[0] for check in found[~found].index)
    assert refused == ["bytes of one update", "loss is cross-entropy"]
