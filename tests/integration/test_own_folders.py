"""Clients that read folders of their own compute what those do whose rows are dealt.

The server of such a run never sees the data: its files are gone before it begins. Here the clients
share a process; the same over real processes is in ``tests/e2e/test_deployment.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atlas_flwr.apps.client import app
from atlas_flwr.apps.prepare import resolve
from atlas_flwr.apps.server import DEPLOYED, execute
from atlas_flwr.apps.shards import client_folder
from atlas_flwr.config.load import load_config, with_out
from atlas_flwr.engine.inline import InlineGrid
from atlas_flwr.errors import ConfigError
from atlas_flwr.models.backbone import forget
from fakes import tiny_task, write_experiment
from federations import OF_TWO
from runs import Run, Said, assert_refused
from strategies.registry import STRATEGIES

QUICK = ("atlas", "fedavg", "fedsa", "flora")
SIMULATED = ("centralised",)  # its clients read each other's rows


class OwnFolders(InlineGrid):
    """A grid whose nodes have a data folder and a disk for their vault."""

    def __init__(self, clients: int, shards: Path, disks: Path) -> None:
        super().__init__(app, clients)
        for partition, context in enumerate(self._contexts.values()):
            data, vault = client_folder(shards, partition), client_folder(disks, partition)
            context.node_config |= {"data-path": str(data), "vault-path": str(vault)}


def deployed(file: Path, out: Path, shards: Path, disks: Path, *overrides: str) -> Run:
    """Run an experiment over nodes with folders of their own."""
    config = resolve(with_out(load_config(file, list(overrides)), str(out)))
    execute(OwnFolders(config.run.clients, shards, disks), config, DEPLOYED, ["test"])
    return Run.read(out)


@pytest.fixture
def two_tasks(tree: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Give an experiment on files that a test may take away."""
    own = [
        tiny_task(tmp_path / "two", "csv", seed=1),
        tiny_task(tmp_path / "three", "parquet", num_labels=3, seed=3),
    ]
    data = {"tasks": ["two", "three"], "samples-per-client": 24, "partitioner": "dirichlet"}
    run = {**tree["run"], "clients": 4, "fraction": 0.5}
    return {**tree, "task": own, "data": data, "run": run}


@pytest.mark.parametrize(
    "name",
    [
        n if n in QUICK else pytest.param(n, marks=pytest.mark.slow)
        for n in sorted(STRATEGIES)
        if n not in SIMULATED
    ],
)
@pytest.mark.usefixtures("no_report")
def test_every_strategy_gives_the_same_bits_from_folders_as_from_dealt_rows(
    atlas: Callable[..., Said], two_tasks: dict[str, Any], tmp_path: Path, name: str
) -> None:
    strategy = STRATEGIES[name]
    sections: dict[str, dict[str, Any]] = {
        "lora": {"rank": [2, 4, 8, 1] if strategy.mixed_ranks else 4},
        "strategy": {"name": name, "options": OF_TWO.get(name, {})},
        "model": {"head": strategy.head or "per_task"},
    }
    file = write_experiment(tmp_path / "e.toml", two_tasks, **sections)
    said = atlas("shards", file, "--out", tmp_path / "shards")
    assert said.code == 0, said
    said = atlas("run", file, "--out", tmp_path / "dealt")
    assert said.code == 0, said
    for task in ("two", "three"):
        shutil.rmtree(tmp_path / task)
    found = deployed(file, tmp_path / "own", tmp_path / "shards", tmp_path / "disks")
    expected = Run.read(tmp_path / "dealt")
    assert (found.summary["engine"], found.summary["status"]) == (DEPLOYED, "completed")
    assert found.measured() == expected.measured()
    theirs = expected.tensors()
    assert not (found.folder / "vault").exists()
    disks = (tmp_path / "disks").rglob("round-*.safetensors")
    # Parts in a vault itself are private; on its shelf lies what the server knows too.
    private = any(path.parent.name != "carried" for path in disks)
    assert found.tensors() == ({} if private else theirs)
    assert found.rows().equals(expected.rows())


@pytest.mark.usefixtures("no_report")
def test_private_parts_stay_on_the_clients_disks(
    atlas: Callable[..., Said], two_tasks: dict[str, Any], tmp_path: Path
) -> None:
    """A model that only its client holds is exported nowhere; what is private left no trace."""
    file = write_experiment(tmp_path / "e.toml", two_tasks, model={"head": "local"})
    atlas("shards", file, "--out", tmp_path / "shards", "--no-full")
    found = deployed(file, tmp_path / "own", tmp_path / "shards", tmp_path / "disks")
    assert found.tensors() == {}
    disks = {path.parents[2].name for path in (tmp_path / "disks").rglob("round-*.safetensors")}
    trained = found.clients[found.clients.phase == "train"].partition
    assert disks == {f"client-{partition}" for partition in trained}
    assert found.summary["final"]["accuracy"] is not None
    said = (found.folder / "events.jsonl").read_text()
    assert "holds no full evaluation set" in said
    rows = found.clients[found.clients.phase == "final"].set_index("partition").num_examples
    own = found.clients[found.clients.phase == "evaluate"].groupby("partition").num_examples.max()
    assert rows.to_dict() == own.to_dict()


def test_shards_are_refused_where_they_would_mix(
    atlas: Callable[..., Said], two_tasks: dict[str, Any], tmp_path: Path
) -> None:
    file = write_experiment(tmp_path / "e.toml", two_tasks)
    assert atlas("shards", file, "--out", tmp_path / "shards").code == 0
    assert_refused(atlas("shards", file, "--out", tmp_path / "shards"), "holds a shard already")
    assert_refused(atlas("up", file, "--data", tmp_path / "nowhere"), "is not a folder")
    words = ("up", file, "--data", tmp_path / "shards", "--resume", "auto")
    said = atlas(*words)
    assert said.code == 2
    assert "--out" in said.err
    swapped = tmp_path / "swapped"
    swapped.mkdir()
    for here, there in ((0, 1), (1, 0), (2, 2), (3, 3)):
        shutil.copytree(client_folder(tmp_path / "shards", here), client_folder(swapped, there))
    assert_refused(atlas("up", file, "--data", swapped), "shard of partition 1", "partition-id")
    for path in (tmp_path / "shards").rglob("shard.json"):
        text = path.read_text().replace('"task": "two"', '"task": "three"')
        path.write_text(text)
    config = resolve(with_out(load_config(file), str(tmp_path / "own")))
    forget()
    with pytest.raises(ConfigError, match="holds rows of task 'three'"):
        execute(OwnFolders(4, tmp_path / "shards", tmp_path), config, DEPLOYED, ["test"])
    assert not (tmp_path / "own").exists()
