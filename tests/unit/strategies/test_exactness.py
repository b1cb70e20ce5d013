"""How far each rule is from the exact mean, measured by the server and densely by NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from federations import (
    ALL,
    EQUAL,
    MIXED,
    ON_A_GRAPH,
    ROBUST,
    Dense,
    added,
    believed,
    distance,
    equal,
    grouped,
    of_rank,
    products,
    size,
    widest,
)
from players import BEFORE, Player, crew, first_round, play, rounds
from strategies.base import Method, State
from strategies.registry import STRATEGIES

# Nothing is shared, or models are personal by design.
NO_MEAN = {"local_only", "fedsa"} | ON_A_GRAPH
MEASURED = sorted(STRATEGIES.keys() - NO_MEAN)
EXACT = ["flora", "flexlora", "fedex", "ffa", "rolora", "fedsb"]
# Products of more directions than a receiver may have ranks.
CUT_BY_SVD = {"flexlora", "raflora"} | ROBUST
# They step away from the mean on purpose.
STEPPING = {"fedavgm", "fedadam"}


def exact_mean(method: Method, players: Sequence[Player], cohort: Sequence[int]) -> Dense:
    """``P* = Σ n_k P_k / Σ n_k`` of each group, densely, from what the players said."""
    mean: Dense = {}
    for group in sorted({method.body_key(p) for p in cohort}):
        members = [players[p] for p in cohort if method.body_key(p) == group and players[p].said]
        for module in members[0].said:
            stack = [player.said[module] for player in members]
            rows = [player.rows for player in members]
            mean[f"{group}/{module}"] = np.average(stack, axis=0, weights=rows)
    return mean


def applied(method: Method, state: State, groups: Dense) -> Dense:
    found: Dense = {}
    for group in sorted({key.partition("/")[0] for key in groups}):
        adapter = method.applied(state, group)
        found |= {f"{group}/{module}": factors.product() for module, factors in adapter.items()}
    return found


@pytest.mark.parametrize("build", [widest, equal])
@pytest.mark.parametrize("name_", MEASURED)
def test_the_measured_error_is_that_of_a_dense_computation(name_: str, build) -> None:
    method = build(name_)
    players = crew(method)
    for state in rounds(method, [ALL, [0, 3, 4], ALL], players):
        cohort = ALL if state.round != 2 else [0, 3, 4]
        for player in players:  # a pool is trained by its lowest partition alone
            if name_ == "centralised" and player.partition not in {0, 3}:
                player.said = {}
        pooled = ALL if name_ == "centralised" else cohort
        exact = exact_mean(grouped(method, state), players, pooled)
        oracle = distance(applied(method, state, exact), exact)
        assert state.measured.aggregation_error == pytest.approx(oracle, rel=1e-6, abs=1e-9)


def effective_rank(model: Dense) -> float:
    spectra = [np.linalg.svd(matrix, compute_uv=False) for matrix in model.values()]
    shares = [s**2 / np.sum(s**2) for s in spectra]
    entropy = [-np.sum(p[p > 1e-30] * np.log(p[p > 1e-30])) for p in shares]
    return float(np.mean(np.exp(entropy)))


@pytest.mark.parametrize("name_", sorted(set(MEASURED) - {"fedlease"}))  # it mixes experts
def test_the_effective_rank_is_that_of_the_models_that_clients_hold(name_: str) -> None:
    """Of all that was gained since the checkpoint, in whatever round."""
    dense = {"down-density": 1.0, "up-density": 1.0} if name_ == "flasc" else {}
    # Rank 24 is all that the modules have: nobody is cut, not even by an SVD.
    method = of_rank(name_, (24,) * 6 if name_ in CUT_BY_SVD else EQUAL, **dense)
    players = crew(method)
    for state in rounds(method, [ALL, [0, 3, 4], ALL], players):
        now = grouped(method, state)
        models: Dense = {}
        for job in method.plan(replace(state, round=state.round + 1, phase=0), ALL) or []:
            group = now.body_key(job.partition)
            if job.action.startswith("train") and job.action not in BEFORE:
                start = players[job.partition].effective(job)
                models |= {f"{group}/{module}": matrix for module, matrix in start.items()}
        assert state.measured.effective_rank == pytest.approx(effective_rank(models), rel=1e-4)


def test_what_flora_merged_for_good_uses_more_directions_every_round() -> None:
    method = equal("flora")
    found = [state.measured.effective_rank for state in rounds(method, [ALL] * 4, crew(method))]
    assert found == sorted(found)
    assert found[-1] > found[0] + 3


@pytest.mark.parametrize("ranks", [EQUAL, MIXED], ids=["equal", "mixed"])
@pytest.mark.parametrize("name_", EXACT)
def test_exact_rules_are_exact_in_every_round(name_: str, ranks: tuple[int, ...]) -> None:
    if ranks == MIXED and not STRATEGIES[name_].mixed_ranks:
        ranks = (8,) * 6
    method = of_rank(name_, ranks)
    players = crew(method)
    for state in rounds(method, [ALL] * 4, players):
        assert state.measured.aggregation_error <= 1e-12  # in float64: no rounding of messages


@pytest.mark.parametrize("name_", ["fedit", "hetlora", "rbla", "raflora", "flasc", "lora_fair"])
def test_rules_on_factors_and_reweighted_ones_are_not(name_: str) -> None:
    method = widest(name_)
    for state in rounds(method, [ALL] * 3, crew(method)):
        assert state.measured.aggregation_error > 1e-3


def test_ffas_owner_mean_is_another_estimator() -> None:
    method = widest("ffa", average="owners")
    assert play(method, [ALL]).measured.aggregation_error > 1e-3
    method = equal("ffa", average="owners")  # with one rank everybody owns every column
    assert play(method, [ALL]).measured.aggregation_error <= 1e-6


def test_raflora_of_one_rank_is_exact() -> None:
    assert play(equal("raflora"), [ALL, ALL]).measured.aggregation_error <= 1e-6


def test_lora_fair_comes_nearer_than_fedit() -> None:
    errors = {}
    for name in ("fedit", "lora_fair"):
        method = equal(name)
        errors[name] = play(method, [ALL]).measured.aggregation_error  # the same updates
    assert errors["lora_fair"] < errors["fedit"]


@pytest.mark.parametrize("name_", sorted(NO_MEAN))
def test_rules_without_a_mean_measure_nothing(name_: str) -> None:
    for method in (widest(name_), equal(name_)):
        measured = play(method, [ALL, ALL]).measured
        assert measured.aggregation_error is None
        assert measured.truncation_error is None
        assert measured.effective_rank is None


def test_the_error_of_fedit_is_the_covariance_of_the_factors() -> None:
    """``Σ p_k B_k A_k − B̄ Ā = Σ p_k (B_k − B̄)(A_k − Ā)``; two clients: ``¼(B₁ − B₂)(A₁ − A₂)``."""
    method = equal("fedit")
    state, updates = first_round(method)
    rows = np.array([u.report.num_examples for u in updates], float)
    shares = rows / rows.sum()
    covariance: Dense = {}
    for module in updates[0].parts.adapter:
        factors = [u.parts.adapter[module] for u in updates]
        a = [f.a.astype(float) for f in factors]
        b = [f.b.astype(float) for f in factors]
        mean_a, mean_b = (np.average(each, axis=0, weights=shares) for each in (a, b))
        spread = zip(shares, a, b, strict=True)
        terms = (p * (y - mean_b) @ (x - mean_a) for p, x, y in spread)
        covariance[module] = factors[0].scale * sum(terms)
    exact = {
        m: np.average([products(u.parts)[m] for u in updates], axis=0, weights=shares)
        for m in covariance
    }
    error = method.merge(state, iter(updates)).measured.aggregation_error
    assert error == pytest.approx(size(covariance) / size(exact), rel=1e-9)

    players = crew(method)
    players[0].rows = players[1].rows = 10
    state, updates = first_round(method, players)
    first, second = (update.parts.adapter["m.q"] for update in updates[:2])
    pair = method.merge(state, iter(updates[:2]))
    mean = method.applied(pair, "global")["m.q"].product()
    missed = (first.product() + second.product()) / 2 - mean
    quarter = first.scale * (first.b - second.b).astype(float) @ (first.a - second.a) / 4
    np.testing.assert_allclose(missed, quarter, atol=1e-6)


@pytest.mark.parametrize("name_", sorted({*EXACT, "fedit", "lora_fair"} - {"flexlora"}))
def test_what_clients_get_is_what_was_applied(name_: str) -> None:
    """Where no receiver is cut the clients' models move by just what the server measured."""
    method = equal(name_)
    players = crew(method)
    for state in rounds(method, [ALL] * 3, players):
        applied_ = {m: f.product() for m, f in method.applied(state, "global").items()}
        for player in players:
            job = method.job(state, player.partition, "evaluate")
            now = player.effective(job)
            assert distance(now, believed(method, state, player.partition)) <= 1e-6
            # What rounds before merged for good is no part of this round's mean.
            earlier = {m: f.product() for m, f in state.deltas.get("global", {}).items()}
            this = {
                m: f.product()
                for m, f in state.changes.get(state.round, {}).get("global", {}).items()
            }
            model = added(now, added(earlier, this, -1.0), -1.0)
            assert distance(model, applied_) <= 1e-5


@pytest.mark.parametrize("name_", sorted(set(MEASURED) - STEPPING - {"hetlora", "flasc"}))
def test_identical_clients_are_merged_without_error(name_: str) -> None:
    method = equal(name_)
    assert play(method, [ALL], crew(method, voice=0)).measured.aggregation_error <= 1e-6
