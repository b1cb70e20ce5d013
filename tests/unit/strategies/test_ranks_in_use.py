"""Rows nobody owned, rows without weight, ranks given up: nothing is lost that was not meant to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.aggregation.padded import PaddedMean, by_norm
from atlas_flwr.errors import WireError
from atlas_flwr.types import Array, Job, LoraFactors, ModelParts, Update
from federations import ALL, EQUAL, MIXED, ROWS, believed, distance, of_rank, widest
from players import Player, crew, play, rounds
from strategies.base import Method, State
from strategies.registry import STRATEGIES
from strategies.rounds.rules import check_schema

LOW = [0, 1, 5]  # ranks 2, 4, 2 of up to 16
STAYING = ["hetlora", "rbla", "ffa", "fedsa"]


def factors_of(method: Method, state: State, partition: int, module: str) -> LoraFactors:
    return method.model_for(state, partition).parts.adapter[module]


# ------------------------------------------------------------------ a cohort of low ranks


@pytest.mark.parametrize("module", ["m.q", "m.up"])
@pytest.mark.parametrize("name_", STAYING)
def test_rows_beyond_the_cohorts_highest_rank_stay(name_: str, module: str) -> None:
    method = widest(name_)
    before, after = rounds(method, [ALL, LOW], crew(method))
    for partition, rank in enumerate(MIXED):
        old, new = (factors_of(method, s, partition, module) for s in (before, after))
        assert (old.rank, new.rank, new.scale) == (rank, rank, old.scale)
        # At scale 1 and back may cost the last bit.
        np.testing.assert_allclose(new.a[4:], old.a[4:], rtol=1e-6)
        np.testing.assert_allclose(new.b[:, 4:], old.b[:, 4:], rtol=1e-6)
        side = "b" if name_ == "ffa" else "a"
        assert not np.allclose(getattr(new, side).T[:2], getattr(old, side).T[:2], atol=1e-3)


@pytest.mark.parametrize("name_", STAYING)
def test_rows_nobody_has_owned_yet_are_the_seeded_ones(name_: str) -> None:
    method = widest(name_)
    players = crew(method)
    state = play(method, [LOW, LOW], players)
    model = players[3].model(method.job(state, 3, "evaluate")).parts
    for module, factors in model.adapter.items():
        seeded = method.setting.initial_for(3).adapter[module]
        np.testing.assert_allclose(factors.a[4:], seeded.a[4:], rtol=1e-6)
        assert not factors.b[:, 4:].any()


@pytest.mark.parametrize("init", ["gradient", "seeded"])
def test_fedsbs_core_beyond_the_cohorts_highest_rank_stays(init: str) -> None:
    method = widest("fedsb", init=init)
    before, after = rounds(method, [ALL, LOW], crew(method))
    for module in ("m.q", "m.up"):
        old, new = (method.model_for(s, 3).parts.core[module] for s in (before, after))
        kept = np.ones((16, 16), bool)
        kept[:4, :4] = False
        np.testing.assert_allclose(new[kept], old[kept], rtol=1e-6)
        assert not np.allclose(new[~kept], old[~kept], atol=1e-3)
    state = play(method, [LOW], crew(method))
    for core in method.model_for(state, 3).parts.core.values():
        assert not core[4:].any()
        assert not core[:, 4:].any()


@pytest.mark.parametrize("name_", ["flexlora", "raflora", "flora"])
def test_products_of_a_low_cohort_serve_every_rank(name_: str) -> None:
    method = widest(name_)
    players = crew(method)
    state = play(method, [LOW], players)
    whole = {m: f.product() for m, f in method.applied(state, "global").items()}
    assert distance(believed(method, state, 3), whole) <= 1e-6  # 2 + 4 + 2 ranks fit into 16
    job = (method.plan(replace(state, round=2, phase=0), [3]) or [])[0]
    for factors in players[3].model(job).parts.adapter.values():
        assert (np.linalg.norm(factors.a, axis=1) > 1e-3).all()


# ------------------------------------------------------------------ rows without weight


class Lazy(Player):
    """A player that trains its head alone: its B stays zero."""

    def move(self, job: Job, name: str, tensor: Array) -> Array:
        return super().move(job, name, tensor) if name.startswith("head") else tensor


@pytest.mark.parametrize("write_back", ["balanced", "unbalanced"])
@pytest.mark.parametrize("name_", ["flexlora", "raflora"])
def test_an_update_of_nothing_serves_the_seeded_a_to_the_bit(name_: str, write_back: str) -> None:
    method = widest(name_, **{"write-back": write_back})
    players = [Lazy(method.setting, partition) for partition in ALL]
    for state in rounds(method, [ALL, LOW], players):
        for partition in ALL:
            seeded = method.setting.initial_for(partition).adapter
            for module in seeded:
                served = factors_of(method, state, partition, module)
                np.testing.assert_array_equal(served.a, seeded[module].a)
                assert not served.b.any()
                assert served.scale == seeded[module].scale
        assert state.measured.aggregation_error is None  # 0/0
        assert state.measured.effective_rank is None


LORA = sorted(n for n, m in STRATEGIES.items() if m.needs_lora and n != "flasc")


@pytest.mark.parametrize("name_", LORA)
def test_no_row_of_a_dies(name_: str) -> None:
    """A zero row of A beside a zero column of B has no gradient: the rank would be lost."""
    for cohorts in ([ALL], [LOW, ALL], [[0]]):
        for kind in (Lazy, Player):
            method = widest(name_)
            players = [kind(method.setting, partition) for partition in ALL]
            state = play(method, cohorts, players)
            for job in method.plan(replace(state, round=9, phase=0), ALL) or []:
                model = players[job.partition].model(job).parts
                for factors in model.adapter.values():
                    assert (np.linalg.norm(factors.a, axis=1) > 1e-3).all()
                    assert np.isfinite(factors.b).all()


# ------------------------------------------------------------------ ranks given up


class Shrinking(Player):
    """A player whose last ranks shrink in the rounds it is told to."""

    when: Sequence[int] = ()

    def move(self, job: Job, name: str, tensor: Array) -> Array:
        moved = super().move(job, name, tensor)
        if job.round not in self.when or not name.endswith(("lora_A", "lora_B")):
            return moved
        rows = moved if name.endswith("lora_A") else moved.T
        rows[len(rows) // 2 :] = (tensor if name.endswith("lora_A") else tensor.T)[
            len(rows) // 2 :
        ] / 2
        return moved


def pruning(ranks: Sequence[int], when: dict[int, Sequence[int]]) -> tuple[Method, list[Player]]:
    method = of_rank("hetlora", ranks, **{"prune-keep": 0.5})
    players: list[Player] = [Shrinking(method.setting, partition) for partition in ALL]
    for partition, rounds_ in when.items():
        players[partition].when = rounds_  # type: ignore[attr-defined]
    return method, players


def ranks_served(method: Method, state: State) -> list[int]:
    return [factors_of(method, state, partition, "m.q").rank for partition in ALL]


def test_ranks_that_were_given_up_are_never_served_again() -> None:
    method, players = pruning(MIXED, {3: (2, 4), 2: (3,)})
    served = [
        ranks_served(method, state)
        for state in rounds(method, [ALL, ALL, [0, 1, 2], ALL, [0]], players)
    ]
    assert served == [
        [2, 4, 8, 16, 4, 2],
        [2, 4, 8, 8, 4, 2],
        [2, 4, 4, 8, 4, 2],
        [2, 4, 4, 4, 4, 2],
        [2, 4, 4, 4, 4, 2],
    ]


def test_a_pruned_client_holds_what_the_server_believes() -> None:
    method, players = pruning(EQUAL, {3: (2,), 5: (3,)})
    for state in rounds(method, [ALL, ALL, [4, 5], ALL], players):
        for player in players:
            job = method.job(state, player.partition, "evaluate")
            told = believed(method, state, player.partition)
            assert distance(player.effective(job), told) <= 1e-6
            rank = method.model_for(state, player.partition).parts.adapter["m.q"].rank
            assert str(rank) in (state.measured.truncation_error or {})


def test_rows_that_everybody_gave_up_are_gone() -> None:
    method, players = pruning(EQUAL, dict.fromkeys(ALL, (2,)))
    before, state = rounds(method, [ALL, ALL], players)
    assert method.applied(before, "global")["m.q"].rank == 4
    assert {f.rank for f in method.applied(state, "global").values()} == {2}
    assert state.measured.truncation_error == {"2": 0.0}
    # Round 2's error is that of round 2's merge, by the same rule on what clients then sent.
    mean = PaddedMean(by_norm)
    state, updates = before, []
    for job in method.plan(replace(state, round=2, phase=0), ALL) or []:
        updates.append(players[job.partition].answer(job))
        mean.add(updates[-1].parts.adapter, 1.0)
    merged = method.merge(replace(state, round=2, phase=0), iter(updates))
    exact = {
        m: np.average([u.parts.adapter[m].product() for u in updates], axis=0, weights=ROWS)
        for m in mean.result()
    }
    oracle = distance({m: f.product() for m, f in mean.result().items()}, exact)
    assert merged.measured.aggregation_error == pytest.approx(oracle, rel=1e-9)


def test_what_is_lost_is_told_for_each_rank_that_is_served() -> None:
    """Three of base rank 8 pruned themselves, once or twice: no rank speaks for the others."""
    method, players = pruning((8, 8, 8, 8, 2, 2), {0: (2,), 1: (2, 3), 4: (3,)})
    last = play(method, [ALL] * 3, players)
    assert ranks_served(method, last) == [4, 2, 8, 8, 1, 2]
    told = last.measured.truncation_error or {}
    assert list(told) == ["1", "2", "4", "8"]
    whole = {m: f.product() for m, f in method.applied(last, "global").items()}
    for player, rank in zip(players, ranks_served(method, last), strict=True):
        own = player.effective(method.job(last, player.partition, "evaluate"))
        assert distance(own, whole) == pytest.approx(told[str(rank)], abs=1e-6)
    assert told["8"] == 0
    assert told["1"] > told["2"] > told["4"] > 0


def test_models_of_other_ranks_have_other_names() -> None:
    """One base rank, but clients 3 and 5 gave some up: they don't hold what the others hold."""
    for ranks in (EQUAL, (8, 4, 8, 8, 4, 8)):
        method, players = pruning(ranks, {3: (2,), 5: (2, 3)})
        state = play(method, [ALL] * 3, players)
        models: dict[str, ModelParts] = {}
        for partition in ALL:
            served = method.model_for(state, partition)
            twin = models.setdefault(served.key, served.parts)
            assert served.parts.ranks() == twin.ranks(), served.key
            for name, tensor in served.parts.body().items():
                np.testing.assert_array_equal(tensor, twin.body()[name])


