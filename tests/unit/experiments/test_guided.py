"""Plain arguments to a checked config; the guide's names, defaults and lines."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import experiments
from atlas_flwr.errors import ConfigError
from experiments.guided import ATLAS_SET, SIZES, RoundLines, device_of, experiment, size_named
from experiments.real_training import (
    LoRAFederatedTrainer,
    RealFederatedTrainer,
    run_quick_experiment,
)

TREE = {"run": {"name": "a", "rounds": 3}, "data": {"tasks": ["tweets"]}}


def guide_names(function) -> dict[str, object]:
    """Return the names and defaults before the first ``*``."""
    kinds = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD}


def test_names_and_defaults_are_the_guides() -> None:
    empty = inspect.Parameter.empty
    assert guide_names(run_quick_experiment) == {
        "experiment_name": empty,
        "model_name": "distilbert-base-uncased",
        "task_name": "sst2",
        "num_rounds": 5,
        "num_clients": 5,
        "use_lora": False,
        "lora_rank": 8,
    }
    assert list(guide_names(RealFederatedTrainer).items()) == [
        ("model_name", empty),
        ("task_name", empty),
        ("num_clients", 10),
        ("local_epochs", 1),
        ("batch_size", 8),
        ("max_samples", 500),
        ("device", None),
    ]
    lora = inspect.signature(LoRAFederatedTrainer).parameters
    assert (lora["rank"].default, lora["batch_size"].default) == (8, 16)
    rounds = {"num_rounds": 10, "clients_per_round": 10}
    full = guide_names(RealFederatedTrainer.run_federated_training)
    assert full == {"self": empty, **rounds, "learning_rate": 2e-5}
    adapters = guide_names(LoRAFederatedTrainer.run_federated_training)
    assert adapters == {"self": empty, **rounds, "learning_rate": None}


def test_the_three_sizes_are_the_guides() -> None:
    told = {n: (s.rounds, s.clients, s.samples, s.batch) for n, s in SIZES.items()}
    assert told == {
        "default": (5, 5, 300, None),
        "fast": (3, 3, 200, 16),
        "very fast": (2, 3, 100, None),
    }
    with pytest.raises(ConfigError, match="did you mean 'very fast'"):
        size_named("very-fast")


def test_what_the_environment_says_lies_on_top(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ATLAS_SET, "run.rounds=1; data.tasks=['bbc'];")
    config = experiment(TREE, overrides=["run.rounds=2", "run.seed=7"])
    assert (config.run.rounds, config.run.seed, config.data.tasks) == (1, 7, ("bbc",))
    monkeypatch.setenv(ATLAS_SET, "run.ronds=1")
    with pytest.raises(ConfigError, match="did you mean 'rounds'"):
        experiment(TREE)


def test_arguments_left_out_are_the_configs_own_defaults() -> None:
    config = experiment({**TREE, "engine": {"kind": None, "device": None}})
    assert (config.engine.kind, config.engine.device) == ("ray", "auto")


def test_relative_folders_start_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = experiment({**TREE, "data": {"tasks": ["sst2"], "root": "glue"}})
    assert config.data.root == str(tmp_path / "glue")


def test_runs_that_begin_in_one_second_have_two_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "experiments.guided.with_out",
        lambda config, out: config.model_copy(
            update={"run": config.run.model_copy(update={"out": out or "runs/a-now"})}
        ),
    )
    for expected in ("runs/a-now", "runs/a-now-2", "runs/a-now-3"):
        config = experiment(TREE)
        assert config.run.out == expected
        Path(expected).mkdir(parents=True)
        (Path(expected) / "config.toml").touch()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none_is_told_with_its_mend() -> None:
    with pytest.raises(ConfigError, match="Change runtime type"):
        RealFederatedTrainer("minilm", "tweets", device="cuda")
    with pytest.raises(ConfigError, match=r"engine.device: .*got 'tpu'"):
        RealFederatedTrainer("minilm", "tweets", device="tpu")
    assert device_of(experiment(TREE)) == "cpu"


def test_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match="did you mean 'sst2'"):
        RealFederatedTrainer("minilm", "sst-2")
    with pytest.raises(ConfigError, match="did you mean 'fedavg'"):
        RealFederatedTrainer("minilm", "tweets", strategy="fed_avg")
    with pytest.raises(ConfigError, match=r"run.name: .*got 'My run'"):
        run_quick_experiment("My run", "minilm", "tweets")
    with pytest.raises(ConfigError, match="clients_per_round: 0"):
        RealFederatedTrainer("minilm", "tweets").run_federated_training(1, 0)


def test_events_become_the_guides_lines(capsys: pytest.CaptureFixture[str]) -> None:
    said = RoundLines()
    phase = {"event": "phase", "clients": 2}
    for event in (
        {"event": "start", "rounds": 5, "resumed": [0.5]},
        {**phase, "round": 2, "phase": "train"},
        {**phase, "round": 2, "phase": "evaluate"},
        {"event": "note", "partition": 1, "text": "batches of 4 after running out of memory"},
        {"event": "round", "accuracy": 0.7234, "loss": 0.56419, "time_seconds": 287.26},
        {**phase, "round": 3, "phase": "train"},
        {"event": "round", "accuracy": None, "loss": None, "time_seconds": 1},
        {**phase, "round": 3, "phase": "final"},
        {"event": "final", "accuracy": 0.75, "loss": 0.5},
    ):
        said.handle(event)
    assert capsys.readouterr().out.splitlines() == [
        "[INIT] Going on after round 1",
        "[ROUND 2/5]",
        "  client 1: batches of 4 after running out of memory",
        "  Accuracy: 0.7234, Loss: 0.5642, Time: 287.3s",
        "[ROUND 3/5]",
        "  Accuracy: n/a, Loss: n/a, Time: 1.0s",
        "[DONE] Whole evaluation sets: Accuracy: 0.7500, Loss: 0.5000",
    ]


def test_both_ways_to_import_it_work_from_any_folder(tmp_path: Path) -> None:
    folder = Path(experiments.__file__).parent
    words = (
        "import experiments.real_training as a, sys; sys.path.append(sys.argv[1]); "
        "import real_training as b; print(a.SIZES is b.SIZES, b.run_quick_experiment.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", words, str(folder)],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["True", "real_training"], done.stderr
