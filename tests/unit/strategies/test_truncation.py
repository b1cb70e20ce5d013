"""What receivers of low rank lose of the merged update: Eckart–Young, measured and in fact."""

from __future__ import annotations

import numpy as np
import pytest

from federations import ALL, MIXED, ON_A_GRAPH, ROBUST, Dense, distance, equal, size, widest
from players import crew, play, rounds
from strategies.base import Method, State
from strategies.registry import STRATEGIES

MIXING = sorted(
    name for name, method in STRATEGIES.items() if method.mixed_ranks and method.needs_lora
)
# FLoRA's receivers merge all; the others have no mean.
CUTTING = sorted(set(MIXING) - {"flora", "fedsa"} - ON_A_GRAPH)


def applied(method: Method, state: State) -> Dense:
    return {m: f.product() for m, f in method.applied(state, "global").items()}


def tail(dense: Dense, rank: int) -> float:
    """What the best approximation of a rank loses of all modules together, by NumPy's SVD."""
    spectra = [np.linalg.svd(matrix, compute_uv=False) for matrix in dense.values()]
    cut = sum(float(np.sum(s[rank:] ** 2)) for s in spectra)
    return float(np.sqrt(cut)) / size(dense)


@pytest.mark.parametrize("name_", ["flexlora", "raflora"])
def test_svd_rules_lose_the_tail_of_singular_values_and_nothing_more(name_: str) -> None:
    for options in ({}, {"write-back": "unbalanced"}):
        method = widest(name_, **options)
        for state in rounds(method, [ALL, [1, 2, 5], ALL], crew(method)):
            measured = state.measured.truncation_error or {}
            assert list(measured) == ["2", "4", "8", "16"]
            for rank, error in measured.items():
                best = tail(applied(method, state), int(rank))
                assert error == pytest.approx(best, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name_", CUTTING)
def test_no_rule_loses_less_than_the_tail(name_: str) -> None:
    method = widest(name_)
    players = crew(method)
    for state in rounds(method, [ALL, [1, 2, 3], ALL], players):
        whole = applied(method, state)
        for player in players:
            rank = MIXED[player.partition]
            error = (state.measured.truncation_error or {})[str(rank)]
            assert error >= tail(whole, rank) - 1e-9
            # And it is what the client's own model lacks.
            job = method.job(state, player.partition, "evaluate")
            assert distance(player.effective(job), whole) == pytest.approx(error, abs=1e-6)


@pytest.mark.parametrize("name_", CUTTING)
def test_more_rank_loses_less_under_nested_cuts(name_: str) -> None:
    method = widest(name_)
    if name_ in {"flexlora", "raflora"}:
        errors = list((play(method, [ALL, ALL]).measured.truncation_error or {}).values())
        assert errors == sorted(errors, reverse=True)
    else:  # rows as they lie: the highest rank loses nothing, whatever the others lose
        measured = play(method, [ALL, ALL]).measured.truncation_error or {}
        assert measured["16"] == pytest.approx(0.0, abs=1e-12)
        assert measured["2"] > 1e-3


@pytest.mark.parametrize("name_", ["flora", "fedex"])
def test_rules_that_merge_lose_nothing(name_: str) -> None:
    method = widest(name_)
    measured = play(method, [ALL, [0, 3], ALL]).measured.truncation_error or {}
    assert measured == pytest.approx(dict.fromkeys(measured, 0.0), abs=1e-12)
    assert sorted(measured) == sorted(str(rank) for rank in set(method.setting.ranks))


def test_receivers_of_the_common_rank_lose_nothing(name: str) -> None:
    """Rules that average factors; an SVD's mean product has more ranks than any of its clients."""
    if name in {"flexlora", "raflora"} | ROBUST:
        return
    measured = play(equal(name), [ALL, ALL]).measured.truncation_error
    if name in {"local_only", "fedsa"} | ON_A_GRAPH:
        assert measured is None
    else:
        assert measured == {"4": pytest.approx(0.0, abs=1e-12)}
