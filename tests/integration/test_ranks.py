"""Ranks by device and by module through the real command line: refused, shown, run, exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from atlas_flwr.config.load import load_config
from fakes import write_experiment
from runs import Run, Said

Tree = dict[str, Any]
PATTERN = {"lora": {"rank-pattern": {"attention.q_lin": 1, "ffn.lin1": 3}}}
REFUSED: dict[str, tuple[Tree, tuple[str, ...]]] = {
    "no such ending": (
        {"lora": {"rank-pattern": {"q_linn": 4}}},
        ("lora.rank-pattern: 'q_linn'", "did you mean 'q_lin'"),
    ),
    "an ending that is not adapted": (
        {"lora": {"targets": ["v_lin"], "rank-pattern": {"q_lin": 4}}},
        ("lora.rank-pattern: 'q_lin' matches no adapted module",),
    ),
    "a part of a name": (
        {"lora": {"rank-pattern": {"attention": 4}}},
        ("lora.rank-pattern: 'attention'", "the adapted modules end in k_lin, lin1, lin2"),
    ),
    "rank zero of an ending": (
        {"lora": {"rank-pattern": {"q_lin": 0}}},
        ("lora.rank-pattern.q_lin: ", "got 0"),
    ),
    "a part of a rank": (
        {"lora": {"rank-pattern": {"attention": {"q_lin": 2.5}}}},
        ("lora.rank-pattern.attention.q_lin: ", "got 2.5"),
    ),
    "truth for a rank": ({"lora": {"rank-pattern": {"q_lin": True}}}, ("q_lin: ", "got True")),
    "a number for the pattern": ({"lora": {"rank-pattern": 4}}, ("lora.rank-pattern: ", "got 4")),
    "an ending twice": (
        {"lora": {"rank-pattern": {"ffn.lin1": 1, "ffn": {"lin1": 2}}}},
        ("lora.rank-pattern: 'ffn.lin1' stands there twice",),
    ),
    "a pattern of full weights": (
        {"model": {"adaptation": "full"}, **PATTERN},
        ("lora.rank-pattern: ", "'attention.q_lin': 1", "model.adaptation = 'full'"),
    ),
}
# Over an experiment that names no rank.
REFUSED_DEVICES: dict[str, tuple[Tree, tuple[str, ...]]] = {
    "an unknown device": (
        {"devices": {"profiles": ["phone", "lapptop"]}},
        ("devices.profiles: 'lapptop'", "did you mean 'laptop'", "[[device]]"),
    ),
    "no device like it": (
        {"devices": {"profiles": ["zzz"]}},
        ("devices.profiles: 'zzz'", "known: phone, tablet, laptop, gpu"),
    ),
    "no devices": ({"devices": {"profiles": []}}, ("devices.profiles: ", "[]")),
    "one word": ({"devices": {"profiles": "phone"}}, ("devices.profiles: ", "'phone'")),
    "no profiles": ({"devices": {}}, ("devices.profiles: is required",)),
    "an unknown key of devices": (
        {"devices": {"profile": ["phone"]}},
        ("devices.", "profiles"),
    ),
    "rank and devices": (
        {"devices": {"profiles": ["phone"]}, "lora": {"rank": 8}},
        ("lora.rank: [8]", "devices.profiles"),
    ),
    "devices of full weights": (
        {"devices": {"profiles": ["phone"]}, "model": {"adaptation": "full"}},
        ("devices.profiles: ['phone']", "model.adaptation = 'full'"),
    ),
    "mixed devices averaged": (
        {"devices": {"profiles": ["phone", "laptop"]}},
        ("[4, 16]", "strategy.name"),
    ),
}
DEVICE_TABLES: dict[str, tuple[list[Tree], tuple[str, ...]]] = {
    "a device that nobody is": (
        [{"name": "watch", "rank": 1}],
        ("device.name: 'watch'", "devices.profiles"),
    ),
    "a device twice": (
        [{"name": "watch", "rank": 1}, {"name": "watch", "rank": 2}],
        ("device.name: 'watch' is named twice",),
    ),
    "a device of rank zero": ([{"name": "watch", "rank": 0}], ("device.0.rank: ", "got 0")),
    "a device of nothing": (
        [{"name": "watch"}],
        ("device.0.rank: is required for 'watch'", "memory-gb, state-mb or uplink-mb"),
    ),
    "a limit of zero": ([{"name": "watch", "uplink-mb": 0}], ("device.0.uplink-mb: ", "got 0")),
    "a limit in words": (
        [{"name": "watch", "memory-gb": "2 GB"}],
        ("device.0.memory-gb: ", "got '2 GB'"),
    ),
    "a limit misspelt": (
        [{"name": "watch", "memory": 2}],
        ("device.0.memory: ", "did you mean 'memory-gb'"),
    ),
    "a device without a name": ([{"rank": 2}], ("device.0.name: is required",)),
    "a device named in words": (
        [{"name": "my watch", "rank": 1}],
        ("device.0.name: ", "'my watch'"),
    ),
    "an unknown key of a device": (
        [{"name": "watch", "rank": 1, "rnk": 2}],
        ("device.0.rnk: ", "did you mean 'rank'"),
    ),
}


@pytest.fixture
def unranked(tree: Tree) -> Tree:
    """Give the small experiment without a rank."""
    return {name: body for name, body in tree.items() if name != "lora"}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_pattern_is_refused(refused: Callable[..., None], case: str) -> None:
    sections, words = REFUSED[case]
    refused(*words, **sections)


@pytest.fixture
def refused_unranked(
    refused: Callable[..., None], tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """Give ``refused`` over the experiment without a rank."""
    monkeypatch.delitem(tree, "lora")
    return refused


@pytest.mark.parametrize("case", REFUSED_DEVICES)
def test_wrong_devices_are_refused(refused_unranked: Callable[..., None], case: str) -> None:
    sections, words = REFUSED_DEVICES[case]
    refused_unranked(*words, **sections)


@pytest.mark.parametrize("case", DEVICE_TABLES)
def test_a_wrong_device_is_refused(
    refused_unranked: Callable[..., None],
    tree: Tree,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    tables, words = DEVICE_TABLES[case]
    monkeypatch.setitem(tree, "device", tables)
    refused_unranked(*words)


# ------------------------------------------------------------------ shown


def test_check_shows_devices_and_ranks(
    atlas: Callable[..., Said], unranked: Tree, tmp_path: Path
) -> None:
    unranked["device"] = [{"name": "watch", "rank": 2}]
    file = write_experiment(
        tmp_path / "e.toml",
        unranked,
        devices={"profiles": ["watch", "phone"]},
        strategy={"name": "local_only"},
        **PATTERN,
    )
    said = atlas("check", file)
    assert said.code == 0, said
    rows = [line for line in said.out.splitlines() if " two " in line]
    assert [row.replace("│", " ").split()[-2:] for row in rows] == [
        ["watch", "1–3"],
        ["phone", "1–4"],
        ["watch", "1–3"],
    ]
    assert "attention.q_lin = 1, ffn.lin1 = 3" in said.out


def test_check_of_one_rank_names_no_device(
    atlas: Callable[..., Said], tree: Tree, tmp_path: Path
) -> None:
    said = atlas("check", write_experiment(tmp_path / "e.toml", tree))
    assert said.code == 0, said
    assert "rank pattern" not in said.out
    rows = [line for line in said.out.splitlines() if " two " in line]
    assert {row.replace("│", " ").split()[-1] for row in rows} == {"2"}
    # The engine's device is there; the table has no column of that name.
    (head,) = [line for line in said.out.splitlines() if "label mix" in line]
    assert "device" not in head


def test_list_shows_the_devices(atlas: Callable[..., Said]) -> None:
    said = atlas("list")
    assert said.code == 0, said
    assert all(word in said.out for word in ("phone", "tablet", "laptop", "16 GB", "32"))


# ------------------------------------------------------------------ run


@pytest.mark.usefixtures("no_report")
def test_ranks_by_module_are_averaged_and_exported(run: Callable[..., Run]) -> None:
    found = run(**PATTERN)
    (told,) = set(found.clients.ranks)
    ranks = json.loads(told)
    assert len(ranks) == 12
    for module, rank in ranks.items():
        ending = module.rpartition(".")[2]
        assert rank == {"q_lin": 1, "lin1": 3}.get(ending, 2)
    folder = found.folder / "adapters" / "global"
    config = json.loads((folder / "adapter_config.json").read_text())
    pattern = config["rank_pattern"]
    assert {module.rpartition(".")[2]: rank for module, rank in pattern.items()} == {
        "q_lin": 1,
        "lin1": 3,
    }
    tensors = load_file(folder / "adapter_model.safetensors")
    for module, rank in ranks.items():
        assert tensors[f"base_model.model.{module}.lora_A.weight"].shape[0] == rank
        assert tensors[f"base_model.model.{module}.lora_B.weight"].any()
    written = load_config(found.folder / "config.toml")
    assert written.lora.rank_pattern == PATTERN["lora"]["rank-pattern"]


@pytest.mark.usefixtures("no_report")
def test_devices_train_alone_at_their_ranks(
    atlas: Callable[..., Said], unranked: Tree, tmp_path: Path
) -> None:
    unranked["device"] = [{"name": "watch", "rank": 2}]
    file = write_experiment(
        tmp_path / "e.toml",
        unranked,
        devices={"profiles": ["watch", "phone"]},
        strategy={"name": "local_only"},
        lora={"rank-pattern": {"q_lin": 1}},
    )
    said = atlas("run", file, "--out", tmp_path / "out")
    assert said.code == 0, said
    found = Run.read(tmp_path / "out")
    for partition, base in enumerate((2, 4, 2)):
        folder = found.folder / "adapters" / f"client-{partition}"
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["r"] == base
        assert {name.rpartition(".")[2] for name in config["rank_pattern"]} == {"q_lin"}
        assert set(config["rank_pattern"].values()) == {1}
        for name, tensor in load_file(folder / "adapter_model.safetensors").items():
            if name.endswith("lora_A.weight"):
                assert tensor.shape[0] == (1 if "q_lin" in name else base), name
    # The run's own file is an experiment: it runs again, bit for bit.
    again = atlas("run", found.folder / "config.toml", "--out", tmp_path / "again")
    assert again.code == 0, again
    assert Run.read(tmp_path / "again").tensors() == found.tensors()


@pytest.mark.usefixtures("no_report")
def test_equal_devices_are_averaged_like_their_rank(
    run: Callable[..., Run], tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run("one", lora={"rank": 4})
    monkeypatch.delitem(tree, "lora")
    devices = run("devices", devices={"profiles": ["phone"]})
    assert devices.tensors() == one.tensors()
    assert set(devices.clients.ranks) == {"4"}
