"""One run through the command line: every promise of its directory, and its models reopened."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import PeftModel
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from fakes import task_rows, write_experiment
from runs import Run

KINDS = ("adapter", "head", "weights", "fingerprint", "activation", "gradient", "other")
METRICS = {"accuracy", "f1", "macro_f1", "mcc", "loss"}
COLUMNS = [
    *("round", "partition", "task", "cluster", "phase", "num_examples", "loss", "accuracy"),
    *("f1", "macro_f1", "mcc", "ranks", "seconds", "bytes_up", "bytes_down", "peak_memory_mb"),
    *("precision", "status", "error"),
]
TWO_TASKS = {"data": {"tasks": ["two", "three"]}, "run": {"clients": 4}}


def test_the_directory_holds_what_the_contract_says(run: Callable[..., Run]) -> None:
    found = run(**TWO_TASKS)
    summary = found.summary
    files = {str(p.relative_to(found.folder)) for p in found.folder.rglob("*") if p.is_file()}
    assert files >= {
        *("config.toml", "provenance.json", "rounds.jsonl", "clients.parquet", "summary.json"),
        *("summary.csv", "report.html", "plots/accuracy.png", "plots/loss.png"),
        *("plots/clients.png", "plots/bytes.png", "plots/memory.png", "plots/merge.png"),
        *(f"adapters/task-{task}/adapter_model.safetensors" for task in ("two", "three")),
    }
    assert not [name for name in files if name.endswith((".tmp", ".part", ".pkl", ".pt", ".bin"))]
    assert set(summary) == {
        *("experiment", "strategy", "model", "engine", "seed", "status", "rounds_completed"),
        *("final", "bytes", "seconds", "peak_memory_mb", "round_results"),
    }
    assert (summary["experiment"], summary["strategy"], summary["engine"]) == (
        *("tiny", "fedavg"),
        "inline",
    )
    assert (summary["seed"], summary["status"], summary["rounds_completed"]) == (7, "completed", 2)
    final = summary["final"]
    assert set(final) == {"accuracy", "loss", "worst_client_accuracy", "by_task", "own"}
    assert set(final["own"]) == {"accuracy", "loss", "worst_client_accuracy", "by_task"}
    for scores in (final["by_task"], final["own"]["by_task"]):
        assert set(scores) == {"two", "three"}
        assert all(set(task) == METRICS for task in scores.values())
        assert scores["three"]["f1"] is None
        assert scores["two"]["f1"] is not None
    tasks = final["by_task"].values()
    assert final["accuracy"] == pytest.approx(np.mean([task["accuracy"] for task in tasks]))
    assert final["loss"] == pytest.approx(np.mean([task["loss"] for task in tasks]))
    assert summary["peak_memory_mb"] > 100
    assert json.loads((found.folder / "provenance.json").read_text())["argv"][1:2] == ["run"]
    (row,) = csv.DictReader((found.folder / "summary.csv").read_text().splitlines())
    assert float(row["Final Accuracy"]) == final["accuracy"]


@pytest.mark.usefixtures("no_report")
def test_rounds_rows_and_bytes_add_up(run: Callable[..., Run]) -> None:
    found = run(**TWO_TASKS)
    summary, rows = found.summary, found.clients
    assert found.rounds == summary["round_results"]
    assert [line["round"] for line in found.rounds] == [1, 2]
    total = summary["bytes"]
    assert tuple(total["by_kind"]) == KINDS
    assert all(isinstance(count, int) for count in total["by_kind"].values())
    assert sum(total["by_kind"].values()) == total["up"] + total["down"]
    assert (total["up"], total["down"]) == (rows.bytes_up.sum(), rows.bytes_down.sum())
    assert total["by_kind"]["weights"] == 0
    assert min(total["by_kind"][kind] for kind in ("adapter", "head", "other")) > 0

    assert list(rows.columns) == COLUMNS
    asked = sorted(zip(rows["round"], rows.phase, rows.partition, strict=True))
    expected = [(r, phase, p) for r in (1, 2) for phase in ("evaluate", "train") for p in range(4)]
    assert asked == sorted([*expected, *((2, "final", p) for p in range(4))])
    assert set(rows.status) == {"ok"}
    assert set(rows.precision) == {"fp32"}
    assert rows.error.isna().all()
    assert rows.cluster.isna().all()
    assert dict(zip(rows.partition, rows.task, strict=True)) == {
        **dict.fromkeys((0, 1), "two"),
        **dict.fromkeys((2, 3), "three"),
    }
    train, own = rows[rows.phase == "train"], rows[rows.phase == "evaluate"]
    assert set(train.num_examples) == {24}
    assert train.accuracy.isna().all()
    assert not own.accuracy.isna().any()
    for line in found.rounds:
        here = own[own["round"] == line["round"]]
        expected_accuracy = np.average(here.accuracy, weights=here.num_examples)
        assert line["accuracy"] == pytest.approx(expected_accuracy)
        moved = rows[(rows["round"] == line["round"]) & (rows.phase != "final")]
        assert line["bytes_up"] == moved.bytes_up.sum() == sum(line["by_kind_up"].values())
        assert line["communication_mb"] * 1e6 == pytest.approx(
            line["bytes_up"] + line["bytes_down"]
        )
    final = rows[rows.phase == "final"].sort_values("partition")
    assert set(final.num_examples) == {48}
    # A model is scored once; who holds the same one has its scores and no bytes.
    assert list(final.bytes_up > 0) == [True, False, True, False]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("partitioner", ["iid", "dirichlet"])
def test_slices_of_even_clients_are_the_validation_rows_and_of_skewed_ones_fewer(
    run: Callable[..., Run], partitioner: str
) -> None:
    rows = run(data={"partitioner": partitioner, "alpha": 0.3}).clients
    own = rows[(rows.phase == "evaluate") & (rows["round"] == 1)].num_examples
    assert own.sum() == 48 if partitioner == "iid" else 0 < own.sum() < 48


@pytest.mark.usefixtures("no_report")
def test_the_resolved_config_runs_again_to_the_same_bits(
    run: Callable[..., Run], atlas: Callable[..., Any], tmp_path: Path
) -> None:
    first = run("first", **TWO_TASKS, lora={"dropout": 0.1})
    resolved = tomllib.loads((first.folder / "config.toml").read_text())
    assert resolved["train"]["learning-rate"] == 0.01
    assert resolved["model"]["head"] == "per_task"
    assert resolved["run"]["fraction"] == 1.0
    again = tmp_path / "again"
    assert atlas("run", first.folder / "config.toml", "--out", again).code == 0
    second = Run.read(again)
    assert second.tensors() == first.tensors()
    assert len(first.tensors()) == 2
    assert second.measured() == first.measured()
    third = run("third", **TWO_TASKS | {"run": {"clients": 4, "seed": 8}}, lora={"dropout": 0.1})
    assert third.tensors().keys() == first.tensors().keys()
    assert all(third.tensors()[name] != data for name, data in first.tensors().items())


@pytest.mark.usefixtures("no_report")
def test_training_learns(run: Callable[..., Run], folder_of: Callable[[str], str]) -> None:
    found = run(
        run={"rounds": 6},
        model={"name": folder_of("gpt2")},
        train={"batch-size": 4},
        data={"samples-per-client": 48},
    )
    accuracies = [line["accuracy"] for line in found.rounds]
    assert accuracies[-1] > 0.9
    assert found.rounds[-1]["train_loss"] < found.rounds[0]["train_loss"] / 2
    assert found.summary["final"]["by_task"]["two"]["mcc"] > 0.8


def scores_of(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the scores of any transformers model, by scikit-learn, one row at a time."""
    labels = [row["label"] for row in rows]
    logits = []
    with torch.inference_mode():
        for row in rows:
            ids = tokenizer(row["text"], truncation=True, max_length=16, return_tensors="pt")
            logits.append(model.eval()(**ids).logits[0])
    table = torch.stack(logits)
    said = table.argmax(1).numpy()
    return {
        "accuracy": float(accuracy_score(labels, said)),
        "f1": float(f1_score(labels, said)),
        "macro_f1": float(f1_score(labels, said, average="macro")),
        "mcc": float(matthews_corrcoef(labels, said)),
        "loss": float(torch.nn.functional.cross_entropy(table, torch.tensor(labels))),
    }


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("adaptation", ["lora", "full"])
@pytest.mark.parametrize("architecture", ["distilbert", "bert", "roberta", "gpt2"])
def test_exported_models_give_the_scores_of_the_summary(
    run: Callable[..., Run], folder_of: Callable[[str], str], architecture: str, adaptation: str
) -> None:
    base = folder_of(architecture)
    found = run(
        model={"name": base, "adaptation": adaptation},
        train={"batch-size": 4},
        run={"rounds": 3, "clients": 2},
    )
    folder = found.folder / ("adapters" if adaptation == "lora" else "models") / "global"
    config = AutoConfig.from_pretrained(folder)
    assert config.num_labels == 2
    if adaptation == "lora":
        plain = AutoModelForSequenceClassification.from_pretrained(base, config=config)
        model = PeftModel.from_pretrained(plain, folder)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    theirs = scores_of(model, AutoTokenizer.from_pretrained(folder), task_rows(48, seed=1001))
    ours = found.summary["final"]["by_task"]["two"]
    assert theirs == pytest.approx(ours, abs=1e-5)


def test_a_failed_check_and_a_good_one(
    atlas: Callable[..., Any], tree: dict[str, Any], tmp_path: Path
) -> None:
    file = write_experiment(tmp_path / "e.toml", tree)
    said = atlas("check", file, "--set", "data.partitioner=dirichlet")
    assert said.code == 0
    assert "nothing is wrong" in said.out
    assert not list(Path.cwd().iterdir())


def test_compare_reads_what_run_writes(
    run: Callable[..., Run], atlas: Callable[..., Any], tmp_path: Path
) -> None:
    one, two = run("one"), run("two", strategy={"name": "local_only"})
    said = atlas("compare", one.folder, two.folder, "--out", tmp_path / "side-by-side")
    assert said.code == 0, said
    assert (tmp_path / "side-by-side" / "comparison.html").is_file()
    assert pd.read_parquet(one.folder / "clients.parquet").shape == one.clients.shape
