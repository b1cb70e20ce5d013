"""Budgets of devices through ``prepare``: what each client is granted, refused and shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from atlas_flwr.apps.prepare import prepare
from atlas_flwr.config.load import load_config, parse_config
from atlas_flwr.errors import ConfigError
from atlas_flwr.models.backbone import load
from atlas_flwr.models.footprint import predicted
from atlas_flwr.ranks.budget import Grant
from atlas_flwr.ranks.memory import PROCESS_BYTES, STATE_BYTES
from clients.site import deal, model_spec, open_task
from fakes import write_experiment
from runs import Said

Tree = dict[str, Any]
PER_RANK = 2 * (4 * 32 + 2 * 40)  # the tiny model: width 16, inner 24, two blocks
NARROWEST = 32  # what a rank of the narrowest module has
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


@pytest.fixture
def ran(atlas: Callable[..., Said], tree: Tree, tmp_path: Path) -> Callable[..., Path]:
    """Give the folder of one round at ranks by budget."""

    def run(device: Tree, **options: Any) -> Path:
        unranked = {k: v for k, v in tree.items() if k != "lora"} | {"device": [device]}
        file = write_experiment(
            tmp_path / "e.toml",
            unranked,
            devices={"profiles": ["room"]},
            strategy={"name": "atlas_cluster_mean", "options": options},
            run={"rounds": 1},
        )
        said = atlas("run", file, "--out", tmp_path / "out")
        assert said.code == 0, said
        return tmp_path / "out"

    return run


def rests(grants_of: Callable[..., tuple[Grant, ...]]) -> list[int]:
    """Return what each client rests on, without an adapter."""
    wide = {"name": "room", "memory-gb": 16.0}
    granted = grants_of(devices={"profiles": ["room"]}, device=[wide])
    return [grant.resting.total for grant in granted if grant.resting]


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
        "memory": (10**9 - rest) * NARROWEST // (STATE_BYTES * NARROWEST + one.rank_bytes),
        "state": 100_000 // 16 - HEAD,
        "uplink": one.params,
    }
    assert (one.device, one.by) == ("room", "uplink")
    assert (built_in.device, built_in.by) == ("phone", "uplink")
    # The uplink pays for names and headers too, which are those of one update at any budget.
    assert 250_000 - built_in.params == 5000 - one.params > HEAD
    assert built_in.each["memory"] > 100 * built_in.params  # memory does not bind


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("ranks", ["uniform", "random"])
def test_memory_that_binds_is_never_exceeded(
    ran: Callable[..., Path], grants_of: Callable[..., tuple[Grant, ...]], ranks: str
) -> None:
    """Oracle: the memory model itself, told of the ranks that the strategy really gave."""
    limit = max(rests(grants_of)) + 60_000
    out = ran({"name": "room", "memory-gb": limit / 1e9}, ranks=ranks)
    config = load_config(out / "config.toml")
    loaded, rows = load(model_spec(config), 2, config.run.seed), deal(config, "two")
    lengths = open_task(config, "two").train.lengths
    for partition, told in json.loads((out / "ranks.json").read_text())["clients"].items():
        longest = int(lengths[rows[int(partition)].train].max())
        spent = {"adapter": told["used"], "ranks": sum(told["ranks"].values())}
        needs = predicted(loaded, 8, longest, **spent).total
        assert told["by"] == "memory"
        assert needs <= round(told["predicted_memory_mb"] * 1e6) <= limit
        assert limit - needs < 60_000 / 2  # and it is spent, but for narrow modules' ranks


@pytest.mark.usefixtures("no_report")
def test_no_answer_is_larger_than_the_uplink(ran: Callable[..., Path]) -> None:
    """Oracle: the bytes of the messages that were sent."""
    limit = 20_000
    out = ran({"name": "room", "uplink-mb": limit / 1e6}, ranks="uniform")
    rows = pd.read_parquet(out / "clients.parquet")
    sent = rows[rows.phase == "train"].bytes_up
    assert len(sent) == 3
    assert (sent <= limit).all()
    assert (sent > limit - 4 * 40 - 100).all()  # one rank more of a module would be too much


def test_importances_need_the_gradients_of_all_weights_at_once(
    grants_of: Callable[..., tuple[Grant, ...]],
) -> None:
    gradients = 4 * 2 * (4 * 16 * 16 + 2 * 16 * 24)
    first, *_ = rests(grants_of)
    near, tight = (
        {"devices": {"profiles": ["room"]}, "device": [{"name": "room", "memory-gb": gb / 1e9}]}
        for gb in (max(rests(grants_of)) + gradients + 100_000, first + gradients - 1)
    )
    grants_of(**near)
    words = r"devices\.profiles: 'room' .* gradients .* strategy\.options\.ranks = 'uniform'"
    with pytest.raises(ConfigError, match=words):
        grants_of(**tight)


def test_the_adapter_of_a_device_s_own_rank_needs_memory_too(
    grants_of: Callable[..., tuple[Grant, ...]],
) -> None:
    def granted(rank: int, room: int) -> tuple[Grant, ...]:
        device = {"name": "room", "rank": rank, "memory-gb": room / 1e9}
        return grants_of("fedavg", devices={"profiles": ["room"]}, device=[device])

    wide = granted(32, 16 * 10**9)
    assert [g.ranks for g in wide] == [32 * 12] * 3
    needs = [g.needs for g in wide if g.needs is not None and g.resting is not None]
    assert needs == [
        g.resting.total + 32 * (PER_RANK * STATE_BYTES + 12 * g.rank_bytes)
        for g in wide
        if g.resting is not None
    ]
    granted(32, max(needs))
    with pytest.raises(
        ConfigError, match=r"'room' has 0\.\d+ GB, training needs .* at its rank .*adapter 0\.00"
    ):
        granted(32, min(needs) - 1000)


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
        r"device\.rank: 'room' .* 'fedavg' gives no ranks by itself; .* strategy\.name = 'atlas'",
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
    assert all(word in row for word in ("room", "0.1 MB", "0.02 MB", "uplink"))
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
    assert told["used"] <= told["allowed"] < 5000 - HEAD
    assert told["predicted_memory_mb"] > PROCESS_BYTES / 1e6
