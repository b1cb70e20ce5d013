"""The suite's table: means and spreads against NumPy, absent numbers never as zero."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from atlas_flwr.results.store import RunResult
from atlas_flwr.results.suites.table import largest, spread, suite_csv, suite_row, suite_table


def result(accuracy: float | None, seed: int, last: dict[str, Any], task: str = "a") -> RunResult:
    scores = {"accuracy": accuracy, "worst_client_accuracy": 0.25, "loss": 1.0}
    final = {**scores, "own": scores, "by_task": {task: scores}}
    summary = {
        **{"strategy": "fedavg", "seed": seed, "status": "completed", "rounds_completed": 2},
        **{"final": final, "bytes": {"up": 2_000_000, "down": 3_000_000}, "seconds": 1.5},
        "peak_memory_mb": 100.0,
        "round_results": [{"aggregation_error": 9.0}, last],
    }
    config = {
        "train": {"learning-rate": 0.1},
        "model": {"adaptation": "lora"},
        "lora": {"rank": [2, 4]},
    }
    told = {"commit": "abc", "dirty": True, "versions": {"atlas-flwr": "1"}}
    return RunResult(summary, [], pd.DataFrame(), config, Path(), "", told)


def test_a_row_has_the_last_round_s_errors_in_one_number_each() -> None:
    last = {"aggregation_error": None, "truncation_error": {"2": 0.5, "4": 0.1}}
    row = suite_row(result(0.5, 1, last), "s", "x", "s/x/seed-1")
    assert row["aggregation_error"] is None
    assert row["truncation_error"] == 0.5
    assert row["compression_error"] is None
    assert (row["ranks"], row["commit"], row["version"]) == ("2,4", "abc-dirty", "1")
    assert (row["accuracy_a"], row["own_accuracy"], row["path"]) == (0.5, 0.5, "s/x/seed-1")


def test_ranks_are_those_dealt_in_turn() -> None:
    run = result(0.5, 1, {})
    run.config["devices"] = {"profiles": ["b", "a", "b"]}
    run.config["device"] = [{"name": "a", "rank": 4}, {"name": "b", "rank": 16}]
    del run.config["lora"]["rank"]
    assert suite_row(run, "s", "x", "p")["ranks"] == "16,4,16"
    run.config["model"]["adaptation"] = "full"
    assert suite_row(run, "s", "x", "p")["ranks"] == "full"


def test_the_csv_has_a_column_for_every_task() -> None:
    rows = [
        suite_row(result(0.5, 1, {}, "a"), "a", "x", "p"),
        suite_row(result(1 / 3, 1, {}, "b"), "b", "x", "q"),
    ]
    first, second = csv.DictReader(io.StringIO(suite_csv(rows)))
    assert (first["accuracy_a"], first["accuracy_b"]) == ("0.5", "")
    assert float(second["accuracy_b"]) == 1 / 3
    assert suite_csv([]).startswith("setting,label,strategy,seed,rounds,learning_rate,ranks,prec")


def test_a_row_says_in_which_formats_its_clients_trained() -> None:
    run = result(0.5, 1, {})
    assert suite_row(run, "s", "x", "p")["precision"] is None
    told = replace(run, clients=pd.DataFrame({"precision": ["fp32", None, "bf16", "fp32"]}))
    assert suite_row(told, "s", "x", "p")["precision"] == "bf16+fp32"


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_the_spread_is_numpy_s(values: list[float]) -> None:
    mean, deviation = (float(word) for word in spread([*values, None]).split(" ± "))
    assert mean == pytest.approx(np.mean(values), abs=1e-4)
    assert deviation == pytest.approx(np.std(values, ddof=1), abs=1e-4)


def test_one_seed_has_no_spread_and_no_run_no_mean() -> None:
    assert spread([0.5]) == "0.5000"
    assert spread([None]) == "–"
    assert largest([{"a": None}, 2]) == 2.0


def test_the_table_has_a_line_for_each_label() -> None:
    rows = [
        suite_row(result(accuracy, seed, {"aggregation_error": 0.125}), "s", label, "p")
        for label, pairs in {"x": [(0.5, 1), (0.7, 2)], "[y]": [(None, 1)]}.items()
        for accuracy, seed in pairs
    ]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(suite_table(rows))
    lines = console.export_text().splitlines()
    (x,) = (line for line in lines if " x " in line)
    assert all(word in x for word in ("2", "0.6000 ± 0.1414", "0.2500", "2.00", "3.00", "0.125"))
    (y,) = (line for line in lines if "[y]" in line)
    assert "–" in y
