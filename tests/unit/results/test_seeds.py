"""Runs over seeds: the mean and deviation of NumPy and SciPy, and never two runs of one seed."""

import io
import itertools

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from atlas_flwr.results.compare import compare
from atlas_flwr.results.compare_output import comparison_table, write_comparison
from atlas_flwr.results.seeds import groups_of, more_than_strategy


@pytest.fixture
def seeded(make_run):
    numbers = itertools.count()

    def make(strategy, seed, accuracy=0.5, **config):
        run = make_run(f"run-{next(numbers)}", name=strategy, strategy=strategy)
        run.config["run"]["seed"] = seed
        for key, value in config.items():
            run.config["train"] = run.config.get("train", {}) | {key: value}
        run.summary["final"]["accuracy"] = accuracy
        for record in run.rounds:
            record["accuracy"] = accuracy + 0.01 * record["round"]
        return run

    return make


def test_means_and_deviations_are_those_of_scipy(seeded):
    values = [0.5, 0.6, 0.85]
    (panel,) = compare([seeded("fedavg", i, v) for i, v in enumerate(values)]).panels
    (group,) = groups_of(panel.runs)
    assert group.title == "fedavg (n = 3)"
    for round_, mean, spread in group.line("accuracy"):
        at = np.array(values) + 0.01 * round_
        assert (mean, spread) == pytest.approx((stats.tmean(at), stats.tstd(at)))


def test_strategies_and_repeated_seeds_are_groups_of_their_own(seeded):
    runs = [seeded("fedavg", 1), seeded("local_only", 1), seeded("fedavg", 2), seeded("fedavg", 1)]
    (panel,) = compare(runs).panels
    sizes = [group.size for group in groups_of(panel.runs)]
    assert sizes == [2, 1, 1]  # the second fedavg of seed 1 is no third seed


def test_a_key_younger_than_a_run_has_its_default(seeded):
    """What a version that had no such key did, is what the default does."""
    now = seeded("fedavg", 2)
    now.config["data"] = now.config.get("data", {}) | {"evaluation-rows": 0}
    old = seeded("fedavg", 1)
    old.config.get("data", {}).pop("evaluation-rows", None)
    (panel,) = compare([old, now]).panels
    assert [group.size for group in groups_of(panel.runs)] == [2]
    assert "data.evaluation-rows" not in panel.differences


def test_a_round_that_one_seed_lacks_is_not_drawn(seeded):
    short = seeded("fedavg", 2)
    del short.rounds[-1]
    (panel,) = compare([seeded("fedavg", 1), short]).panels
    assert [x for x, _, _ in groups_of(panel.runs)[0].line("accuracy")] == [1, 2]


def test_other_causes_than_the_strategy_are_named(seeded):
    alike = [seeded("fedavg", 1), seeded("local_only", 2)]
    assert more_than_strategy(alike) == []
    other = seeded("local_only", 1, **{"batch-size": 8})
    assert more_than_strategy([*alike, other]) == ["train.batch-size"]
    assert more_than_strategy([alike[1], other]) == []  # then that is what is compared


def test_page_and_terminal_say_how_many_seeds(seeded, tmp_path):
    runs = [seeded("fedavg", 1, 0.5), seeded("fedavg", 2, 0.7), seeded("local_only", 1, 0.6)]
    found = write_comparison(runs, tmp_path)
    page = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    assert "fedavg (n = 2)" in page
    assert "0.6000 ± 0.1414" in page
    out = io.StringIO()
    Console(file=out, width=100).print(comparison_table(found))
    assert "0.6000 ± 0.1414" in out.getvalue()
    assert "n = 2" in out.getvalue()


def test_runs_of_one_seed_have_no_table_over_seeds(seeded, tmp_path):
    write_comparison([seeded("fedavg", 1), seeded("local_only", 1)], tmp_path)
    assert "±" not in (tmp_path / "comparison.html").read_text(encoding="utf-8")


def test_a_seed_that_diverged_is_not_counted_in_a_mean(seeded, tmp_path):
    runs = [seeded("fedavg", 1, 0.5), seeded("fedavg", 2, 0.7), seeded("fedavg", 3)]
    runs[2].summary["final"]["accuracy"] = None
    for record in runs[2].rounds:
        record["accuracy"] = None
    (panel,) = compare(runs).panels
    (group,) = groups_of(panel.runs)
    assert group.score("accuracy") == "0.6000 ± 0.1414 (n = 2)"
    assert "(n" not in group.score("loss")
    write_comparison(runs, tmp_path / "c")
    page = (tmp_path / "c/comparison.html").read_text()
    assert "0.6000 ± 0.1414 (n = 2)" in page
    assert "not in the curves: fedavg (n = 3)" in page


def test_many_runs_have_room_in_the_picture(make_run, tmp_path):
    runs = [make_run(f"r{i}", name=f"strategy-{i}", strategy=f"s{i}", rounds=1) for i in range(25)]
    write_comparison(runs, tmp_path / "c")  # Matplotlib warns where the axes have no room left
    assert (tmp_path / "c/comparison.png").stat().st_size > 20_000
