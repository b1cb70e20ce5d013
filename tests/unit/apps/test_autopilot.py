"""One client measured for real, on the CPU; what a GPU would be told, with a GPU that answers."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_flwr.apps import autopilot
from atlas_flwr.apps.autopilot import Shares, foreseen, measured_apart, plan_of, shares
from atlas_flwr.apps.prepare import prepare
from atlas_flwr.config.load import load_config
from atlas_flwr.config.schema import Config
from atlas_flwr.errors import ConfigError, RunFailed
from fakes import tiny_task, write_experiment

MEASURED = {
    **{"partition": 1, "rank": 4, "device": "cuda", "batch": 16, "measured_batch": 16},
    **{"peak_mb": 1_500.0, "base_mb": 900.0, "host_mb": 2_000.0, "host_free_mb": 64_000.0},
    **{"free_mb": 14_000.0, "total_mb": 16_000.0, "gpus": 1},
}


@pytest.fixture
def config_of(folder_of: Callable[[str], str], tmp_path: Path) -> Callable[..., Config]:
    """Give a small experiment with sections laid over it."""
    tree = {
        "run": {"clients": 3, "out": str(tmp_path / "out")},
        "model": {"name": folder_of("bert"), "max-length": 16},
        "data": {"tasks": ["two"], "samples-per-client": 24},
        "task": [tiny_task(tmp_path / "two")],
        "lora": {"rank": [2, 4]},
        "strategy": {"name": "flexlora"},
    }
    (tmp_path / "out").mkdir()

    def config(**sections: dict[str, Any]) -> Config:
        return load_config(write_experiment(tmp_path / "e.toml", tree, **sections))

    return config


def test_one_client_is_measured_in_a_process_of_its_own(config_of: Callable[..., Config]) -> None:
    config = config_of(engine={"device": "cpu"}, train={"batch-size": 8})
    found = measured_apart(config)
    assert found["device"] == "cpu"
    assert (found["partition"], found["rank"]) == (1, 4)  # the first of the largest
    assert (found["batch"], found["measured_batch"]) == (8, 8)
    assert 100 < found["base_mb"] <= found["peak_mb"] < found["total_mb"]
    assert 0 < found["host_mb"] <= found["peak_mb"] * 1.01
    chosen = plan_of({**found, "host_free_mb": found["host_mb"] * 2.5}, config)
    assert chosen.workers <= 2
    tight = {**found, "free_mb": found["base_mb"] * 0.5}
    with pytest.raises(ConfigError, match="one client needs"):
        plan_of(tight, config)


@pytest.mark.slow
def test_a_micro_batch_that_was_asked_for_is_no_lack_of_memory(
    config_of: Callable[..., Config],
) -> None:
    found = measured_apart(config_of(engine={"device": "cpu", "micro-batch": 2}))
    assert (found["batch"], found["measured_batch"]) == (2, 2)
    assert len(plan_of(found, config_of()).reasons) == 1  # not "does not fit"


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ("print('{\"peak_mb\": 1}'); print('bye {}')", None),
        ("print('bye')", "it told nothing"),
        ("pass", "it told nothing"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9"),
        ("import time; time.sleep(60)", "no end after 2 s"),
    ],
)
def test_whatever_a_measurement_says_at_its_end(
    says: str, told: str | None, config_of: Callable[..., Config], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An interpreter that answers in its place: libraries print, the system kills, cards hang."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} -c {shlex.quote(says)}\n")
    python.chmod(0o755)
    config = config_of()
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(autopilot, "_SECONDS", 2.0)
    if told is None:
        assert measured_apart(config) == {"peak_mb": 1}
        return
    with pytest.raises(RunFailed, match=f"measuring one client failed .{told}"):
        measured_apart(config)


@pytest.mark.slow
def test_a_measurement_that_breaks_is_told_in_a_line(config_of: Callable[..., Config]) -> None:
    broken = config_of(train={"learning-rate": 1e30}, engine={"device": "cpu"})
    with pytest.raises(RunFailed, match=r"measuring one client failed .*not finite.* set a share"):
        measured_apart(broken)


@pytest.mark.slow
def test_longer_rows_and_larger_batches_need_more(config_of: Callable[..., Config]) -> None:
    """On MiniLM, whose activations are felt, and not on a tiny model."""
    peaks = []
    for batch in (2, 24):
        rows = {"tasks": ["bbc"], "samples-per-client": 40}
        config = config_of(
            model={"name": "minilm", "max-length": 64}, data=rows, engine={"device": "cpu"},
            train={"batch-size": batch},
        )  # fmt: skip
        peaks.append(measured_apart(config)["peak_mb"])
    assert peaks[1] > peaks[0] + 50


@pytest.mark.gpu
@pytest.mark.slow
def test_what_is_measured_on_a_gpu_fits_it(config_of: Callable[..., Config]) -> None:
    found = measured_apart(config_of())
    assert found["device"] == "cuda"
    assert found["gpus"] == torch.cuda.device_count()
    assert 0 < found["base_mb"] <= found["peak_mb"] <= found["total_mb"]
    assert plan_of(found, config_of()).workers >= 1


def test_nothing_is_measured_on_a_cpu_or_where_the_share_is_given(
    config_of: Callable[..., Config], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert shares(config_of(engine={"device": "cpu", "workers": 2}), out) == Shares(2, 0.0)
    given = config_of(engine={"gpus-per-client": 0.25, "workers": 3})
    assert shares(given, out) == Shares(3, 0.25)
    assert not list(out.iterdir())


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Pretend a GPU on which one client was measured; what was may be changed."""
    found = dict(MEASURED)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(autopilot, "measured_apart", lambda config: found)
    return found


