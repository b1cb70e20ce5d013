"""η and spreads as users see them: losses against η, η by round, how far clients lie apart."""

import numpy as np
import pytest

from atlas_flwr.results.figures import drawn
from atlas_flwr.results.insights import insights
from atlas_flwr.results.record import Measured
from atlas_flwr.results.report import write_report
from atlas_flwr.results.steps import eta_losses, etas, spread_figures


def eta_rounds(rounds=9, clusters=2):
    return [
        {
            "round": r,
            "eta": None if r == 2 else {str(c): 0.5 for c in range(clusters)},
            "eta_loss": None
            if r == 2
            else {str(c): {"0": 0.5 + c, "0.5": 0.4 / r, "1": None} for c in range(clusters)},
        }
        for r in range(1, rounds + 1)
    ]


def test_losses_are_drawn_against_eta_and_the_chosen_is_circled():
    figure = eta_losses(eta_rounds())
    assert figure.axis == "η"
    lines = [s for s in figure.series if not s.ring]
    assert [s.name for s in lines[:2]] == ["cluster 0, round 9", "cluster 1, round 9"]
    assert lines[1].points == [(0.0, 0.0), (0.5, pytest.approx(0.4 / 9 - 1.5))]
    assert "minus that at η 0" in figure.caption
    assert "on a complete graph to the cluster's mean" in figure.caption
    assert lines[1].label(1) == "cluster 1, round 9, η = 0.5: 0.04444"  # the file's own number
    assert len({s.dash for s in lines}) == 3  # rounds
    rings = [s.points for s in figure.series if s.ring]
    assert rings[0] == [(0.5, pytest.approx(0.4 / 9 - 0.5))]
    first = eta_losses([{"round": 1, "eta_loss": {"0": {"0": None, "0.5": 2.0, "1": 1.0}}}])
    assert first.series[0].points == [(0.5, 0.0), (1.0, -1.0)]
    assert "minus that at the smallest η" in first.caption
    assert len(rings) == len(lines) == 6
    assert drawn(figure).svg.count('fill="none"') == 0
    assert ">η</text>" in drawn(figure).svg
    crowd = [s for s in eta_losses(eta_rounds(clusters=12)).series if not s.ring]
    assert len(crowd) == 12  # of many clusters, only the last round
    assert eta_losses([{"round": 1}, {"round": 2, "eta_loss": None}]) is None


def test_eta_by_round_has_gaps_where_it_is_null():
    figure = etas(eta_rounds(4))
    assert [s.points for s in figure.series if s.name == "cluster 1"] == [
        *([(1, 0.5)], [(3, 0.5), (4, 0.5)]),
    ]
    assert etas([{"round": 1, "eta": None}]) is None


def test_eta_reaches_the_page(make_run):
    def measured(round_):
        return Measured(eta={"0": 0.5}, eta_loss={"0": {"0": 1.0, "0.5": 0.5 / round_}})

    run = make_run(measured=measured)
    assert [picture.name for picture in insights(run)] == ["eta-loss", "eta"]
    assert "Loss against η" in write_report(run).read_text(encoding="utf-8")


def test_spreads_are_numpys_percentiles_over_clients(make_run):
    run = make_run(per_task=3)
    whole, tasks = spread_figures(run)
    own = run.clients[(run.clients.phase == "evaluate") & (run.clients["round"] == 2)].accuracy
    (line,) = whole.series
    assert line.points[1] == (2, pytest.approx(own.mean()))
    assert [band[1] for band in line.bands] == [
        (2, *np.percentile(own, [0, 100])),
        (2, *np.percentile(own, [25, 75])),
    ]
    assert [s.name for s in tasks.series] == ["bbc", "tweets"]
    assert drawn(whole).svg.count("<polygon") == 2


@pytest.mark.parametrize("options", [{"rounds": 1}, {"tasks": ("a",), "per_task": 1}])
def test_nothing_spreads_in_one_round_or_one_client(make_run, options):
    assert spread_figures(make_run(**options)) == []


def test_one_client_of_each_task_spreads_over_all_alone(make_run):
    assert [f.name for f in spread_figures(make_run(per_task=1))] == ["spread"]
