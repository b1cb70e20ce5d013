"""Robust rules: what planted clients can do to them and to plain means, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from flwr.server.strategy.aggregate import aggregate_median, aggregate_trimmed_avg

from atlas_flwr.errors import ConfigError, RunFailed
from atlas_flwr.types import LoraFactors, ModelParts, Update
from federations import ALL, EQUAL, MIXED, ROBUST, Dense, believed, distance, of_rank, setting, size
from players import crew, first_round, opened, play, rounds
from strategies.base import Method, Setting, State
from strategies.registry import build

RULES = sorted(ROBUST)
PLAIN = ["fedit", "flexlora", "fedavg"]
TEN, BAD = 10, (3, 7)


def ten(name: str, **options: object) -> Method:
    """The rule for ten clients of one task and one shared head."""
    base = setting("shared", EQUAL)
    facts = {"tasks": ("a",) * TEN, "ranks": (4,) * TEN, "steps": (1,) * TEN}
    return build(name, dict(options), replace(base, **facts))  # type: ignore[arg-type]


def tensors(parts: ModelParts, change: Callable[[np.ndarray], np.ndarray]) -> ModelParts:
    body = {n: change(t) if n.endswith("lora_B") else t for n, t in parts.body().items()}
    return replace(parts.with_body(body), head={n: change(t) for n, t in parts.head.items()})


def scaled(factor: float) -> Callable[[Update], Update]:
    def change(update: Update) -> Update:
        return replace(
            update, parts=tensors(update.parts, lambda t: (factor * t).astype(np.float32))
        )

    return change


def random(update: Update) -> Update:
    rng = np.random.default_rng(update.partition)

    def drawn(t: np.ndarray) -> np.ndarray:
        return (30 * rng.standard_normal(t.shape)).astype(np.float32)

    return replace(update, parts=tensors(update.parts, drawn))


ATTACKS: dict[str, Callable[[Update], Update]] = {
    "x1000": scaled(1000.0),
    "sign flip x100": scaled(-100.0),
    "random": random,
}


def model(method: Method, state: State, partition: int = 0) -> Dense:
    parts = method.model_for(state, partition).parts
    return {**believed(method, state, partition), **parts.head}


def merged(method: Method, attack: Callable[[Update], Update] | None) -> Dense:
    """The model after a round of ten alike clients, two of them planted; of eight without."""
    state, own = alike(method)
    if attack is not None:
        own = [attack(u) if u.partition in BAD else u for u in own]
    else:
        own = [u for u in own if u.partition not in BAD]
    return model(method, method.merge(state, iter(own)))


def alike(method: Method) -> tuple[State, list[Update]]:
    """Ten honest answers: a movement in common, and little of each one's own."""
    players = crew(method, rows=20, noise=0.02)
    state = opened(method, players)
    jobs = method.plan(state, range(TEN)) or []
    return state, [common(players[job.partition].answer(job)) for job in jobs]


def common(update: Update) -> Update:
    rng = np.random.default_rng(0)

    def moved(t: np.ndarray) -> np.ndarray:
        return (t + 0.3 * rng.standard_normal(t.shape)).astype(np.float32)

    return replace(update, parts=tensors(update.parts, moved))


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", RULES)
def test_two_planted_clients_of_ten_move_a_robust_rule_little(name: str, attack: str) -> None:
    options = {"num-malicious": 2} if name == "multikrum" else {}
    honest = merged(ten("flexlora"), None)
    found = merged(ten(name, **options), ATTACKS[attack])
    # A clipped client still pulls: two of ten, each by no more than an honest one's movement.
    assert distance(found, honest) <= (0.5 if name == "norm_clip" else 0.1)


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("name", PLAIN)
def test_and_move_plain_means_anywhere(name: str, attack: str) -> None:
    honest = merged(ten("flexlora"), None)
    assert distance(merged(ten(name), ATTACKS[attack]), honest) > 3


def test_multi_krum_leaves_the_planted_out_and_says_so() -> None:
    method = ten("multikrum", **{"num-malicious": 2, "num-selected": 6})
    state, updates = alike(method)
    told = [ATTACKS["x1000"](u) if u.partition in BAD else u for u in updates]
    shares = method.merge(state, iter(told)).measured.shares
    assert shares is not None
    assert list(shares) == [str(p) for p in range(TEN)]
    assert [shares[str(p)] for p in BAD] == [0.0, 0.0]
    assert sum(shares.values()) == 6


def test_a_bound_that_nobody_reaches_is_flexlora_and_a_share_tells_who_was_clipped() -> None:
    exact = play(of_rank("flexlora", MIXED), [ALL, [0, 3, 5], ALL])
    loose = of_rank("norm_clip", MIXED, clip=1e9)
    state = play(loose, [ALL, [0, 3, 5], ALL])
    for partition in ALL:
        left = believed(loose, state, partition)
        assert distance(left, believed(of_rank("flexlora", MIXED), exact, partition)) <= 1e-6
    assert set((state.measured.shares or {}).values()) == {1.0}
    tight = of_rank("norm_clip", MIXED)
    shares = play(tight, [ALL]).measured.shares or {}
    assert sum(share == 1.0 for share in shares.values()) == 3  # half are within the median
    assert all(0 < share <= 1 for share in shares.values())