def test_the_choice_is_told_and_written_down(
    config_of: Callable[..., Config], gpu: dict[str, Any], tmp_path: Path
) -> None:
    chosen = shares(config_of(engine={"workers": 3}), tmp_path / "out")
    assert (chosen.workers, chosen.fraction, chosen.micro_batch) == (3, 0.3333, None)
    assert "3 clients share a GPU: one needs 1,500 MB" in chosen.told[0]
    written = json.loads((tmp_path / "out" / "autopilot.json").read_text())
    assert written["measured"] == gpu
    assert written["chosen"]["fraction"] == 0.3333
    assert written["chosen"]["reasons"] == list(chosen.told)


def test_a_card_too_small_for_a_batch_gives_a_micro_batch(
    config_of: Callable[..., Config], gpu: dict[str, Any], tmp_path: Path
) -> None:
    gpu |= {"peak_mb": 9_000.0, "base_mb": 1_000.0, "free_mb": 4_000.0}
    chosen = shares(config_of(engine={"workers": 3}), tmp_path / "out")
    assert (chosen.workers, chosen.micro_batch) == (1, 4)
    gpu |= {"base_mb": 8_000.0}
    with pytest.raises(ConfigError, match="single row"):
        shares(config_of(), tmp_path / "out")
    assert not (tmp_path / "out" / "autopilot.json").exists()


def test_check_foresees_it_by_the_memory_model(config_of: Callable[..., Config]) -> None:
    def line(**sections: dict[str, Any]) -> str:
        config = config_of(**sections)
        return foreseen(config, prepare(config).method.setting)

    assert line(engine={"kind": "inline"}) == "one client at a time"
    assert line(engine={"device": "cpu", "workers": 2}) == "2 clients at a time on the CPU"
    if torch.cuda.is_available():
        assert "predicted, before the run measures one" in line()
    else:
        assert "on a GPU of 15 GB, predicted:" in line(engine={"workers": 2})
    many = line(engine={"workers": 3}, train={"batch-size": 4096}, model={"max-length": 64})
    assert "clients" in many
