"""Budgets of devices through ``prepare``: what each client is granted, refused and shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atlas_flwr.apps.prepare import prepare
from atlas_flwr.config.load import load_config, parse_config
from atlas_flwr.errors import ConfigError
from atlas_flwr.ranks.budget import Grant
from atlas_flwr.ranks.memory import PROCESS_BYTES, STATE_BYTES
from fakes import write_experiment
from runs import Said

Tree = dict[str, Any]
PER_RANK = 2 * (4 * 32 + 2 * 40)  # the tiny model: width 16, inner 24, two blocks
HEAD = 16 * 16 + 16 + 2 * 16 + 2
ROOM = {"name": "room", "memory-gb": 1.0, "state-mb": 0.1, "uplink-mb": 0.02}


@pytest.fixture
def grants_of(tree: Tree) -> Callable[..., tuple[Grant, ...]]:
    """Give what the clients of the small experiment are granted; devices take its rank out."""

    def granted(strategy: str = "atlas", **sections: Any) -> tuple[Grant, ...]:
        base = {k: v for k, v in tree.items() if k != "lora" or "devices" not in sections}
        base["strategy"] = {"name": strategy}
        return prepare(parse_config(base | sections)).method.setting.grants

    return granted


def test_without_devices_a_client_spends_what_its_own_rank_costs(
    grants_of: Callable[..., tuple[Grant, ...]],
) -> None:
    grants = grants_of("local_only", lora={"rank": [1, 3]})
    assert [grant.params for grant in grants] == [PER_RANK, 3 * PER_RANK, PER_RANK]
    assert {(g.by, g.device, tuple(g.each)) for g in grants} == {("lora.rank", None, ())}
    assert all(g.resting is not None and g.resting.adapter == 0 for g in grants)
    (pattern,) = {
        g.params for g in grants_of(lora={"rank": 1, "rank-pattern": {"q_lin": 2}}, strategy="ffa")
    }
    assert pattern == PER_RANK + 2 * 32  # one rank more of one module a block


def test_full_fine_tuning_has_no_adapter_to_grant(
    grants_of: Callable[..., tuple[Grant, ...]],
) -> None:
    assert grants_of("fedavg", model={"name": "minilm", "adaptation": "full"}) == ()


def test_budgets_leave_what_the_head_and_the_resting_model_leave(
    grants_of: Callable[..., tuple[Grant, ...]],
) -> None:
    one, built_in, _ = grants_of(devices={"profiles": ["room", "phone"]}, device=[ROOM])
    assert one.resting is not None
    rest = one.resting.total
    assert rest > PROCESS_BYTES
    assert one.each == {
        "memory": (10**9 - rest) // STATE_BYTES,
        "state": 100_000 // 16 - HEAD,
        "uplink": 20_000 // 4 - HEAD,
    }
    assert (one.device, one.params, one.by) == ("room", 5000 - HEAD, "uplink")
    assert (built_in.device, built_in.params) == ("phone", 250_000 - HEAD)
    assert built_in.each["memory"] > 100 * built_in.params  # memory does not bind


def test_memory_binds_where_it_is_scarce(grants_of: Callable[..., tuple[Grant, ...]]) -> None:
    wide = [{"name": "room", "memory-gb": 16.0}]
    resting = grants_of(devices={"profiles": ["room"]}, device=wide)[0].resting
    assert resting is not None
    just = [{"name": "room", "memory-gb": (resting.total + 1000 * STATE_BYTES) / 1e9}]
    first, *_ = grants_of(devices={"profiles": ["room"]}, device=just)
    assert (first.by, first.params) == ("memory", pytest.approx(1000, abs=300))


def test_a_strategy_of_one_rank_goes_on_with_the_device_s(
    grants_of: Callable[..., tuple[Grant, ...]],
) -> None:
    """A budget that holds no adapter is no matter where none is allotted."""
    tight = {"name": "tight", "rank": 2, "uplink-mb": 0.0001}
    first, *_ = grants_of("fedavg", devices={"profiles": ["tight"]}, device=[tight])
    assert (first.params, first.by, first.device) == (2 * PER_RANK, "lora.rank", "tight")


REFUSED: dict[str, tuple[str, Tree, str]] = {
    "too little memory": (
        "fedavg",
        {"name": "room", "rank": 1, "memory-gb": 0.25},
        r"'room' has 0\.25 GB, training needs 0\.5\d GB before there is an adapter \(weights",
    ),
    "an uplink the head fills": (
        "atlas",
        {"name": "room", "uplink-mb": 0.001},
        r"devices\.profiles: 'room': 1000 bytes of uplink leave nothing .* head of 306 parameters",
    ),
    "no rank": (
        "fedavg",
        {"name": "room", "uplink-mb": 1},
        r"device\.rank: 'room' .* strategy\.name = 'fedavg' gives no ranks by itself",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_devices_that_cannot_are_refused(
    grants_of: Callable[..., tuple[Grant, ...]], case: str
) -> None:
    strategy, device, words = REFUSED[case]
    with pytest.raises(ConfigError, match=words):
        grants_of(strategy, devices={"profiles": ["room"]}, device=[device])


def test_longer_rows_and_larger_batches_rest_on_more(
    grants_of: Callable[..., tuple[Grant, ...]], tree: Tree
) -> None:
    def rest(**train: Any) -> int:
        first, *_ = grants_of("fedavg", train=tree["train"] | train)
        assert first.resting is not None
        return first.resting.activations

    assert rest(**{"batch-size": 16}) == 2 * rest(**{"batch-size": 8})
    # 24 rows are no batch of 64.
    assert rest(**{"batch-size": 64}) == 3 * rest(**{"batch-size": 8})


def test_check_shows_budgets_and_what_they_leave(
    atlas: Callable[..., Said], tree: Tree, tmp_path: Path
) -> None:
    unranked = {k: v for k, v in tree.items() if k != "lora"} | {"device": [ROOM]}
    file = write_experiment(
        tmp_path / "e.toml",
        unranked,
        devices={"profiles": ["room"]},
        strategy={"name": "atlas"},
    )
    said = atlas("check", file)
    assert said.code == 0, said
    (row,) = [line for line in said.out.splitlines() if "1 GB" in line]
    assert all(word in row for word in ("room", "0.1 MB", "0.02 MB", f"{5000 - HEAD:,}", "uplink"))
    assert "by budget" in said.out


@pytest.mark.usefixtures("no_report")
def test_a_run_s_own_file_keeps_the_budgets(
    atlas: Callable[..., Said], tree: Tree, tmp_path: Path
) -> None:
    unranked = {k: v for k, v in tree.items() if k != "lora"} | {"device": [ROOM]}
    file = write_experiment(
        tmp_path / "e.toml",
        unranked,
        devices={"profiles": ["room", "phone"]},
        strategy={"name": "atlas"},
        run={"rounds": 1},
    )
    said = atlas("run", file, "--out", tmp_path / "out")
    assert said.code == 0, said
    assert load_config(tmp_path / "out" / "config.toml").device == load_config(file).device
    told = json.loads((tmp_path / "out" / "ranks.json").read_text())["clients"]["0"]
    assert (told["device"], told["by"]) == ("room", "uplink")
    assert told["used"] <= told["allowed"] == 5000 - HEAD
    assert told["predicted_memory_mb"] > PROCESS_BYTES / 1e6
