"""Programs as a user starts them, over a tiny model and tiny tasks on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fakes import tiny_model, tiny_task

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give an experiment that uses a vault, dropout, server momentum and uneven shards."""
    home = tmp_path_factory.mktemp("e2e")
    return {
        "run": {"name": "engines", "rounds": 2, "clients": 4, "seed": 11},
        "model": {"name": tiny_model(home / "model", "gpt2"), "max-length": 16, "head": "local"},
        "data": {
            "tasks": ["two", "three"],
            "samples-per-client": 24,
            "partitioner": "dirichlet",
        },
        "task": [
            tiny_task(home / "two", "csv", seed=1),
            tiny_task(home / "three", "parquet", num_labels=3, seed=3),
        ],
        "train": {"batch-size": 4, "learning-rate": 0.01},
        "lora": {"rank": 2, "dropout": 0.1},
        "strategy": {"name": "fedavgm"},
        "engine": {"device": "cpu", "workers": 2},
    }


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``atlas`` in an empty folder, with an own folder for temporary files."""
    cwd = tmp_path / "cwd"
    cwd.mkdir()

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        atlas = Path(sys.executable).with_name("atlas")
        return subprocess.run(
            [atlas, *map(str, words)],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "ATLAS_E2E": str(tmp_path)},
            check=False,
            timeout=300,
        )

    return run


def left_behind(name: str, value: str) -> list[psutil.Process]:
    """Return the living processes whose environment holds ``name=value``."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(name) == value
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture
def leftovers() -> Callable[[str, str], list[psutil.Process]]:
    """Give ``left_behind``."""
    return left_behind
