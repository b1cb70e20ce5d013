"""Every experiment that is shipped parses, and every name in it exists."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atlas_flwr.apps.prepare import check_names
from atlas_flwr.apps.shipped import shipped_experiments
from atlas_flwr.config.load import dump_config, load_config, parse_config
from atlas_flwr.models.catalog import MODELS

ROOT = Path(__file__).resolve().parents[2]
# Suites have tests of their own.
FILES = sorted(
    path for path in (ROOT / "experiments").rglob("*.toml") if not path.stem.startswith("suite_")
)


def test_there_are_some() -> None:
    assert ROOT / "experiments" / "demo.toml" in FILES
    assert set(shipped_experiments()) == {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_shipped_experiment_is_right(file: Path) -> None:
    config = load_config(file)
    check_names(config)
    assert config.model.name in MODELS
    assert config.run.name == file.stem
    # What a run writes as its config means the same.
    assert parse_config(tomllib.loads(dump_config(config))).model_dump() == {
        **config.model_dump(),
        "train": {**config.train.model_dump(), "learning_rate": config.learning_rate},
    }


def test_the_catalogue_names_everything(atlas: Callable[..., Any]) -> None:
    said = atlas("list")
    assert said.code == 0
    words = ("fedavg", "local_only", "centralised", "sst2", "bbc", "tweets", "minilm", "demo")
    assert all(word in said.out for word in words)


def test_the_demo_can_run(atlas: Callable[..., Any]) -> None:
    """Its data and its model open from what is installed: no hub."""
    said = atlas("check", "demo")
    assert said.code == 0, said
    assert "nothing is wrong" in said.out
    assert "bbc" in said.out
    assert "tweets" in said.out
