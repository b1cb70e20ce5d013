"""Clients that count for what their label mix tells: laws of the weights, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from atlas_flwr.aggregation.information import informative_rows
from atlas_flwr.errors import ConfigError
from atlas_flwr.types import Array
from federations import ALL, EQUAL, MIXED, ROWS, believed, of_rank
from players import Player, crew, play
from strategies.base import Method, State
from strategies.registry import build

FREE = [16] * 6  # ranks that hold every mean of the players' updates but for the last bits
SKEWED = [(20, 20), (38, 2), (0, 40), (10, 30), (20, 20), (25, 15)]
WORTH = np.array([informative_rows(counts) for counts in SKEWED])
INFORMED: dict[str, object] = {"weights": "information"}
MEANS = ("atlas", "atlas_cluster_mean", "oracle_cluster", "cluster_fedavg")


def skewed(method: Method) -> list[Player]:
    players = crew(method, moves=frozenset({"lora_B", "head"}))  # A is shared: factors' means
    return [replace(p, counts=c) for p, c in zip(players, SKEWED, strict=True)]


def stacked(method: Method, state: State) -> Array:
    return np.stack([believed(method, state, p)["m.q"] for p in ALL])


def options(name: str, **more: object) -> dict[str, object]:
    """The whole step, at the ranks of the setting."""
    own: dict[str, object] = {} if name == "cluster_fedavg" else {"ranks": "fixed"}
    return own | ({"eta": 1.0} if name in ("atlas", "oracle_cluster") else {}) | more


@pytest.mark.parametrize("name", MEANS)
def test_the_clusters_mean_is_weighted_by_what_mixes_tell(name: str) -> None:
    apart = of_rank("atlas", FREE, **options("atlas") | {"eta": 0.0})
    alone = stacked(apart, play(apart, [ALL], skewed(apart)))
    found = {}
    for weights, worth in (("rows", np.array(ROWS)), ("information", WORTH)):
        method = of_rank(name, FREE, **options(name, weights=weights))
        state = play(method, [ALL], skewed(method))
        found[weights] = stacked(method, state)
        for own in ([0, 1, 2], [3, 4, 5]):
            mean = np.average(alone[own], 0, worth[own])
            for p in own:
                np.testing.assert_allclose(found[weights][p], mean, atol=1e-6)
    assert not np.allclose(found["rows"], found["information"], atol=1e-3)


def test_who_has_one_class_goes_to_the_others_and_they_hardly_to_it() -> None:
    """Client 2 has the most rows of its cluster, all of one class."""
    apart = of_rank("atlas", FREE, **options("atlas") | {"eta": 0.0})
    alone = stacked(apart, play(apart, [ALL], skewed(apart)))
    method = of_rank("atlas", FREE, **options("atlas"), **INFORMED)
    model = stacked(method, play(method, [ALL], skewed(method)))[2]
    others = np.average(alone[:2], 0, WORTH[:2])
    assert np.linalg.norm(model - others) < 0.06 * np.linalg.norm(alone[2] - others)


def test_equal_mixes_weigh_as_equal_rows_do() -> None:
    models = []
    for weights in ("rows", "information"):
        method = of_rank("atlas", FREE, **options("atlas", weights=weights))
        players = [replace(p, rows=20) for p in crew(method)]
        models.append(stacked(method, play(method, [ALL], players)))
    np.testing.assert_allclose(*models, atol=1e-7)


def test_followers_go_to_the_same_mean_and_graphs_know_the_weights() -> None:
    method = of_rank("atlas", FREE, **options("atlas"), **INFORMED)
    state = play(method, [(0, 1)], skewed(method))
    models = stacked(method, state)
    np.testing.assert_allclose(models[2], models[0], atol=1e-6)
    graph = of_rank("atlas", FREE, **options("atlas"), graph="rbf", **INFORMED)
    state = play(graph, [ALL], skewed(graph))
    weights = graph.graph(state, list(ALL)) / np.outer(WORTH, WORTH)  # type: ignore[attr-defined]
    inside = (
        weights[:3, :3][~np.eye(3, dtype=bool)]
        / graph.weights(state, list(ALL))[:3, :3][  # type: ignore[attr-defined]
            ~np.eye(3, dtype=bool)
        ]
    )
    np.testing.assert_allclose(inside, inside[0])


def test_the_record_says_what_each_client_counts_for_and_how_far_mixes_are_apart() -> None:
    method = of_rank("atlas", MIXED, **INFORMED)
    told = play(method, [ALL], skewed(method)).found
    assert told["informative_rows"] == {
        str(p): round(worth, 1) for p, worth in enumerate(WORTH.tolist())
    }
    mixes = told["label_mixes"]
    assert mixes["learned"] is True
    assert 0.8 < mixes["apart"]["0"] < 0.95  # client 1's from client 2's, less what draws give
    assert mixes["apart"]["1"] == 0.0  # of forty rows each that is no difference
    plain = of_rank("atlas", MIXED)
    assert "informative_rows" not in play(plain, [ALL], skewed(plain)).found


def test_mixes_are_no_trouble_to_models_that_are_not_averaged_or_that_adjust() -> None:
    for name, more in (("atlas_no_laplacian", {}), ("atlas", {"eta": 0.0})):
        method = of_rank(name, MIXED, **more)
        assert play(method, [ALL], skewed(method)).found["label_mixes"]["learned"] is False
    method = of_rank("atlas", MIXED)
    adjusting = build("atlas", {}, replace(method.setting, adjusts=True))
    assert play(adjusting, [ALL], skewed(adjusting)).found["label_mixes"]["learned"] is False


def test_weights_of_a_mean_that_is_never_taken_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"weights.*no step"):
        of_rank("atlas_no_laplacian", EQUAL, **INFORMED)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"noise": 1.0, "clip": 1.0, "ranks": "uniform"}, "without noise"),
        ({"fingerprint": "mean_gradient", "eta": 0.5}, "class_means"),
    ],
)
def test_weights_that_fingerprints_do_not_tell_are_refused(
    more: dict[str, object], says: str
) -> None:
    with pytest.raises(ConfigError, match=f"weights.*{says}"):
        of_rank("atlas", EQUAL, **INFORMED, **more)


def test_weights_of_more_classes_than_are_measured_are_refused() -> None:
    own = of_rank("atlas", EQUAL).setting
    many = replace(own, features=384, num_labels={"a": 2, "b": 300})
    many = replace(many, initial={**own.initial, **{(300, r): own.initial[2, r] for r in EQUAL}})
    with pytest.raises(ConfigError, match=r"weights.*of 300 classes"):
        build("atlas", {"weights": "information"}, many)
