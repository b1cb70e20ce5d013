"""Updates that must not be merged: not finite, of another rank or scale, without a module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.errors import AggregationError, WireError
from atlas_flwr.types import LoraFactors, ModelParts, Update
from federations import ALL, believed, distance, equal, widest
from players import crew, first_round, opened, play
from strategies.registry import STRATEGIES
from strategies.rounds.rules import check_schema

SILENT = {"local_only"}  # sends nothing
SHARING = sorted(STRATEGIES.keys() - SILENT)
ONE_RANK = sorted(name for name, method in STRATEGIES.items() if not method.mixed_ranks)


def tampered(update: Update, name: str, tensor: np.ndarray) -> Update:
    """The update with one tensor of body or head replaced."""
    if name in update.parts.head:
        return replace(
            update, parts=replace(update.parts, head={**update.parts.head, name: tensor})
        )
    body = {**update.parts.body(), name: tensor}
    return replace(update, parts=update.parts.with_body(body))


def spoilt(update: Update, value: float) -> Iterator[tuple[str, Update]]:
    """The update with one number of one tensor replaced, for each tensor."""
    for name, tensor in (update.parts.body() | dict(update.parts.head)).items():
        bad = tensor.copy()
        bad[0, -1] = value
        yield name, tampered(update, name, bad)


def lacking(update: Update, module: str) -> Update:
    """The update without a module."""

    def rest(named):
        return {key: value for key, value in named.items() if key != module}

    parts = replace(update.parts, adapter=rest(update.parts.adapter), core=rest(update.parts.core))
    return replace(update, parts=parts)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name_", SHARING)
def test_values_that_are_not_finite_are_refused_by_merge_and_schema(
    name_: str, value: float
) -> None:
    method = widest(name_)
    players = crew(method)
    state = opened(method, players)
    jobs = method.plan(state, ALL) or []
    updates = [players[job.partition].answer(job) for job in jobs]
    cases = list(spoilt(updates[-1], value))
    assert cases
    for tensor, bad in cases:
        with pytest.raises(WireError, match="not finite") as refused:
            check_schema(jobs[-1], bad)
        assert tensor in str(refused.value)
        with pytest.raises(AggregationError):
            method.merge(state, iter([*updates[:-1], bad]))


def test_fedsbs_first_gradients_must_be_finite() -> None:
    method = widest("fedsb")
    state = replace(method.start(), round=1)
    players = crew(method)
    jobs = method.plan(state, ALL) or []
    assert {job.action for job in jobs} == {"train.gradient"}
    updates = [players[job.partition].answer(job) for job in jobs]
    for job, update in zip(jobs, updates, strict=True):
        check_schema(job, update)
    for tensor, bad in spoilt(updates[2], np.nan):
        with pytest.raises(WireError, match=tensor):
            check_schema(jobs[2], bad)
        with pytest.raises(AggregationError):
            method.merge(state, iter([*updates[:2], bad]))


def test_every_good_answer_passes_the_schema_in_every_round(name: str) -> None:
    method = widest(name)
    players = crew(method)
    state = play(method, [ALL, [0, 2]], players)
    for job in method.plan(replace(state, round=3, phase=0), ALL) or []:
        check_schema(job, players[job.partition].answer(job))


# ------------------------------------------------------------------ ranks and scales


def at_rank_1(update: Update) -> Update:
    def cut(factors: LoraFactors) -> LoraFactors:
        return replace(factors, a=factors.a[:1], b=factors.b[:, :1])

    adapter = {module: cut(factors) for module, factors in update.parts.adapter.items()}
    return replace(update, parts=replace(update.parts, adapter=adapter))


@pytest.mark.parametrize("name_", ONE_RANK)
def test_rank_1_beside_rank_4_is_impossible_where_one_rank_is_needed(name_: str) -> None:
    """NumPy would broadcast (1, d) over (4, d), and Flower's own averaging does."""
    method = equal(name_)
    players = crew(method)
    state = opened(method, players)
    jobs = method.plan(state, ALL) or []
    updates = [players[job.partition].answer(job) for job in jobs]
    # Centralised merges one client a task: no other stands beside it.
    for position in range(len(jobs)) if name_ != "centralised" else ():
        mixed = [at_rank_1(u) if i == position else u for i, u in enumerate(updates)]
        with pytest.raises(AggregationError):
            method.merge(state, iter(mixed))
    for job, update in zip(jobs, updates, strict=True):
        with pytest.raises(WireError, match=r"shape \(\d+, \d+\), expected"):
            check_schema(job, at_rank_1(update))


@pytest.mark.parametrize("name_", sorted(n for n, m in STRATEGIES.items() if m.mixed_ranks))
def test_a_rank_that_was_not_asked_for_is_refused(name_: str) -> None:
    method = widest(name_)
    players = crew(method)
    state = opened(method, players)
    for job in method.plan(state, ALL) or []:
        update = players[job.partition].answer(job)
        if update.parts.adapter:
            with pytest.raises(WireError, match="expected"):
                check_schema(job, at_rank_1(update))


