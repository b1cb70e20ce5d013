"""Clients that were not drawn and follow those of their cluster who were."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.types import Array
from federations import ALL, ROWS, believed, of_rank, products
from players import crew, play, rounds
from strategies.base import Method, State

FREE = [16] * 6  # ranks that hold every mean of the players' updates but for the last bits
GRAPHS: dict[str, dict[str, object]] = {
    "rbf": {"graph": "rbf"},
    "knn": {"graph": "knn", "neighbours": 1},
    "crossing": {"graph": "rbf", "cross": 0.5},
}
FOLLOWING: dict[str, object] = {"ranks": "fixed", "absent": "follow"}


def stacked(method: Method, state: State) -> Array:
    return np.stack([believed(method, state, p)["m.q"] for p in ALL])


def test_who_all_train_follow_nobody() -> None:
    models = []
    for absent in ("pull", "follow"):
        method = of_rank("atlas", FREE, **{**FOLLOWING, "absent": absent})
        models.append(stacked(method, play(method, [ALL, ALL], crew(method))))
    np.testing.assert_array_equal(*models)


@pytest.mark.parametrize("variant", ["product", "factor", "ffa"])
@pytest.mark.parametrize("eta", [1.0, 0.5, 0.0])
def test_who_was_not_drawn_goes_after_the_mean_of_those_who_were(eta: float, variant: str) -> None:
    """Client 2 never trained; 0 and 1 did, whatever it holds. Nobody of the other task did."""
    cohort = (0, 1)
    found = {}
    for name, step in (("alone", 0.0), ("followed", eta)):
        method = of_rank("atlas", FREE, **FOLLOWING, eta=step, variant=variant)
        players = crew(method, moves=frozenset({"lora_B", "head"}))
        state = play(method, [cohort], players)
        heads = np.stack([state.heads[f"client-{p}"]["head.weight"] for p in ALL])
        found[name] = stacked(method, state), heads
    for alone, followed in zip(*found.values(), strict=True):
        mean = np.average(alone[:2], 0, ROWS[:2])
        wanted = (1 - eta) * alone[2] + eta * mean
        np.testing.assert_allclose(followed[2], wanted, atol=1e-6)
        np.testing.assert_array_equal(followed[3:], alone[3:])
        if eta == 1.0:
            np.testing.assert_allclose(followed[0], mean, atol=1e-6)


def test_who_comes_back_trains_what_it_followed_to() -> None:
    method = of_rank("atlas", FREE, **FOLLOWING, eta=1.0)
    first = play(method, [(0, 1)], crew(method))
    jobs = method.plan(replace(first, round=2, phase=0), [2]) or []
    assert jobs[0].parts.body().keys() == method.model_for(first, 2).parts.body().keys()
    followed = stacked(method, first)
    np.testing.assert_array_equal(products(jobs[0].parts)["m.q"], followed[2])
    assert np.abs(followed[2]).max() > 0


def test_nobody_is_pulled_by_who_was_not_drawn() -> None:
    """The drawn ones' step is the one they take without the others."""
    models = {}
    for absent in ("wait", "follow"):
        method = of_rank("atlas", FREE, ranks="fixed", absent=absent)
        first, second = rounds(method, [ALL, (0, 1, 3)], crew(method))
        models[absent] = stacked(method, second)
        assert np.array_equal(models[absent][2], stacked(method, first)[2]) == (absent == "wait")
    np.testing.assert_array_equal(models["wait"][[0, 1, 3]], models["follow"][[0, 1, 3]])


@pytest.mark.parametrize("graph", GRAPHS)
def test_on_a_graph_a_follower_goes_as_far_as_its_edges_say(graph: str) -> None:
    options = {**GRAPHS[graph], **FOLLOWING, "eta": 1.0}
    method = of_rank("atlas", FREE, **options)
    players = crew(method, moves=frozenset({"lora_B", "head"}))  # A is shared: no rank is cut
    model = stacked(method, play(method, [(0, 1)], players))[2]
    leaders = stacked(
        method, play(of_rank("atlas", FREE, **{**options, "eta": 0.0}), [ALL], players)
    )[:2]
    shares, *_ = np.linalg.lstsq(leaders.reshape(2, -1).T, model.ravel(), rcond=None)
    np.testing.assert_allclose(np.tensordot(shares, leaders, 1), model, atol=1e-6)
    assert (shares > -1e-6).all()
    assert 0 < shares.sum() < 1 + 1e-6


def test_the_cluster_mean_is_the_whole_step_with_half_of_the_clients_too() -> None:
    models = []
    for name, options in (("atlas", {"eta": 1.0}), ("atlas_cluster_mean", {})):
        method = of_rank(name, FREE, **options)
        models.append(stacked(method, play(method, [(0, 1, 3), (2, 4, 5)], crew(method))))
    np.testing.assert_array_equal(*models)
    np.testing.assert_allclose(models[0][0], models[0][2], atol=1e-6)
