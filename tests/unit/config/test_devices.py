"""Devices: dealt in turn, built in or defined, and written so that they can be read again."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest

from atlas_flwr.config.devices import DEVICES
from atlas_flwr.config.load import dump_config, load_config, parse_config
from atlas_flwr.config.schema import Config
from atlas_flwr.errors import ConfigError

BASE: dict[str, Any] = {
    "run": {"clients": 5},
    "data": {"tasks": ["bbc"]},
    "model": {"head": "shared"},
    "train": {"learning-rate": 0.01},
}
OWN = [{"name": "phone", "rank": 3}, {"name": "watch", "rank": 1}]
LIMITED = [
    {"name": "phone", "memory-gb": 1.5, "uplink-mb": 0.5},
    {"name": "watch", "rank": 1, "state-mb": 2},
]
TREES: dict[str, dict[str, Any]] = {
    "neither": {},
    "one rank": {"lora": {"rank": 4}},
    "a list": {"lora": {"rank": [2, 4]}},
    "a pattern": {"lora": {"rank-pattern": {"attention.q_lin": 4, "v_lin": 2}}},
    "devices": {"devices": {"profiles": ["phone", "laptop", "phone"]}},
    "own devices": {"devices": {"profiles": ["watch", "gpu"]}, "device": OWN},
    "budgets": {"devices": {"profiles": ["watch", "phone", "gpu"]}, "device": LIMITED},
    "both": {
        "devices": {"profiles": ["tablet"]},
        "lora": {"rank-pattern": {"q_lin": 1}, "scaling": "rs", "alpha": 4.0},
    },
}


def config_of(**sections: Any) -> Config:
    return parse_config({**BASE, **sections})


def test_the_built_in_devices() -> None:
    assert {name: profile.rank for name, profile in DEVICES.items()} == {
        "phone": 4,
        "tablet": 8,
        "laptop": 16,
        "gpu": 32,
    }


def test_what_a_built_in_device_may_send_it_may_train() -> None:
    """Four bytes a parameter on the wire, sixteen with gradient and moments."""
    assert [p.memory for p in DEVICES.values()] == [2 * 10**9, 4 * 10**9, 8 * 10**9, 16 * 10**9]
    assert [p.uplink for p in DEVICES.values()] == [10**6, 2 * 10**6, 4 * 10**6, 8 * 10**6]
    assert all(p.state == 8 * (p.uplink or 0) for p in DEVICES.values())


def test_a_device_of_ones_own_has_the_limits_it_names_and_no_others() -> None:
    config = config_of(devices={"profiles": ["phone", "watch"]}, device=LIMITED)
    phone, watch = (config.device_profiles[name] for name in ("phone", "watch"))
    assert (phone.rank, phone.memory, phone.state, phone.uplink) == (None, 15 * 10**8, None, 500000)
    assert (watch.rank, watch.memory, watch.state, watch.uplink) == (1, None, 2 * 10**6, None)
    assert [config.rank_of(p) for p in range(2)] == [1, 1]


def test_devices_are_dealt_in_turn() -> None:
    config = config_of(devices={"profiles": ["phone", "laptop"]})
    dealt = [(config.device_of(p), config.rank_of(p)) for p in range(5)]
    assert dealt == [("phone", 4), ("laptop", 16), ("phone", 4), ("laptop", 16), ("phone", 4)]


def test_a_device_of_ones_own_redefines_a_built_in_one() -> None:
    config = config_of(devices={"profiles": ["phone", "watch", "gpu"]}, device=OWN)
    assert [config.rank_of(p) for p in range(3)] == [3, 1, 32]
    ranks = {name: profile.rank for name, profile in config.device_profiles.items()}
    assert ranks == {"phone": 3, "tablet": 8, "laptop": 16, "gpu": 32, "watch": 1}


def test_without_devices_the_ranks_are_those_of_lora() -> None:
    config = config_of(lora={"rank": [2, 4]})
    assert [config.rank_of(p) for p in range(5)] == [2, 4, 2, 4, 2]
    assert {config.device_of(p) for p in range(5)} == {None}


@pytest.mark.parametrize("case", TREES)
def test_what_is_written_reads_as_the_same(case: str, tmp_path: Path) -> None:
    config = config_of(**TREES[case])
    text = dump_config(config)
    written = tmp_path / "config.toml"
    written.write_text(text, encoding="utf-8")
    assert load_config(written) == config
    assert dump_config(load_config(written)) == text
    assert parse_config(config.model_dump(by_alias=True)) == config
    # What a client is sent.
    assert Config.model_validate_json(config.model_dump_json()) == config


def test_a_written_config_does_not_hang_on_the_table_of_its_day(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = config_of(devices={"profiles": ["phone", "laptop"]})
    tree = tomllib.loads(dump_config(config))
    phone = {"rank": 4, "memory-gb": 2.0, "state-mb": 8.0, "uplink-mb": 1.0}
    laptop = {"rank": 16, "memory-gb": 8.0, "state-mb": 32.0, "uplink-mb": 4.0}
    assert tree["device"] == [{"name": "phone", **phone}, {"name": "laptop", **laptop}]
    assert "rank" not in tree["lora"]
    monkeypatch.delitem(DEVICES, "phone")
    assert [parse_config(tree).rank_of(p) for p in range(2)] == [4, 16]


def test_scales_follow_the_rank_of_the_module() -> None:
    config = config_of(lora={"rank-pattern": {"q": 4}, "scaling": "standard", "alpha": 8.0})
    ranks = config.module_ranks(16, ["x.q", "x.v"])
    assert {module: config.scale_of(r) for module, r in ranks.items()} == {"x.q": 2.0, "x.v": 0.5}


def test_overrides_reach_endings_with_dots(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(
        '[data]\ntasks = ["bbc"]\n[lora.rank-pattern]\n"attention.q_lin" = 4\nffn.lin1 = 3\n'
    )
    items = ('lora.rank-pattern."attention.q_lin"=2', "lora.rank-pattern.ffn.lin1=1")
    config = load_config(file, [*items, "lora.rank-pattern.'v_lin'=5"])
    assert config.lora.rank_pattern == {"attention.q_lin": 2, "ffn.lin1": 1, "v_lin": 5}
    for item in ('lora."rank=2', 'lora.""=2', '[a]\n[b]\n"c"=1'):
        with pytest.raises(ConfigError, match=r"expected section\.key=value"):
            load_config(file, [item])


def test_a_list_of_ranks_and_the_rank_beside_devices_are_told_apart() -> None:
    """The default of ``lora.rank`` is no choice of the user's; a rank that equals it is."""
    config_of(devices={"profiles": ["phone"]}, lora={"scale": 1.0})
    with pytest.raises(ConfigError, match=r"^lora\.rank: \[8\] with devices\.profiles"):
        config_of(devices={"profiles": ["phone"]}, lora={"rank": 8})


def test_json_of_a_config_with_devices_names_no_other_rank() -> None:
    tree = json.loads(config_of(devices={"profiles": ["phone"]}).model_dump_json())
    assert "rank" not in tree["lora"]
    assert json.loads(config_of().model_dump_json())["lora"]["rank"] == [8]
