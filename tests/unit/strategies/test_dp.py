"""FedAvg with differential privacy: what is clipped, what gets noise, and what it costs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.aggregation.noise import epsilon, epsilon_sampled
from atlas_flwr.engine.checkpoint import settled
from atlas_flwr.errors import ConfigError
from atlas_flwr.types import ModelParts, Part
from federations import ALL, EQUAL, MIXED, distance, setting
from players import crew, first_round, opened, play, rounds
from strategies.base import Method, State
from strategies.registry import build
from strategies.rounds.rules import draw_cohort

QUIET = {"noise-multiplier": 1e-15, "clip": 1e6}


def private(policy: str = "per_task", **options: object) -> Method:
    return build("dp_fedavg", dict(options), setting(policy, EQUAL))


def vector(parts: ModelParts, *kinds: Part) -> np.ndarray:
    flat = {**parts.only(*kinds).body(), **(parts.head if "head" in kinds else {})}
    return np.concatenate([flat[name].ravel().astype(float) for name in sorted(flat)])


def test_without_noise_and_clip_it_is_a_mean_in_which_all_count_equally() -> None:
    for trains, oracle in (("b", "ffa"), ("both", "fedit")):
        quiet, plain = private(**QUIET, trains=trains), build(oracle, {}, setting(ranks=EQUAL))
        models = []
        for method in (quiet, plain):
            players = crew(method, rows=10)
            state = play(method, [ALL, ALL], players)
            models.append([p.model(method.job(state, p.partition, "evaluate")) for p in players])
        for one, other in zip(*models, strict=True):
            assert distance(one.products(), other.products()) <= 1e-5
            assert distance(dict(one.parts.head), dict(other.parts.head)) <= 1e-5


def test_rows_have_no_say() -> None:
    found = []
    for rows in (1, 10**6):
        method = private(**QUIET)
        players = crew(method)
        players[2].rows = rows
        found.append(method.model_for(play(method, [ALL], players), 0).parts)
    assert distance(found[0].body(), found[1].body()) <= 1e-6


@pytest.mark.parametrize("trains", ["b", "both"])
@pytest.mark.parametrize("policy", ["shared", "per_task", "local"])
def test_one_client_moves_the_sum_of_all_that_is_released_by_the_clip_at_most(
    policy: str, trains: str
) -> None:
    """The sensitivity the ε is of: everything it sends, adapter and head, is one vector."""
    clip = 0.05
    method = private(policy, **{**QUIET, "noise-multiplier": 1e-12, "clip": clip}, trains=trains)
    players = crew(method)
    players[3].noise = 50.0
    state, updates = first_round(method, players)
    start = method.model_for(state, 3).parts
    after = method.merge(state, iter([updates[3]]))
    kinds: tuple[Part, ...] = ("lora_A", "lora_B", "head")
    moved = vector(method.model_for(after, 3).parts, *kinds) - vector(start, *kinds)
    assert np.linalg.norm(moved) == pytest.approx(clip, rel=1e-5)
    # In a mean of six (and a head of three) its part is a sixth (and a third) of that.
    rest = [u for u in updates if u.partition != 3]
    whole, zeroed = (method.merge(state, iter(u)) for u in (updates, rest))
    body = [6 * s.bodies["global"].body()["m.q.lora_B"] for s in (whole,)]
    body.append(5 * zeroed.bodies["global"].body()["m.q.lora_B"])  # what it started from is 0
    assert np.linalg.norm(body[0] - body[1]) <= clip * (1 + 1e-5)


def test_a_frozen_a_stays_at_its_seed_and_does_not_travel() -> None:
    method = private(**{"noise-multiplier": 5.0})
    players = crew(method)
    state = play(method, [ALL, ALL], players)
    job = method.job(state, 0, "train")
    assert "lora_A" in job.seeded
    assert not job.parts.adapter["m.q"].a.size
    seeded = method.setting.initial_for(0).adapter["m.q"].a
    np.testing.assert_array_equal(players[0].model(job).parts.adapter["m.q"].a, seeded)
    np.testing.assert_array_equal(state.bodies["global"].adapter["m.q"].a, seeded)


def noise_of(method: Method, state: State, quiet: State) -> dict[str, np.ndarray]:
    left, right = (
        {**s.bodies["global"].body(), **{f"{k}/head": v["head.weight"] for k, v in s.heads.items()}}
        for s in (state, quiet)
    )
    return {name: left[name] - right[name] for name in left}


@pytest.mark.parametrize("trains", ["b", "both"])
def test_the_noise_on_a_mean_of_m_is_sigma_c_by_m_on_all_that_is_released(trains: str) -> None:
    drawn: dict[str, list[np.ndarray]] = {}
    for seed in range(30):
        states = []
        for sigma in (2.0, 1e-15):
            options = {"clip": 0.5, "noise-multiplier": sigma, "trains": trains, "noise": "seeded"}
            method = build("dp_fedavg", options, replace(setting(ranks=EQUAL), seed=seed))
            state, updates = first_round(method)
            states.append(method.merge(state, iter(updates[:5])))  # a's three, two of b's
        for name, noise in noise_of(method, *states).items():
            drawn.setdefault(name, []).append(noise.ravel())
    clients = {"task-a/head": 3, "task-b/head": 2}
    for name, parts in drawn.items():
        found = np.concatenate(parts)
        if name.endswith("lora_A") and trains == "b":
            assert not found.any()
            continue
        std = 2.0 * 0.5 / clients.get(name, 5)
        assert found.std() == pytest.approx(std, rel=5 / math.sqrt(found.size))
        assert abs(found.mean()) <= 5 * std / math.sqrt(found.size)


def test_noise_is_secret_new_in_each_round_and_the_same_after_a_resume() -> None:
    method = private()
    state, updates = first_round(method)
    once, again = (method.merge(state, iter(updates)) for _ in range(2))
    other = method.merge(replace(method.start(), round=1), iter(updates))
    later = method.merge(replace(state, round=2), iter(updates))
    name = "m.q.lora_B"
    bits = [s.bodies["global"].body()[name].tobytes() for s in (once, again, other, later)]
    assert bits[0] == bits[1]  # from the key in the state
    assert len(set(bits[1:])) == 3  # another start has another key, another round other noise
    back = settled(state, (State,))  # written and read again, by another server
    resumed = private().merge(back, iter(updates))
    assert resumed.bodies["global"].body()[name].tobytes() == bits[0]
    seeded = private(noise="seeded")
    assert not seeded.start().memory
    runs = [play(seeded, [ALL]).bodies["global"].body()[name].tobytes() for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_round_run_again_with_other_answers_draws_other_noise() -> None:
    """One noise on two means would show their difference, a client's update, without any."""
    method = private(**{"noise-multiplier": 100.0, "clip": 0.5})
    state, updates = first_round(method)
    name = "m.q.lora_B"
    sums = []
    for answers in (updates, updates[:5]):  # B starts at zero: m times the mean is the sum
        merged = method.merge(state, iter(answers))
        sums.append(len(answers) * merged.bodies["global"].body()[name].astype(float))
    std = (sums[0] - sums[1]).std()
    assert std == pytest.approx(math.sqrt(2) * 100.0 * 0.5, rel=0.4)


