"""The guide's functions: same names, same keys, same lines, over the one run there is."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import experiments
from atlas_flwr.errors import ConfigError, ResultError, RunStopped
from atlas_flwr.results.store import read_run
from experiments.guided import ATLAS_SET, ROUND_KEYS, RoundLines
from experiments.real_training import (
    LoRAFederatedTrainer,
    RealFederatedTrainer,
    run_quick_experiment,
)
from guide import ANALYZE, CUSTOM, WITH_LORA, atlas_set

KEYS = (
    *("experiment_name", "model_name", "task_name", "num_rounds", "num_clients", "use_lora"),
    *("lora_rank", "total_time_minutes", "final_accuracy", "final_loss", "round_results"),
)


@pytest.fixture(autouse=True)
def guide_folder(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    folder_of: Callable[[str], str],
    sections: dict[str, dict[str, Any]],
    no_report: None,
) -> Path:
    """Work in an empty folder, offline and small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(
        ATLAS_SET, atlas_set(folder_of("distilbert"), [sections["two"]], "run.clients=3")
    )
    return tmp_path


def more(monkeypatch: pytest.MonkeyPatch, *items: str) -> None:
    """Lay items over what ``ATLAS_SET`` says."""
    import os  # noqa: PLC0415

    monkeypatch.setenv(ATLAS_SET, ";".join([os.environ[ATLAS_SET], *items]))


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_quick_experiment_says_returns_and_keeps_what_the_guide_says(
    guide_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_quick_experiment("exp2_lora_fl", num_rounds=2, use_lora=True, lora_rank=2)
    said = lines(capsys)
    assert tuple(result) == KEYS
    assert all(tuple(each) == ROUND_KEYS for each in result["round_results"])
    assert json.loads((guide_folder / "results/exp2_lora_fl.json").read_text()) == result
    assert (result["num_rounds"], result["use_lora"], result["lora_rank"]) == (2, True, 2)
    first = result["round_results"][0]
    assert said[:3] == [
        "[INIT] Using device: cpu",
        "[ROUND 1/2]",
        f"  Accuracy: {first['accuracy']:.4f}, Loss: {first['loss']:.4f}, "
        f"Time: {first['time_seconds']:.1f}s",
    ]
    assert "[ROUND 2/2]" in said
    # Every number is the run directory's own.
    run = read_run(guide_folder / "results/runs/exp2_lora_fl")
    assert result["final_accuracy"] == run.summary["final"]["accuracy"]
    assert result["total_time_minutes"] == run.summary["seconds"] / 60
    for told, record in zip(result["round_results"], run.rounds, strict=True):
        assert told["communication_mb"] == (record["bytes_up"] + record["bytes_down"]) / 1e6
        assert told["memory_mb"] == record["memory_mb"] > 0


def test_calling_it_again_reads_the_finished_run(capsys: pytest.CaptureFixture[str]) -> None:
    first = run_quick_experiment("again", num_rounds=1)
    rounds = Path("results/runs/again/rounds.jsonl").stat().st_mtime_ns
    capsys.readouterr()
    assert run_quick_experiment("again", num_rounds=1) == first
    assert any("is finished" in line for line in lines(capsys))
    assert Path("results/runs/again/rounds.jsonl").stat().st_mtime_ns == rounds
    with pytest.raises(ResultError, match=r"rounds is 2 here, 1 there.*experiment_name"):
        run_quick_experiment("again", num_rounds=2)
    with pytest.raises(ResultError, match="already holds a finished run"):
        run_quick_experiment("again", num_rounds=1, resume=False)


def without_clocks(result: dict[str, Any]) -> dict[str, Any]:
    clocks = {"time_seconds", "memory_mb", "communication_mb", "total_time_minutes"}
    rounds = [{k: v for k, v in r.items() if k not in clocks} for r in result["round_results"]]
    return {k: v for k, v in result.items() if k not in clocks} | {"round_results": rounds}


@contextmanager
def pressed_in_round_2(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be the user who presses Ctrl-C as round 2 begins."""
    handle = RoundLines.handle

    def pressed(self: RoundLines, event: dict[str, Any]) -> None:
        if event["event"] == "phase" and event["round"] == 2:
            raise KeyboardInterrupt
        handle(self, event)

    with monkeypatch.context() as inside:
        inside.setattr(RoundLines, "handle", pressed)
        yield


def test_an_interrupted_one_goes_on_to_the_same_numbers(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the same folder, and from its mirror alone."""
    asked: dict[str, Any] = {"num_rounds": 2, "use_lora": True, "lora_rank": [2, 4]}
    mirror = tmp_path / "drive"
    with (
        pressed_in_round_2(monkeypatch),
        pytest.raises(RunStopped, match="run the same cell again"),
    ):
        run_quick_experiment("e", **asked, mirror=mirror)
    shutil.rmtree("results")  # the machine is gone, the drive is not
    capsys.readouterr()
    fetched = run_quick_experiment("e", **asked, mirror=mirror)
    said = lines(capsys)
    assert any(line.startswith("[INIT] Fetched from its mirror") for line in said)
    assert "[INIT] Going on after round 1" in said
    assert "[ROUND 1/2]" not in said
    whole = run_quick_experiment("e", **asked, out="undisturbed")
    assert without_clocks(fetched) == without_clocks(whole)
    # Finished and lost once more: it is read from the mirror, and nothing is trained.
    shutil.rmtree("results")
    assert run_quick_experiment("e", **asked, mirror=mirror) == fetched


def test_the_guides_snippets_run_unchanged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(Path(experiments.__file__).parent))
    monkeypatch.delitem(sys.modules, "real_training", raising=False)
    more(monkeypatch, "run.rounds=1", "train.local-epochs=1")
    for snippet, adaptation in ((CUSTOM, "full"), (WITH_LORA, "lora")):
        names: dict[str, Any] = {}
        exec(snippet, names)
        trainer, results = names["trainer"], names["results"]
        assert trainer.device == "cpu"
        assert [tuple(each) for each in results] == [ROUND_KEYS]
        assert [each["round"] for each in results] == [1]
        run = read_run(trainer.run_directory)
        assert run.summary["status"] == "completed"
        assert run.config["model"]["adaptation"] == adaptation
        assert trainer.run_directory.parent == Path.cwd() / "runs"
    assert run.config["lora"]["rank"] == 16
    assert run.config["train"]["learning-rate"] == 1e-3


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_guides_analysis_runs_unchanged() -> None:
    run_quick_experiment("exp1_standard_fl", num_rounds=2)
    names: dict[str, Any] = {}
    exec(ANALYZE, names)
    assert names["rounds"] == [1, 2]
    assert all(0 <= each <= 1 for each in names["accuracy"])
    names["plt"].close("all")


def test_so_many_clients_are_drawn_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    more(monkeypatch, "run.clients=7", "data.samples-per-client=10")
    trainer = RealFederatedTrainer("distilbert-base-uncased", "sst2", num_clients=7, out="seven")
    results = trainer.run_federated_training(num_rounds=1, clients_per_round=3)
    run = read_run(Path("seven"))
    assert [len(record["participants"]) for record in run.rounds] == [3]
    assert run.config["train"]["learning-rate"] == 2e-5
    assert results[0]["train_loss"] is not None
    # A second call goes on with that directory: here it is finished.
    assert trainer.run_federated_training(num_rounds=1, clients_per_round=3) == results


def test_lora_trains_fewer_bytes_than_the_whole_model() -> None:
    full = RealFederatedTrainer("distilbert-base-uncased", "sst2", num_clients=3)
    lora = LoRAFederatedTrainer(1, model_name="distilbert-base-uncased", task_name="sst2")
    (one,), (other,) = (each.run_federated_training(1) for each in (full, lora))
    assert other["communication_mb"] < one["communication_mb"]


def test_nothing_is_not_taken_for_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ATLAS_SET)  # it would say how many rows
    with pytest.raises(ConfigError, match=r"data\.samples-per-client: .*got 0"):
        run_quick_experiment("none", num_rounds=1, max_samples=0)
    with pytest.raises(ConfigError, match=r"train\.batch-size: .*got 0"):
        run_quick_experiment("none", num_rounds=1, batch_size=0)
    assert not Path("results/runs/none").exists()


def test_paths_and_devices_are_taken_as_notebooks_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder_of: Callable[[str], str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run_quick_experiment("mine", num_rounds=1, out="~/kept")
    assert (tmp_path / "kept" / "mine.json").exists()
    assert (tmp_path / "kept" / "runs" / "mine" / "summary.json").exists()
    model = Path(folder_of("distilbert"))
    assert RealFederatedTrainer(model, "sst2", device=torch.device("cpu")).device == "cpu"


def test_a_long_name_is_still_one_that_windows_has() -> None:
    for stop in range(55, 64):
        RealFederatedTrainer("x" * stop + ".b", "sst2")