def test_only_pruning_may_change_a_rank_and_only_downwards() -> None:
    method, players = pruning(MIXED, {3: (2,)})
    state = play(method, [ALL, ALL], players)
    job = next(
        j for j in method.plan(replace(state, round=3, phase=0), ALL) or [] if j.partition == 3
    )
    update = players[3].answer(job)

    def of(rank: int) -> Update:
        adapter = {
            m: LoraFactors(
                np.ones((rank, f.a.shape[1]), np.float32),
                np.ones((len(f.b), rank), np.float32),
                f.scale,
            )
            for m, f in update.parts.adapter.items()
        }
        return replace(update, parts=replace(update.parts, adapter=adapter))

    for rank in (1, 4, 8):
        check_schema(job, of(rank))
    for rank in (9, 16, 17):  # 16 was its own until it gave up 8
        with pytest.raises(WireError, match="expected"):
            check_schema(job, of(rank))
    with pytest.raises(WireError, match="expected"):
        check_schema(replace(job, shrinks=False), of(4))
    wide = {m: replace(f, b=f.b[:-1]) for m, f in update.parts.adapter.items()}
    with pytest.raises(WireError, match="expected"):  # d_out is nobody's to give up
        check_schema(job, replace(update, parts=replace(update.parts, adapter=wide)))


def test_without_pruning_nothing_shrinks() -> None:
    method = widest("hetlora")
    players = [Shrinking(method.setting, partition) for partition in ALL]
    for player in players:
        player.when = (2, 3)
    state = play(method, [ALL] * 3, players)
    assert ranks_served(method, state) == list(MIXED)
    assert all(not job.shrinks for job in method.plan(replace(state, round=4, phase=0), ALL) or [])
