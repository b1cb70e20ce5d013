"""Runs that differ in one thing: η on an axis, seeds as a band, and nothing when more differs."""

import dataclasses

import numpy as np
import pytest

from atlas_flwr.results.compare_output import write_comparison
from atlas_flwr.results.sweeps import against_eta, differing, flat, over_seeds, sweep_figures


@pytest.fixture
def swept(make_run):
    """Return what lays an η, a seed and scores over the same small run."""
    base = make_run()

    def make(eta, seed=1, accuracy=0.5, strategy="atlas"):
        config = {
            "run": {"name": f"{eta}-{seed}", "seed": seed},
            "data": base.config["data"],
            "strategy": {"name": strategy, "options": {"eta": eta}},
        }
        final = base.summary["final"] | {
            "accuracy": accuracy,
            "worst_client_accuracy": accuracy - 0.25,
        }
        summary = base.summary | {"final": final, "experiment": f"{eta}-{seed}"}
        rounds = [r | {"accuracy": accuracy * r["round"]} for r in base.rounds]
        return dataclasses.replace(base, config=config, summary=summary, rounds=rounds)

    return make


def test_accuracy_is_drawn_against_eta(swept):
    figure = against_eta([swept(eta, accuracy=0.5 + eta / 4) for eta in (1.0, 0.0, 0.5)])
    mean, worst = figure.series
    assert mean.points == [(0.0, 0.5), (0.5, 0.625), (1.0, 0.75)]
    assert worst.points == [(0.0, 0.25), (0.5, 0.375), (1.0, 0.5)]
    assert figure.axis == "η"
    assert mean.bands == []


def test_seeds_at_each_eta_are_means_with_their_deviation(swept):
    scores = {0.0: (0.25, 0.5), 1.0: (0.5, 1.0)}
    runs = [swept(eta, seed, y) for eta, ys in scores.items() for seed, y in enumerate(ys)]
    figure = against_eta(runs)
    assert "n = 2" in figure.caption
    mean = figure.series[0]
    assert mean.points == [(eta, np.mean(ys)) for eta, ys in scores.items()]
    (band,) = mean.bands
    for (_, low, high), ys in zip(band, scores.values(), strict=True):
        assert high - low == pytest.approx(2 * np.std(ys, ddof=1))
        assert (low + high) / 2 == pytest.approx(np.mean(ys))


def test_an_eta_that_is_chosen_is_a_level_line(swept):
    figure = against_eta([swept(0.0), swept(1.0), swept("auto", accuracy=0.75)])
    (level, _) = [s for s in figure.series if s.colour == "quiet"]
    assert level.name == "mean over tasks, η = auto"
    assert level.points == [(0.0, 0.75), (1.0, 0.75)]


def test_nothing_is_drawn_where_more_differs_or_less(swept):
    assert against_eta([swept(0.0), swept(1.0, strategy="other")]) is None
    assert against_eta([swept(0.0), swept(0.0, 2)]) is None
    assert against_eta([swept(0.5), swept("auto")]) is None
    assert over_seeds({"a": swept(0.0), "b": swept(1.0, 2)}) is None
    assert over_seeds({"a": swept(0.0), "b": swept(0.0)}) is None
    assert sweep_figures({"a": swept(0.0)}) == []


def test_bands_over_seeds_say_how_many(swept):
    runs = {str(seed): swept(0.5, seed, y) for seed, y in enumerate((0.25, 0.5, 0.3))}
    runs["other"] = swept(1.0)
    (line,) = over_seeds(runs).series
    assert line.name == "atlas (n = 3)"
    for (x, y), (_, low, high) in zip(line.points, line.bands[0], strict=True):
        values = np.array([0.25, 0.5, 0.3]) * x
        assert y == pytest.approx(values.mean())
        assert high - low == pytest.approx(2 * values.std(ddof=1))


def test_two_bands_are_told_apart_by_what_differs(swept):
    runs = {f"{e}{s}": swept(e, s) for e in (0.0, 1.0) for s in (1, 2)}
    assert [s.name for s in over_seeds(runs).series] == [
        f"atlas, eta = {eta} (n = 2)" for eta in ("0.0", "1.0")
    ]


def test_a_score_that_is_absent_leaves_its_point_out(swept):
    runs = [swept(0.0), swept(1.0), swept(0.5)]
    runs[2].summary["final"]["accuracy"] = None
    assert [x for x, _ in against_eta(runs).series[0].points] == [0.0, 1.0]


def test_the_comparison_has_the_pictures(swept, tmp_path):
    runs = [swept(eta, seed) for eta in (0.0, 1.0) for seed in (1, 2)]
    write_comparison(runs, tmp_path)
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "Accuracy against η" in page
    assert "(n = 2)" in page
    assert (tmp_path / "comparison-eta.png").stat().st_size > 10_000
    assert (tmp_path / "comparison-seeds.png").stat().st_size > 10_000


def test_names_and_places_are_no_difference():
    trees = [flat({"run": {"name": n, "out": n, "seed": 1}}) for n in "ab"]
    assert differing(trees) == set()
