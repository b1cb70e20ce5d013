"""Fed-SB's frozen factors: found in round 1 for every module at the rank the module has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.errors import ConfigError
from federations import ALL, LABELS, MODULES, believed, distance, initial, setting
from players import Player, crew, opened, play
from strategies.base import Setting
from strategies.registry import build


def patterned(pattern: Mapping[str, int], rank: int = 4) -> Setting:
    """A setting as ``lora.rank-pattern`` makes it: some modules have a rank of their own."""
    plain = setting(ranks=(rank,) * 6)
    started = {}
    for labels in set(LABELS.values()):
        adapter = {
            module: initial(pattern.get(module, rank), labels).adapter[module] for module in MODULES
        }
        started[labels, rank] = replace(initial(rank, labels), adapter=adapter)
    return replace(plain, initial=started)


@pytest.mark.parametrize("init", ["gradient", "seeded"])
@pytest.mark.parametrize("cohort", [[0], [0, 3], ALL], ids=len)
@pytest.mark.parametrize("wide", [2, 16, 24])  # 24 is all that m.q, 40 x 24, has
def test_a_module_with_a_rank_of_its_own_has_its_frozen_factors(
    wide: int, cohort: list[int], init: str
) -> None:
    method = build("fedsb", {"init": init}, patterned({"m.q": wide}))
    players = crew(method)
    state = play(method, [cohort, ALL], players)
    assert state.measured.aggregation_error == pytest.approx(0.0, abs=1e-6)
    for player in players:
        served = method.model_for(state, player.partition).parts
        assert served.ranks() == {"m.q": wide, "m.up": 4}
        told = believed(method, state, player.partition)
        job = method.job(state, player.partition, "evaluate")
        assert distance(player.effective(job), told) <= 1e-6


def test_the_widest_modules_factors_are_those_of_the_whole_gradient() -> None:
    """One client alone: B⁰ and A⁰ span what it said, direction by direction, to the last one."""
    method = build("fedsb", {}, patterned({"m.q": 16}))
    players = [Player(method.setting, partition) for partition in ALL]
    job = (method.plan(replace(method.start(), round=1), [0]) or [])[0]
    said = players[0].answer(job).parts.adapter
    state = opened(method, [players[0]] * 6)
    for module, rank in {"m.q": 16, "m.up": 4}.items():
        u, _, vt = np.linalg.svd(said[module].product(), full_matrices=False)
        found = state.bodies["global"].adapter[module]
        for mine, theirs in ((found.b, u[:, :rank]), (found.a.T, vt[:rank].T)):
            np.testing.assert_allclose(np.abs(mine.T @ theirs), np.eye(rank), atol=1e-4)


def test_a_rank_beyond_what_a_layer_has_is_refused_with_what_to_do() -> None:
    """Further rows of the core would stand between zeros: sent each round, and never trained."""
    for init in ("gradient", "seeded"):
        with pytest.raises(ConfigError, match=r"lora\.rank: 32 .* m\.q \(40 x 24\)") as refused:
            build("fedsb", {"init": init}, setting(ranks=(32,) * 6))
        assert "24 at most" in str(refused.value)
        assert "\n" not in str(refused.value)
        build("fedsb", {"init": init}, patterned({"m.q": 24, "m.up": 24}, rank=32))
