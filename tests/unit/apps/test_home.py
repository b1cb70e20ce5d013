"""A node's config, and what importing the ClientApp costs a greeting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from atlas_flwr.apps.client import EVALUATES, TRAINS
from atlas_flwr.apps.home import Home, read_home
from atlas_flwr.apps.visit import ACTIONS, vault_root
from atlas_flwr.config.load import parse_config
from atlas_flwr.errors import DataError, WireError


def test_the_vault_lies_in_the_data_folder_unless_it_has_a_place(tmp_path: Path) -> None:
    data, vault = tmp_path / "data", tmp_path / "vault"
    told = {"partition-id": 1, "data-path": str(data)}
    assert read_home(told) == Home(1, data, data / "vault")
    assert read_home({**told, "vault-path": str(vault)}) == Home(1, data, vault)
    assert read_home({"partition-id": 0, "num-partitions": 2}) == Home(0)


@pytest.mark.parametrize("value", [None, "0", True, 1.0])
def test_a_partition_is_an_integer(value: object) -> None:
    with pytest.raises(WireError, match="partition-id must be an integer"):
        read_home({"partition-id": value})


@pytest.mark.parametrize("value", ["data", 3, ""])
def test_paths_are_absolute(value: object) -> None:
    with pytest.raises(DataError, match="data-path must be an absolute path"):
        read_home({"partition-id": 0, "data-path": value})


def test_every_action_has_a_handler() -> None:
    assert {f"train.{a}" for a in TRAINS} | {f"evaluate.{a}" for a in EVALUATES} == {*ACTIONS}


def test_a_greeting_loads_no_model_code() -> None:
    heavy = ("torch", "transformers", "peft", "pandas", "sklearn", "datasets", "ray")
    code = f"import atlas_flwr.apps.client, sys; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_disk_of_its_own_keeps_runs_apart_and_a_resumed_run_together(tmp_path: Path) -> None:
    def config(**run: object):
        return parse_config({"run": {"out": "/runs/a", **run}, "data": {"tasks": ["sst2"]}})

    home = Home(0, vault=tmp_path)
    one = vault_root(config(), home)
    assert one.parent == tmp_path
    assert vault_root(config(rounds=9), home) == one
    others = [config(out="/runs/b"), config(seed=1), config(name="b")]
    assert len({one, *(vault_root(each, home) for each in others)}) == 4
    assert vault_root(config(), Home(0)) == Path("/runs/a/vault")
