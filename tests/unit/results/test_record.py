"""Records: exact keys, kinds that sum, nulls, and weighted means against numpy.average."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.results.record import (
    KINDS,
    Bytes,
    ClientRow,
    Measured,
    RunFacts,
    compact_ranks,
    final_scores,
    round_record,
    summary,
    weighted_mean,
)

SUMMARY_KEYS = [
    *("experiment", "strategy", "model", "engine", "seed", "status", "rounds_completed"),
    *("final", "bytes", "seconds", "peak_memory_mb", "round_results"),
]
ROUND_KEYS = {
    *("round", "accuracy", "loss", "train_loss", "time_seconds", "memory_mb"),
    *("communication_mb", "aggregation_error", "by_task", "worst_client_accuracy", "bytes_up"),
    *("bytes_down", "by_kind_up", "by_kind_down", "participants", "lost"),
    *("truncation_error", "compression_error", "effective_rank", "step_loss", "eta", "eta_loss"),
    *("shares", "epsilon"),
}
counts = st.dictionaries(st.sampled_from(KINDS), st.integers(0, 10**12))
traffic = st.builds(Bytes, counts, counts)


def scored(partition, accuracy, n=10, task="a", phase="evaluate", **more):
    return ClientRow(1, partition, task, phase, num_examples=n, accuracy=accuracy, **more)


def test_summary_has_exactly_the_contracts_keys():
    rows = [scored(0, 0.5, loss=1.0)]
    moved = Bytes({"adapter": 3}, {"head": 4})
    record = round_record(1, rows, moved, 2.0)
    final = final_scores([scored(0, 0.6, phase="final", loss=0.9)], rows)
    got = summary(RunFacts("e", "s", "m", "inline", 1), "completed", [record], final, moved, 3, 5.0)
    assert list(got) == SUMMARY_KEYS
    assert set(got["final"]) == {"accuracy", "loss", "worst_client_accuracy", "by_task", "own"}
    assert set(got["final"]["own"]) == {"accuracy", "loss", "worst_client_accuracy", "by_task"}
    for scores in (got["final"]["by_task"]["a"], got["final"]["own"]["by_task"]["a"]):
        assert set(scores) == {"accuracy", "f1", "macro_f1", "mcc", "loss"}
    assert list(got["bytes"]) == ["up", "down", "by_kind"]
    assert tuple(got["bytes"]["by_kind"]) == KINDS
    assert set(got["round_results"][0]) == ROUND_KEYS
    json.dumps(got, allow_nan=False)


@given(st.lists(traffic, max_size=6))
def test_kinds_sum_to_up_and_down_however_bytes_are_added(parts):
    total = sum(parts, Bytes())
    assert sum(total.by_kind.values()) == total.up + total.down
    assert total.up == sum(part.up for part in parts)
    assert total == sum(reversed(parts), Bytes())


@pytest.mark.parametrize("kinds", [{"gold": 1}, {"head": -1}, {"head": 0.5}])
def test_bytes_refuse_what_they_do_not_know(kinds):
    with pytest.raises(ValueError, match=r"kind|whole"):
        Bytes(kinds)


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.integers(1, 1000), st.sampled_from("ab")),
        min_size=1,
        max_size=9,
    )
)
def test_round_means_are_numpys_weighted_averages(drawn):
    rows = [scored(i, y, n, task) for i, (y, n, task) in enumerate(drawn)]
    record = round_record(1, rows, Bytes(), 1.0)
    values, weights, tasks = (np.array(column) for column in zip(*drawn, strict=True))
    assert record.accuracy == pytest.approx(np.average(values, weights=weights))
    for task in set(tasks):
        mine = tasks == task
        want = np.average(values[mine], weights=weights[mine])
        assert record.by_task[task]["accuracy"] == pytest.approx(want)
    assert record.worst_client_accuracy == min(values)


def test_empty_slices_and_lost_clients_leave_the_mean():
    rows = [
        scored(0, 0.5, 10),
        scored(1, None, 0),
        scored(2, 0.1, 90, status="rejected", error="why"),
        scored(3, 0.8, 30),
    ]
    record = round_record(4, rows, Bytes(), 1.0)
    assert record.accuracy == pytest.approx((0.5 * 10 + 0.8 * 30) / 40)
    assert record.worst_client_accuracy == 0.5
    assert record.lost == [2]


def test_a_diverged_client_makes_the_mean_null_and_its_row_says_so():
    rows = [scored(0, 0.5, loss=math.nan), scored(1, 0.7, loss=1.0)]
    assert weighted_mean(rows, "loss") is None
    assert weighted_mean(rows, "accuracy") == pytest.approx(0.6)
    written = rows[0].to_dict()
    assert written["loss"] is None
    assert "loss" in written["error"]


def test_round_record_takes_training_peaks_and_participants_from_the_rows():
    rows = [
        ClientRow(2, 0, "a", "train", num_examples=1, loss=3.0, peak_memory_mb=700.0),
        ClientRow(2, 1, "b", "train", num_examples=3, loss=1.0, peak_memory_mb=900.0),
        ClientRow(2, 2, "b", "train", status="lost", error="no answer"),
    ]
    moved = Bytes({"head": 1_500_000}, {"head": 500_000})
    record = round_record(2, rows, moved, 4.0, Measured(aggregation_error=math.inf))
    assert record.train_loss == pytest.approx(1.5)
    assert record.memory_mb == 900.0
    assert record.communication_mb == 2.0
    assert (record.participants, record.lost) == ([0, 1], [2])
    assert record.accuracy is None
    assert record.worst_client_accuracy is None
    assert record.aggregation_error is None
    assert record.truncation_error is record.compression_error is record.effective_rank is None


def test_round_record_takes_the_merge_as_it_was_measured_and_nulls_what_is_not_finite():
    measured = Measured(0.25, {"2": 0.5, "4": math.nan}, {"up": 0.1, "down": None}, math.inf)
    got = round_record(1, [], Bytes(), 1.0, measured).to_dict()
    assert got["aggregation_error"] == 0.25
    assert got["truncation_error"] == {"2": 0.5, "4": None}
    assert got["compression_error"] == {"up": 0.1, "down": None}
    assert got["effective_rank"] is None
    json.dumps(got, allow_nan=False)


def test_final_is_the_plain_mean_of_clients_then_of_tasks():
    final = [
        scored(0, 0.9, 100, "a", "final", f1=0.8),
        scored(1, 0.7, 100, "a", "final", f1=0.6),
        scored(2, 0.4, 999, "b", "final"),
    ]
    own = [scored(0, 1.0, 30, "a"), scored(1, 0.6, 10, "a"), scored(2, None, 0, "b")]
    got = final_scores(final, own)
    assert got["by_task"]["a"]["accuracy"] == pytest.approx(0.8)
    assert got["by_task"]["a"]["f1"] == pytest.approx(0.7)
    assert got["by_task"]["b"]["f1"] is None
    assert got["accuracy"] == pytest.approx((0.8 + 0.4) / 2)
    assert got["worst_client_accuracy"] == 0.4
    assert got["own"]["by_task"]["a"]["accuracy"] == pytest.approx(0.9)
    assert got["own"]["by_task"]["b"]["accuracy"] is None
    assert got["own"]["accuracy"] == pytest.approx(0.9)
    assert got["own"]["worst_client_accuracy"] == 0.6


def test_a_task_without_a_score_makes_the_final_mean_null():
    rows = [scored(0, 0.9, phase="final"), scored(1, None, task="b", phase="final", status="lost")]
    got = final_scores(rows, [])
    assert got["accuracy"] is None
    assert got["by_task"]["a"]["accuracy"] == 0.9


def test_a_run_that_did_not_get_there_has_nulls_not_zeros():
    got = final_scores([], [])
    assert got["accuracy"] is got["loss"] is got["worst_client_accuracy"] is None
    assert got["by_task"] == got["own"]["by_task"] == {}


def test_ranks_are_one_number_or_compact_json():
    assert compact_ranks({"x": 4, "y": 4}) == "4"
    assert json.loads(compact_ranks({"x": 4, "y": 8})) == {"x": 4, "y": 8}
    assert " " not in compact_ranks({"x": 4, "y": 8})


@pytest.mark.parametrize("bad", [{"phase": "dance"}, {"phase": "train", "status": "gone"}])
def test_rows_refuse_unknown_words(bad):
    with pytest.raises(ValueError, match="none of"):
        ClientRow(1, 0, "a", **bad)
