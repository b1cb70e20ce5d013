"""Laws every method obeys, run over the whole registry with clients that answer without Flower."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.errors import ConfigError
from atlas_flwr.types import Job, LoraFactors, ModelParts, Report, Update
from atlas_flwr.wire import flatten
from strategies.base import Method, Setting, State
from strategies.registry import STRATEGIES, build, parse_options

TASKS = ("a", "a", "a", "b", "b", "b")
ROWS = (10, 20, 30, 10, 20, 30)
POLICIES = ("shared", "per_task", "local")


def initial(rank: int, num_labels: int = 2) -> ModelParts:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((8, 7)).astype(np.float32)[:rank]
    return ModelParts(
        adapter={"m.q": LoraFactors(a, np.zeros((5, rank), np.float32), 2.0)},
        head={"head.weight": np.zeros((num_labels, 5), np.float32)},
    )


def setting(policy: str = "per_task", ranks: tuple[int, ...] = (4,) * 6) -> Setting:
    return Setting(
        tasks=TASKS,
        num_labels={"a": 2, "b": 2},
        ranks=ranks,
        steps=(1,) * 6,
        head_policy=policy,  # type: ignore[arg-type]
        initial={(2, rank): initial(rank) for rank in set(ranks)},
    )


def moved(job: Job, seed: int = 0) -> Update:
    """A client that moves every tensor it was sent by noise of its own."""
    rng = np.random.default_rng([seed, job.partition, job.round])

    def move(tensor: np.ndarray) -> np.ndarray:
        return tensor + rng.standard_normal(tensor.shape).astype(tensor.dtype)

    parts = job.parts.with_body({name: move(t) for name, t in job.parts.body().items()})
    parts = replace(parts, head={name: move(t) for name, t in job.parts.head.items()})
    return Update(job.partition, Report(ROWS[job.partition]), parts)


def play(method: Method, cohorts: Sequence[Sequence[int]], answer=moved) -> State:
    """Drive a method through rounds as the federation does."""
    state = method.start()
    for round_, cohort in enumerate(cohorts, start=1):
        state = replace(state, round=round_, phase=0)
        while jobs := method.plan(state, cohort):
            state = method.merge(state, iter([answer(job) for job in jobs]))
    return state


def tensors(state: State, method: Method) -> dict[str, np.ndarray]:
    found = {}
    for partition in range(method.setting.clients):
        for kind, named in flatten(method.model_for(state, partition).parts).items():
            found |= {f"{partition}/{kind}/{name}": tensor for name, tensor in named.items()}
    return found


def assert_equal(left: dict[str, np.ndarray], right: dict[str, np.ndarray], **kwargs) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        np.testing.assert_allclose(tensor, right[name], err_msg=name, **kwargs)


@pytest.fixture(params=sorted(STRATEGIES))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_partition_is_served_and_what_is_private_is_not_sent(name: str, policy: str) -> None:
    method = build(name, {}, setting(policy))
    state = play(method, [range(6), range(6)])
    for partition in range(6):
        served = method.model_for(state, partition)
        kinds = flatten(served.parts)
        assert not set(kinds) & served.private
        assert set(kinds) | served.private >= {"adapter", "head"}
        assert served.since == (2 if served.private else 0)


def test_round_zero_is_the_seeded_start(name: str) -> None:
    method = build(name, {}, setting())
    for partition in range(6):
        served = method.model_for(method.start(), partition)
        for kind, named in flatten(served.parts).items():
            for key, tensor in named.items():
                np.testing.assert_array_equal(tensor, flatten(initial(4))[kind][key])


def test_clients_that_return_what_they_were_sent_are_a_fixed_point(name: str) -> None:
    method = build(name, {}, setting())
    first = play(method, [range(6)])
    before = tensors(first, method)
    state = replace(first, round=2, phase=0, memory={})
    jobs = method.plan(state, range(6)) or []
    updates = [Update(job.partition, Report(ROWS[job.partition]), job.parts) for job in jobs]
    assert_equal(tensors(method.merge(state, iter(updates)), method), before, rtol=1e-6)


def test_merging_changes_no_input(name: str) -> None:
    method = build(name, {}, setting())
    state = replace(method.start(), round=1)
    jobs = method.plan(state, range(6)) or []
    updates = [moved(job) for job in jobs]
    for held in (
        *tensors(state, method).values(),
        *flatten(updates[0].parts).get("adapter", {}).values(),
    ):
        held.flags.writeable = False
    before = {key: tensor.copy() for key, tensor in tensors(state, method).items()}
    method.merge(state, iter(updates))
    assert_equal(tensors(state, method), before, rtol=0)


def test_scaling_all_example_counts_changes_nothing(name: str) -> None:
    def scaled(job: Job) -> Update:
        update = moved(job)
        return replace(update, report=Report(7 * update.report.num_examples))

    method = build(name, {}, setting())
    plain, other = play(method, [range(6)]), play(method, [range(6)], scaled)
    assert_equal(tensors(plain, method), tensors(other, method), rtol=1e-5, atol=1e-6)


def test_a_merge_of_nobody_keeps_the_models(name: str) -> None:
    method = build(name, {}, setting())
    state = replace(play(method, [range(6)]), round=2, phase=0)
    assert_equal(tensors(method.merge(state, iter(())), method), tensors(state, method), rtol=0)


def test_updates_are_consumed_one_at_a_time(name: str) -> None:
    method = build(name, {}, setting())
    state = replace(method.start(), round=1)
    alive: list[int] = []

    def stream() -> Iterator[Update]:
        for job in method.plan(state, range(6)) or []:
            alive.append(job.partition)
            yield moved(job)

    method.merge(state, stream())
    expected = [job.partition for job in method.plan(state, range(6)) or []]
    assert alive == expected


def test_fedavg_is_numpys_weighted_average() -> None:
    method = build("fedavg", {}, setting("per_task"))
    state = play(method, [range(6)])
    jobs = method.plan(replace(method.start(), round=1), range(6)) or []
    updates = [moved(job) for job in jobs]
    served = method.model_for(state, 0).parts
    oracle = np.average([u.parts.adapter["m.q"].a for u in updates], axis=0, weights=ROWS)
    np.testing.assert_allclose(served.adapter["m.q"].a, oracle, rtol=1e-5)
    heads = [u.parts.head["head.weight"] for u in updates[:3]]
    oracle = np.average(heads, axis=0, weights=ROWS[:3])
    np.testing.assert_allclose(served.head["head.weight"], oracle, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("twin", "options"),
    [("fedprox", {"mu": 0.0}), ("fedavgm", {"momentum": 0.0, "learning-rate": 1.0})],
)
def test_limits_that_are_fedavg(twin: str, options: dict[str, float]) -> None:
    plain, other = build("fedavg", {}, setting()), build(twin, options, setting())
    left, right = play(plain, [range(6)] * 2), play(other, [range(6)] * 2)
    assert_equal(tensors(left, plain), tensors(right, other), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("other", ["fedavgm", "fedadam", "centralised", "local_only"])
def test_methods_that_must_differ_from_fedavg_do(other: str) -> None:
    plain, method = build("fedavg", {}, setting()), build(other, {}, setting())
    left, right = (tensors(play(m, [range(6)] * 2), m) for m in (plain, method))
    assert left.keys() != right.keys() or any(
        not np.allclose(left[key], right[key], atol=1e-3) for key in left
    )


def test_heads_follow_their_policy() -> None:
    states = {p: build("fedavg", {}, setting(p)) for p in POLICIES}
    heads = {}
    for policy, method in states.items():
        state = play(method, [range(6)])
        heads[policy] = [method.model_for(state, p) for p in range(6)]
    shared, per_task, local = (heads[p] for p in POLICIES)
    assert len({s.key for s in shared}) == 1
    assert [s.key for s in per_task] == ["task-a"] * 3 + ["task-b"] * 3
    assert [s.key for s in local] == [f"client-{p}" for p in range(6)]
    assert all(s.private == {"head"} and not s.parts.head for s in local)
    a, b = per_task[0].parts.head["head.weight"], per_task[3].parts.head["head.weight"]
    assert not np.allclose(a, b)
    np.testing.assert_array_equal(
        per_task[0].parts.adapter["m.q"].a, per_task[3].parts.adapter["m.q"].a
    )


def test_absent_clients_keep_their_private_parts() -> None:
    method = build("local_only", {}, setting())
    state = play(method, [[0, 1], [1, 2]])
    assert [method.model_for(state, p).since for p in range(6)] == [1, 2, 2, 0, 0, 0]


@pytest.mark.parametrize(("steps", "expected"), [("total", (12, 3)), ("client", (5, 1))])
def test_centralised_pools_each_task_at_equal_steps(steps: str, expected: tuple[int, int]) -> None:
    uneven = replace(setting(), steps=(3, 5, 4, 1, 1, 1))
    method = build("centralised", {"steps": steps}, uneven)
    jobs = method.plan(replace(method.start(), round=1), [4]) or []
    assert [(j.partition, j.pool, j.options["max-steps"]) for j in jobs] == [
        (0, (0, 1, 2), expected[0]),
        (3, (3, 4, 5), expected[1]),
    ]


def test_mixed_ranks_are_refused_where_factors_are_averaged(name: str) -> None:
    mixed = setting(ranks=(2, 4, 2, 4, 2, 4))
    if STRATEGIES[name].mixed_ranks:
        build(name, {}, mixed)
    else:
        with pytest.raises(ConfigError, match=r"lora\.rank.*\[2, 4\].*local_only"):
            build(name, {}, mixed)


def test_a_shared_head_needs_one_label_space() -> None:
    odd = replace(
        setting("shared"),
        num_labels={"a": 2, "b": 3},
        initial={(2, 4): initial(4), (3, 4): initial(4, 3)},
    )
    with pytest.raises(ConfigError, match=r"model\.head.*\[2, 3\]"):
        build("fedavg", {}, odd)


@pytest.mark.parametrize(
    ("name_", "options", "message"),
    [
        ("fedavgg", {}, "did you mean 'fedavg'"),
        ("fedprox", {"mu": -1}, r"strategy\.options\.mu.*-1"),
        ("fedprox", {"muu": 1}, r"strategy\.options\.muu.*did you mean 'mu'"),
        ("fedavg", {"mu": 1}, "it has no options"),
        ("fedavgm", {"momentum": 1.0}, r"strategy\.options\.momentum"),
        ("fedadam", {"beta-1": "x"}, r"strategy\.options\.beta-1.*'x'"),
    ],
)
def test_wrong_names_and_options_are_one_line(name_: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        parse_options(name_, options)
    assert "\n" not in str(refused.value)


def test_fedadam_counts_the_steps_of_a_group_and_not_the_rounds() -> None:
    method = build("fedadam", {}, setting())
    late = play(method, [[0], [0], [3]])  # task b's head is first touched in round 3
    early = play(method, [[3]], lambda job: moved(replace(job, round=3)))
    left = method.model_for(late, 3).parts.head["head.weight"]
    np.testing.assert_allclose(left, method.model_for(early, 3).parts.head["head.weight"])
