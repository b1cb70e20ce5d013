"""The norm of an answer against dense NumPy, and who is too far."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.engine.codec import decode, encode
from atlas_flwr.engine.inline import adopt_identity
from atlas_flwr.errors import WireError
from atlas_flwr.results.record import Measured
from atlas_flwr.types import Job, LoraFactors, ModelParts, Report, Update
from atlas_flwr.wire import pack_update
from federations import ALL, EQUAL, of_rank, products, setting, size, widest
from players import Player, crew, first_round
from strategies.base import Method, State
from strategies.registry import STRATEGIES
from strategies.rounds import norms
from strategies.rounds.gate import Gate
from strategies.state import Rows

Told = tuple[list[Job], list[Message]]
RNG = np.random.default_rng(3)


def factors(rank: int, scale: float = 2.0) -> LoraFactors:
    a, b = RNG.standard_normal((rank, 6)), RNG.standard_normal((5, rank))
    return LoraFactors(a.astype(np.float32), b.astype(np.float32), scale)


def update(parts: ModelParts) -> Update:
    return Update(0, Report(3), parts)


def test_an_adapters_norm_is_that_of_the_change_of_its_products() -> None:
    sent = ModelParts(adapter={"m": factors(3), "n": factors(2, 0.5)})
    came = ModelParts(adapter={"m": factors(3), "n": factors(1, 0.5)})  # one rank was given up
    found = norms.norms_of(Job(0, "train", 1, sent), update(came))
    dense = {m: products(came)[m] - products(sent)[m] for m in ("m", "n")}
    by_a, by_b = (
        np.sqrt(sum(np.linalg.norm(getattr(f, n)) ** 2 / f.rank for f in came.adapter.values()))
        for n in "ab"
    )
    assert found == {
        "train/adapter": pytest.approx(size(dense), rel=1e-6),
        "train/lora_A": pytest.approx(by_a, rel=1e-6),
        "train/lora_B": pytest.approx(by_b, rel=1e-6),
    }


def test_one_product_in_a_far_basis_is_far() -> None:
    """``(B t, A / t)`` is the same model; its factors are no part of a mean of factors."""
    came = factors(3)
    far = LoraFactors(came.a / 1e4, came.b * 1e4, came.scale)
    job = Job(0, "train", 1, ModelParts(adapter={"m": factors(3)}))
    honest, bad = (norms.norms_of(job, update(ModelParts(adapter={"m": f}))) for f in (came, far))
    most = norms.bounds({}, norms.together([(honest, 1.0)] * 3), 10.0)
    norms.check_norms(honest, most, 10.0)
    assert bad["train/adapter"] == pytest.approx(honest["train/adapter"])
    with pytest.raises(WireError, match="train/lora_B"):
        norms.check_norms(bad, most, 10.0)


def test_before_anything_is_learnt_factors_have_sizes_of_their_own() -> None:
    came, start = factors(3), factors(3)
    blank = LoraFactors(start.a, np.zeros_like(start.b), start.scale)
    for sent in (ModelParts(), ModelParts(adapter={"m": blank})):
        found = norms.norms_of(Job(0, "train", 1, sent), update(ModelParts(adapter={"m": came})))
        assert {"train/lora_A/from-zero", "train/lora_B/from-zero"} <= found.keys()


def test_a_factor_that_comes_alone_is_completed_by_what_was_sent() -> None:
    sent = ModelParts(adapter={"m": factors(3)})
    came = ModelParts(adapter={"m": factors(3).without("lora_A")})
    whole = {"m": came.adapter["m"].filled(sent.adapter["m"])}
    dense = {"m": products(ModelParts(adapter=whole))["m"] - products(sent)["m"]}
    found = norms.norms_of(Job(0, "train", 1, sent), update(came))
    assert found["train/adapter"] == pytest.approx(size(dense), rel=1e-6)


def test_a_factor_whose_partner_stays_at_home_counts_by_itself() -> None:
    a, before = factors(3).without("lora_B"), factors(3).without("lora_B")
    sent = ModelParts(adapter={"m": before})
    found = norms.norms_of(Job(0, "train", 1, sent), update(ModelParts(adapter={"m": a})))
    assert found["train/adapter"] == pytest.approx(np.linalg.norm(a.a - before.a), rel=1e-6)


def test_tensors_count_by_their_change_and_from_zero_where_none_was_sent() -> None:
    new, old = np.ones((3, 4), np.float32), np.full((3, 4), 3, np.float32)
    came = update(ModelParts(head={"h": new}, weights={"w": new}))
    found = norms.norms_of(Job(0, "train", 1, ModelParts(head={"h": old})), came)
    assert found == {
        "train/head": pytest.approx(np.sqrt(48)),
        "train/weights/from-zero": pytest.approx(np.sqrt(12)),
    }


# ------------------------------------------------------------------ too far


def held(norm: float, others: tuple[float, ...], known: norms.Known | None = None) -> None:
    """Hold a norm against others of its exchange, ratio 10."""
    own = {"k": (norm, *others)}
    norms.check_norms({"k": norm}, norms.bounds(known or {}, own, 10.0), 10.0)


@given(
    st.lists(st.floats(0.5, 2.0), min_size=3, max_size=20),
    st.integers(0, 9),
    st.one_of(st.floats(1e3, 1e9), st.just(0.0)),
)
def test_a_minority_moves_no_bound_past_the_honest(
    honest: list[float], bad: int, anything: float
) -> None:
    """Of n norms fewer than half may be anything: honest ones pass, those far off don't."""
    bad = min(bad, (len(honest) - 1) // 2)
    everybody = {"k": (*[anything] * bad, *honest)}
    most = norms.bounds({}, everybody, 10.0)
    for norm in honest:
        norms.check_norms({"k": norm}, most, 10.0)
    with pytest.raises(WireError, match="times the median"):
        norms.check_norms({"k": 10.0 * max(honest) * 1.01}, most, 10.0)


def test_the_largest_median_so_far_counts() -> None:
    """A model that had converged wakes up; and all clients may wake at once."""
    known = {"k": (2.0, 0.01)}
    held(19.0, (0.01,) * 9, known)
    with pytest.raises(WireError, match="at most 20"):
        held(21.0, (0.01,) * 9, known)
    held(50.0, (40.0,) * 9, known)


def test_the_bound_grows_with_the_steps_a_client_takes() -> None:
    norms.check_norms({"k": 39.0}, {"k": 10.0}, 10.0, stride=4.0)
    with pytest.raises(WireError, match="at most 40"):
        norms.check_norms({"k": 41.0}, {"k": 10.0}, 10.0, stride=4.0)
    steps = replace(setting(), steps=(2, 2, 2, 2, 8, 1))
    assert norms.strides(steps) == (1, 1, 1, 1, 4, 1)
    said = replace(steps, steps=(2, 2, 2, 2, 10**9, 1), rows=())
    assert norms.strides(said) == (1, 1, 1, 1, 10, 1)  # who declares them is not believed further
    dealt = replace(said, rows=(Rows(1, 1, 1),) * 6)
    assert norms.strides(dealt)[4] == 5e8


def test_what_has_no_bound() -> None:
    for known, own, ratio in (
        ({}, {"k": (1.0, 1.0)}, 10.0),
        ({"k": (0.0,)}, {"k": (0.0,) * 3}, 10.0),
        ({"k": (1.0,)}, {"k": (1.0,) * 9}, 0.0),
        ({"k/few": (1.0, 1.0)}, {}, 10.0),
    ):
        most = norms.bounds(known, own, ratio)
        assert most == {}
        norms.check_norms({"k": 1e9}, most, ratio)
        for norm in (1e13, float("inf"), float("nan")):
            with pytest.raises(WireError, match="whatever the others sent"):
                norms.check_norms({"k": norm}, most, ratio)


def test_medians_are_remembered_for_one_stride() -> None:
    accepted = norms.together([({"k": 8.0, "j": 3.0}, 4.0), ({"k": 5.0}, 1.0), ({"k": 3.0}, 1.0)])
    assert accepted == {"k": (2.0, 5.0, 3.0), "j": (0.75,)}
    known = norms.remembered({"k": (7.0,)}, accepted)
    assert known == {"k": (7.0, 3.0), "j/few": (0.75,)}
    known = norms.remembered(known, {"j": (9.0, 1.0)})
    assert known == {"k": (7.0, 3.0), "j": (1.0,)}
    for n in range(2 * norms.KEPT):
        known = norms.remembered(known, {"k": (n, n, n)})
    assert known["k"] == tuple(range(norms.KEPT, 2 * norms.KEPT))


@pytest.mark.parametrize("name_", sorted(STRATEGIES.keys() - {"local_only"}))
def test_a_far_update_is_refused_in_any_method(name_: str) -> None:
    """The players' updates x1000: from round 1 on, whoever sends them."""
    method = widest(name_)
    state, updates = first_round(method)
    jobs = {job.partition: job for job in method.plan(state, ALL) or []}
    sizes = [norms.norms_of(jobs[u.partition], u) for u in updates]
    if len(sizes) < norms.LEAST:
        return  # of two clients a task nobody can say which is far
    most = norms.bounds({}, norms.together((each, 1.0) for each in sizes), 10.0)
    for own, one in zip(sizes, updates, strict=True):
        norms.check_norms(own, most, 10.0)
        body = {name: 1000 * tensor for name, tensor in one.parts.body().items()}
        head = {name: 1000 * tensor for name, tensor in one.parts.head.items()}
        far = replace(one, parts=replace(one.parts.with_body(body), head=head))
        with pytest.raises(WireError, match="norm of"):
            norms.check_norms(norms.norms_of(jobs[one.partition], far), most, 10.0)


# ------------------------------------------------------------------ the gate


def replies(method: Method, state: State, players: list[Player], far: int) -> Told:
    """A phase's jobs and their answers as messages, one of them x1000."""
    jobs = method.plan(state, ALL) or []
    told = []
    for job in jobs:
        answer = players[job.partition].answer(job)
        if job.partition == far:
            head = {name: 1000 * tensor for name, tensor in answer.parts.head.items()}
            answer = replace(answer, parts=replace(answer.parts, head=head))
        asked = Message(RecordDict(), job.partition + 2, job.action)
        told.append(Message(pack_update(answer, job), reply_to=asked))
    return jobs, told


def test_the_first_exchange_is_judged_together_and_later_ones_as_they_come() -> None:
    adopt_identity()
    method = widest("fedavg")
    gate, players = Gate(method.setting, 10.0), crew(method)
    state = replace(method.start(), round=1)
    read: list[int] = []

    def counted(messages: list[Message]) -> Iterator[Message]:
        for number, message in enumerate(messages):
            read.append(number)
            yield message

    # Partition 2 lies. Factors that have learnt nothing yet have sizes of their own.
    for round_, taken in ((1, [6] * 6), (2, [6] * 6), (3, [1, 2, 6, 6, 6, 6])):
        state = replace(state, round=round_, phase=0)
        jobs, told = replies(method, state, players, far=2)
        found, seen = [], []
        for verdict in gate.screen(state, jobs, counted(told)):
            found.append(verdict)
            seen.append(len(read))
        assert seen == taken
        assert [v.status for v in found] == ["ok", "ok", "rejected", "ok", "ok", "ok"]
        assert "norm of train/head" in str(found[2].error)
        assert [v.update.partition for v in found if v.update] == [0, 1, 3, 4, 5]
        state = gate.remembered(method.merge(state, (v.update for v in found if v.update)))
        begun, every = {"train/lora_A", "train/lora_B"}, {"train/adapter", "train/head"}
        blank = {f"{key}/from-zero" for key in begun}
        want = dict.fromkeys(every, round_) | dict.fromkeys(blank, 1)
        want |= dict.fromkeys(begun, round_ - 1) if round_ > 1 else {}
        assert {key: len(each) for key, each in state.norms.items()} == want
        read.clear()


@pytest.mark.parametrize("noise", [0.5, 4.0])
def test_noise_on_few_rows_is_no_lie(noise: float) -> None:
    """A mean of one row is hidden behind far more noise than its like of thirty."""
    adopt_identity()
    method = of_rank("atlas", EQUAL, noise=noise, clip=3.0, ranks="uniform")
    players = [replace(player, counts=(60, 60)) for player in crew(method)]
    players[1] = replace(players[1], counts=(118, 2))
    gate, state = Gate(method.setting, 10.0), replace(method.start(), round=1)
    jobs, told = replies(method, state, players, far=-1)
    assert jobs[0].action == "train.fingerprint"
    assert [v.error for v in gate.screen(state, jobs, told)] == [None] * 6


def test_what_is_remembered_survives_a_commit() -> None:
    state = State(norms={"train/adapter": (0.1, 1 / 3, 1e-300)})
    tree, tensors = encode(state)
    back = decode(json.loads(json.dumps(tree)), tensors, [State, Measured])
    assert back.norms == state.norms


def test_norms_are_remembered_with_the_state_alone() -> None:
    gate = Gate(setting(), 10.0)
    method = widest("fedavg")
    assert gate.remembered(method.start()).norms == {}