AVERAGING = sorted(set(ONE_RANK) - {"centralised"})


@pytest.mark.parametrize("name_", AVERAGING)
def test_factors_of_other_scales_are_never_averaged_as_they_are(name_: str) -> None:
    """``s B A`` with other s: means of raw A and B would mix units, silently."""
    method = equal(name_)
    state, updates = first_round(method)
    adapter = {m: replace(f, scale=2 * f.scale) for m, f in updates[1].parts.adapter.items()}
    odd = replace(updates[1], parts=replace(updates[1].parts, adapter=adapter))
    with pytest.raises(AggregationError, match="scale"):
        method.merge(state, iter([updates[0], odd, *updates[2:]]))


# ------------------------------------------------------------------ modules


@pytest.mark.parametrize("name_", sorted(set(SHARING) - {"centralised"}))
def test_a_missing_module_is_refused_or_a_mean_over_its_owners(name_: str) -> None:
    method = widest(name_)
    players = crew(method)
    state = opened(method, players)
    jobs = method.plan(state, ALL) or []
    updates = [players[job.partition].answer(job) for job in jobs]
    with pytest.raises(WireError, match=r"m\.q.*asked for and returned tensors differ"):
        check_schema(jobs[1], lacking(updates[1], "m.q"))

    owners = [lacking(u, "m.q") if i in {1, 4} else u for i, u in enumerate(updates)]
    try:
        partly = method.merge(state, iter(owners))
    except AggregationError:
        assert name_ not in {"hetlora", "rbla", "raflora", "flora", "flexlora", "ffa", "fedsb"}
        return
    without = [u for i, u in enumerate(updates) if i not in {1, 4}]
    alone = method.merge(state, iter(without))
    everybody = method.merge(state, iter(updates))
    if name_ == "hetlora":
        return  # weighs by the norm of what there is: another mean, of the right shape
    for partition in ALL:
        sets = [believed(method, s, partition) for s in (partly, alone, everybody)]
        if not sets[0]:  # FedSA: A alone
            sets = [
                {m: f.a for m, f in method.model_for(s, partition).parts.adapter.items()}
                for s in (partly, alone, everybody)
            ]
        got, some, whole = sets
        assert distance({"q": got["m.q"]}, {"q": some["m.q"]}) <= 1e-6
        assert distance({"up": got["m.up"]}, {"up": whole["m.up"]}) <= 1e-6


def test_a_delta_is_never_taken_from_a_client() -> None:
    method = equal("flora")
    players = crew(method)
    state = opened(method, players)
    job = (method.plan(state, ALL) or [])[0]
    update = players[0].answer(job)
    delta = {"m.q": LoraFactors(np.ones((1, 24)), np.ones((40, 1)), 1.0)}
    with pytest.raises(WireError, match=r"m\.q"):
        check_schema(job, replace(update, parts=replace(update.parts, delta=delta)))


def test_an_update_of_no_rows_is_refused(name: str) -> None:
    method = widest(name)
    players = crew(method)
    state = opened(method, players)
    job = (method.plan(state, ALL) or [])[0]
    update = players[job.partition].answer(job)
    none = replace(update, report=replace(update.report, num_examples=0))
    with pytest.raises(WireError, match="0 rows"):
        check_schema(job, none)
    if update.parts != ModelParts():
        with pytest.raises(AggregationError, match="weight"):
            method.merge(state, iter([none]))


# ------------------------------------------------------------------ precisions


def cast(update: Update, dtype: type) -> Update:
    body = {name: tensor.astype(dtype) for name, tensor in update.parts.body().items()}
    head = {name: tensor.astype(dtype) for name, tensor in update.parts.head.items()}
    return replace(update, parts=replace(update.parts.with_body(body), head=head))


@pytest.mark.parametrize("name_", sorted(set(SHARING) - {"rolora", "ffa"}))
def test_half_precision_is_averaged_in_double(name_: str) -> None:
    """The same numbers told in half and in double precision have the same mean."""
    method = widest(name_)
    state, updates = first_round(method)
    halves = [cast(update, np.float16) for update in updates]
    after = [
        method.merge(state, iter(told))
        for told in (halves, [cast(update, np.float64) for update in halves])
    ]
    for partition in ALL:
        left, right = (believed(method, each, partition) for each in after)
        assert distance(left, right) <= 1e-6
        assert all(np.isfinite(matrix).all() for matrix in left.values())


@pytest.mark.parametrize("name_", SHARING)
def test_integers_have_no_mean(name_: str) -> None:
    method = widest(name_)
    state, updates = first_round(method)
    counted = [cast(update, np.int64) for update in updates]
    with pytest.raises(AggregationError, match=r"dtypes? int64.*mean"):
        method.merge(state, iter(counted))
