"""What pages say of a run directory is what a run leaves; the strategy they show works."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from atlas_flwr.results.store import read_run
from runs import Run
from strategies.registry import STRATEGIES

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "reference" / "run-directory.md").read_text("utf-8")


def first_column(title: str) -> list[str]:
    """Code cells of the first column of a section's table."""
    (section,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
    return re.findall(r"^\| `([^`]+)` \|", section, flags=re.M)


@pytest.fixture
def atlas_run(run: Callable[..., Run]) -> Run:
    return run(
        run={"rounds": 1, "clients": 4},
        data={"tasks": ["two", "three"]},
        strategy={"name": "atlas"},
    )


def test_every_file_key_and_column_is_told(atlas_run: Run) -> None:
    folder = atlas_run.folder
    patterns = [re.sub(r"<\w+>", "*", name) for name in first_column("Files")]
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    for name in found:
        assert any(fnmatch(name, pattern) for pattern in patterns), name
    may_lack = {"checkpoints/*", "models/*", "vault/*", "nodes/*"}
    for pattern in patterns:
        optional = any(fnmatch(pattern, other) for other in may_lack)
        assert optional or any(fnmatch(name, pattern) for name in found), pattern

    told = set(first_column("summary.json"))
    summary = atlas_run.summary
    assert {key for key in told if "." not in key} == summary.keys()
    for parent in ("final", "bytes"):
        assert {k.split(".")[1] for k in told if k.startswith(f"{parent}.")} == summary[
            parent
        ].keys()
    assert summary["final"]["own"].keys() == summary["final"].keys() - {"own"}
    for line in (*atlas_run.rounds, *summary["round_results"]):
        assert line.keys() <= set(first_column("rounds.jsonl"))
    assert set(first_column("rounds.jsonl")) == atlas_run.rounds[0].keys()
    for kind in summary["bytes"]["by_kind"]:
        assert f"`{kind}`" in PAGE
    assert first_column("clients.parquet") == list(atlas_run.clients.columns)
    with (folder / "summary.csv").open(encoding="utf-8") as file:
        assert first_column("summary.csv") == next(csv.reader(file))
    provenance = json.loads((folder / "provenance.json").read_text())
    assert {"argv", "seed", "commit", "versions", "machine"} <= provenance.keys()
    assert read_run(folder).summary["status"] == "completed"  # as the page reads it


def test_the_strategy_on_the_page_goes_as_far_as_it_says(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, no_report: None
) -> None:
    text = (DOCS / "howto" / "strategy.md").read_text("utf-8")
    (code,) = re.findall(r'^```python title="halfway.py"\n(.*?)^```', text, re.S | re.M)
    program = compile(code, "halfway.py", "exec", dont_inherit=True)  # of our own __future__
    names: dict[str, Any] = {"__name__": "halfway"}
    exec(program, names)
    monkeypatch.setitem(STRATEGIES, "halfway", names["Halfway"])
    ends = {}
    for name, options in (("fedavg", {}), ("halfway", {"share": 0.25})):
        ended = run(name, run={"rounds": 1}, strategy={"name": name, "options": options})
        ends[name] = load_file(ended.folder / "adapters/global/adapter_model.safetensors")
    for name, mean in ends["fedavg"].items():
        if "lora_B" in name:  # it starts at zero
            assert ends["halfway"][name] == pytest.approx(0.25 * mean, rel=1e-5, abs=1e-9)
