"""The real command line in this process, over tiny models and tasks on disk."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atlas_flwr.apps.cli import main
from fakes import tiny_task, write_experiment
from runs import Run, Said, assert_refused


@pytest.fixture(scope="session")
def sections(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Give three tasks of one's own: ``two`` (csv), ``deux`` (jsonl), ``three`` (parquet)."""
    home = tmp_path_factory.mktemp("tasks")
    return {
        "two": tiny_task(home / "two", "csv", seed=1),
        "deux": tiny_task(home / "deux", "jsonl", seed=2),
        "three": tiny_task(home / "three", "parquet", num_labels=3, seed=3),
    }


@pytest.fixture(scope="session")
def tree(folder_of: Callable[[str], str], sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Give a small experiment: three clients, one task, two rounds, inline, in about a second."""
    return {
        "run": {"name": "tiny", "rounds": 2, "clients": 3, "seed": 7},
        "model": {"name": folder_of("distilbert"), "max-length": 16},
        "data": {"tasks": ["two"], "samples-per-client": 24},
        "task": list(sections.values()),
        # Pinned: under "auto" a processor with bf16 instructions rounds, and oracles are in fp32.
        "train": {"batch-size": 8, "learning-rate": 0.01, "precision": "fp32"},
        "lora": {"rank": 2},
        "strategy": {"name": "fedavg"},
        "engine": {"kind": "inline", "device": "cpu"},
    }


@pytest.fixture
def atlas(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Said]:
    """Run the command line in this process, from an empty folder."""
    home = tmp_path / "cwd"
    home.mkdir()
    monkeypatch.chdir(home)

    def command(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["atlas", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return Said(int(ended.value.code or 0), printed.out, printed.err)

    return command


@pytest.fixture
def run(atlas: Callable[..., Said], tree: dict[str, Any], tmp_path: Path) -> Callable[..., Run]:
    """Run the small experiment with sections laid over it; return its run directory."""

    def experiment(out: str = "out", code: int = 0, **sections: dict[str, Any]) -> Run:
        file = write_experiment(tmp_path / f"{out}.toml", tree, **sections)
        said = atlas("run", file, "--out", tmp_path / out)
        assert said.code == code, said
        return Run.read(tmp_path / out)

    return experiment


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the plots and the page out: most of a tiny run's seconds."""
    monkeypatch.setattr("atlas_flwr.apps.server.publish", lambda out: None)


@pytest.fixture
def refused(
    atlas: Callable[..., Said], tree: dict[str, Any], tmp_path: Path
) -> Callable[..., None]:
    """Run the small experiment with sections laid over it; it must be refused with the words."""

    def check(*words: str, **sections: dict[str, Any]) -> None:
        file = write_experiment(tmp_path / "e.toml", tree, **sections)
        assert_refused(atlas("run", file, "--out", tmp_path / "out"), *words)
        assert not (tmp_path / "out").exists()
        assert not list(Path.cwd().iterdir())

    return check