def test_a_clip_binds_every_round_movement_and_not_the_distance_from_the_start() -> None:
    method = of_rank("norm_clip", EQUAL, clip=0.01)
    before: Dense = {}
    for state in rounds(method, [ALL] * 6, crew(method, voice=0)):
        now = believed(method, state, 0)
        if before:
            step = size({m: now[m] - before[m] for m in now})
            assert 0 < step <= 0.011
        before = now
    assert size(before) > 0.012  # six steps in directions of their own


# ------------------------------------------------------------------ oracles and measures


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg"])
def test_full_fine_tuning_is_flowers(name: str) -> None:
    method = of_rank(name, ())
    state, updates = first_round(method)
    after = method.merge(state, iter(updates))

    def flower(told: Sequence[dict[str, np.ndarray]]) -> list[np.ndarray]:
        pairs = [(list(each.values()), 1) for each in told]
        cut = 0.2 if len(told) > 4 else 0.34  # of three we cut one where Flower cuts none
        return aggregate_median(pairs) if name == "fedmedian" else aggregate_trimmed_avg(pairs, cut)

    found = after.bodies["global"].weights
    oracle = flower([dict(u.parts.weights) for u in updates])
    for tensor, theirs in zip(found.values(), oracle, strict=True):
        np.testing.assert_allclose(tensor, theirs, rtol=1e-6)
        assert tensor.dtype == np.float32
    for task, members in (("task-a", updates[:3]), ("task-b", updates[3:])):
        (theirs,) = flower([dict(u.parts.head) for u in members])
        np.testing.assert_allclose(after.heads[task]["head.weight"], theirs, rtol=1e-6)


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg"])
def test_truncation_is_told_of_the_whole_product_though_its_best_part_is_kept(name: str) -> None:
    method = of_rank(name, MIXED)
    state, updates = first_round(method)
    after = method.merge(state, iter(updates))
    rule = np.median if name == "fedmedian" else lambda v, axis: np.sort(v, axis)[1:-1].mean(axis)
    dense = {
        m: rule(np.stack([u.parts.adapter[m].product() for u in updates]), axis=0)
        for m in updates[0].parts.adapter
    }
    kept = after.bodies["global"].adapter
    assert {factors.rank for factors in kept.values()} == {16}
    for partition in ALL:
        lost = distance(believed(method, after, partition), dense)
        told = (after.measured.truncation_error or {})[str(MIXED[partition])]
        assert told == pytest.approx(lost, rel=1e-5)


@pytest.mark.parametrize("name", RULES)
def test_no_rule_sees_the_basis(name: str) -> None:
    def turned(factors: LoraFactors, seed: int) -> LoraFactors:
        g = np.random.default_rng(seed).standard_normal((factors.rank,) * 2)
        g = g + 3 * np.eye(factors.rank)
        return replace(factors, a=np.linalg.solve(g, factors.a), b=factors.b @ g)

    found = []
    for turns in (False, True):
        method = of_rank(name, MIXED)
        state, updates = first_round(method)
        if turns:
            updates = [
                replace(
                    u,
                    parts=replace(
                        u.parts,
                        adapter={m: turned(f, u.partition) for m, f in u.parts.adapter.items()},
                    ),
                )
                for u in updates
            ]
        after = method.merge(state, iter(updates))
        found.append([model(method, after, p) for p in ALL])
    for one, other in zip(*found, strict=True):
        assert distance(one, other) <= 1e-5


# ------------------------------------------------------------------ too few


def facts(**changes: object) -> Setting:
    return replace(setting("per_task", EQUAL), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "options", "changes", "words"),
    [
        ("multikrum", {"num-malicious": 1}, {}, r"num-malicious: 1 needs 5.*there are 3 of 'task-"),
        (
            "multikrum",
            {"num-malicious": 2},
            {"head_policy": "local"},
            r"num-malicious: 2 needs 7 .*6 of 'global'",
        ),
        ("multikrum", {"num-selected": 4}, {}, r"num-selected: 4, but only 3"),
        ("fedtrimmedavg", {}, {"fraction": 0.3}, r"beta: 0\.2 cuts nothing of the 2 answers"),
    ],
)
def test_too_few_clients_are_refused_at_the_start(
    name: str, options: dict[str, object], changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"strategy\.options\.{words}") as refused:
        build(name, options, facts(**changes))
    assert "\n" not in str(refused.value)


def test_a_lost_client_that_krum_can_t_do_without_stops_the_run() -> None:
    method = build("multikrum", {"num-malicious": 1}, facts(head_policy="shared"))
    state, updates = first_round(method)
    method.merge(state, iter(updates[:5]))
    with pytest.raises(RunFailed, match=r"round 1: .*num-malicious: 1 needs 5.*4 of 'global'"):
        method.merge(state, iter(updates[:4]))


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fedtrimmedavg", {"beta": 0.5}, "beta: input should be less than 0.5"),
        ("multikrum", {"num-malicious": -1}, "num-malicious"),
        ("multikrum", {"num-selected": 0}, "num-selected"),
        ("norm_clip", {"clip": 0.0}, "clip"),
        ("norm_clip", {"clip": "mean"}, "clip"),
        ("fedmedian", {"beta": 0.1}, "it has no options"),
    ],
)
def test_options_out_of_range_are_refused(
    name: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        build(name, options, facts())
