from __future__ import annotations

import pytest

from benchmarks.measure import Ratio, Turns, in_turn


def ratio(pairs, sense="<=", target=1.15):
    return Ratio("ours", "theirs", tuple(pairs), sense, target)


def test_the_ratio_is_the_median_over_pairs_not_of_medians():
    got = ratio([(1.0, 1.0), (4.0, 2.0), (30.0, 10.0)])
    assert got.median == 2.0
    assert (got.to_dict()["min"], got.to_dict()["max"]) == (1.0, 3.0)
    assert (got.seconds(0), got.seconds(1)) == (4.0, 2.0)


@pytest.mark.parametrize(("sense", "target", "met"), [("<=", 2.0, True), (">=", 2.1, False)])
def test_a_target_has_a_side(sense, target, met):
    assert ratio([(2.0, 1.0)], sense, target).met is met


def test_turns_are_taken_and_the_first_of_each_is_not_counted():
    done: list[str] = []
    pairs = in_turn(lambda: done.append("a"), lambda: done.append("b"), repetitions=3)
    assert "".join(done) == "abababab"
    assert len(pairs) == 3


def test_the_rival_runs_after_each_round_and_its_time_is_not_the_round_s():
    rounds: list[int] = []
    turns = Turns(rounds.append)
    for event in ("start", "phase", "client", "round", "phase", "round", "final"):
        turns({"event": event, "round": 7})
    assert rounds == [7, 7]
    assert len(turns.pairs) == 2