def test_no_message_and_no_model_holds_the_key() -> None:
    method = private()
    players = crew(method)
    state = opened(method, players)
    (key,) = state.memory["noise-key"]["noise-key"].values()
    assert key.nbytes == 32
    for job in method.plan(state, ALL) or []:
        for tensor in (job.parts.body() | dict(job.parts.head)).values():
            assert key.tobytes() not in tensor.tobytes()
        assert not job.options


# ------------------------------------------------------------------ what it costs


def test_every_round_tells_the_privacy_spent_so_far() -> None:
    method = private(**{"noise-multiplier": 3.0, "delta": 1e-6})
    for state in rounds(method, [ALL] * 3, crew(method)):
        assert state.measured.epsilon == epsilon(3.0, state.round, 1e-6)


def test_where_clients_rest_the_most_often_drawn_counts_and_the_draw_beside_it() -> None:
    some = replace(setting(ranks=EQUAL), fraction=0.5, rounds=4, seed=3)
    method = build("dp_fedavg", {"noise-multiplier": 3.0}, some)
    drawn = [p for round_ in range(1, 5) for p in draw_cohort(3, round_, 6, 0.5)]
    most = max(drawn.count(p) for p in ALL)
    assert most < 4 or len(set(drawn)) < 6
    found = method.spent(4)
    assert found["zero_out"] == epsilon(3.0, most, 1e-5)["zero_out"]
    assert found["replace_one_sampled"] == epsilon_sampled(3.0, 6, 3, 4, 1e-5)
    assert "replace_one_sampled" not in private().spent(4)


def test_the_run_opens_with_the_price_of_all_rounds() -> None:
    (line,) = build("dp_fedavg", {}, replace(setting(ranks=EQUAL), rounds=7)).opening()
    assert f"after 7 rounds: ε zero_out {epsilon(1.0, 7, 1e-5)['zero_out']:.3g}" in line
    assert "δ 1e-05" in line
    assert "noise is seeded" not in line
    (warned,) = private(noise="seeded").opening()
    assert "run.seed" in warned
    assert build("fedavg", {}, setting()).opening() == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"noise-multiplier": 0.0}, "noise-multiplier"),
        ({"clip": -1.0}, "clip"),
        ({"delta": 0.5}, r"delta: 0\.5 is no less than 1 / 6"),
        ({"delta": 0}, "delta"),
        ({"trains": "a"}, "trains"),
    ],
)
def test_options_that_promise_nothing_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"strategy\.options\.{words}"):
        private(**options)


def test_mixed_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"lora\.rank"):
        build("dp_fedavg", {}, setting(ranks=MIXED))
