import numpy as np
import pyarrow as pa
import pytest

from atlas_flwr.config.sections import DataSection
from atlas_flwr.data.shards import deal_task
from atlas_flwr.data.tokenised import TokenisedTask, TokenTable
from atlas_flwr.errors import DataError


def table(labels, distinct=None):
    rows = [[1, 2 + i % (distinct or len(labels))] for i in range(len(labels))]
    ids = pa.array(rows, type=pa.large_list(pa.int32()))
    return TokenTable(
        pa.RecordBatch.from_pydict({"input_ids": ids, "labels": pa.array(labels, pa.int64())})
    )


TASK = TokenisedTask(table([0, 0, 1, 1, 1] * 60), table([0, 1] * 50), 2, ("no", "yes"))


def data(**keys):
    return DataSection(tasks=("t",), **{"samples_per_client": 40, **keys})


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "pathological", "quantity"])
def test_shards_are_disjoint_and_keyed_by_partition(kind):
    shards = deal_task(TASK, (3, 4, 5), data(partitioner=kind), 0, "t")
    assert list(shards) == [3, 4, 5]
    for name in ("train", "evaluation"):
        rows = np.concatenate([getattr(s, name) for s in shards.values()])
        assert len(np.unique(rows)) == len(rows)
    assert sum(len(s.train) for s in shards.values()) == 120
    scored = sum(len(s.evaluation) for s in shards.values())
    assert scored < 100 if kind == "dirichlet" else scored == 100  # skewed, some would be too many
    for shard in shards.values():
        assert shard.evaluation_table == "validation"
        np.testing.assert_array_equal(shard.full_evaluation, np.arange(100))
        np.testing.assert_allclose(shard.mix.sum(), 1)


def test_same_arguments_same_shards_and_arrays_are_read_only():
    one, two = (deal_task(TASK, (0, 1), data(), 0, "t") for _ in range(2))
    assert one is not two
    assert one[0] is two[0]
    for array in (one[0].train, one[0].evaluation, one[0].mix, one[0].full_evaluation):
        assert not array.flags.writeable


def test_seed_and_task_name_change_the_rows():
    base = deal_task(TASK, (0, 1), data(), 0, "t")[0]
    for seed, name in ((1, "t"), (0, "u")):
        other = deal_task(TASK, (0, 1), data(), seed, name)[0]
        assert base.train.tolist() != other.train.tolist()
        assert base.evaluation.tolist() != other.evaluation.tolist()


def test_more_samples_change_neither_mix_nor_evaluation_rows():
    few, many = (
        deal_task(
            TASK, (0, 1), data(partitioner="dirichlet", alpha=5, samples_per_client=n), 0, "t"
        )
        for n in (20, 60)
    )
    for p in (0, 1):
        np.testing.assert_array_equal(few[p].mix, many[p].mix)
        np.testing.assert_array_equal(few[p].evaluation, many[p].evaluation)


def test_holdout_evaluates_on_training_rows_that_nobody_trains_on():
    shards = deal_task(TASK, (0, 1), data(holdout=0.2), 0, "t")
    full = shards[0].full_evaluation
    assert len(full) == 60
    assert np.bincount(TASK.train.labels[full]).tolist() == [24, 36]
    assert {s.evaluation_table for s in shards.values()} == {"train"}
    np.testing.assert_array_equal(
        np.sort(np.concatenate([s.evaluation for s in shards.values()])), full
    )
    for shard in shards.values():
        assert not set(shard.train) & set(full)


def test_no_copy_of_a_holdout_row_is_trained_on():
    twice = TokenisedTask(table([0, 1] * 100, distinct=100), table([0, 1]), 2, ("no", "yes"))
    shards = deal_task(twice, (0, 1), data(holdout=0.1), 0, "t")
    held = {twice.train.key(row) for row in shards[0].full_evaluation}
    for shard in shards.values():
        assert held.isdisjoint(twice.train.key(row) for row in shard.train)


def test_holdout_counts_against_the_training_rows():
    assert deal_task(TASK, (0, 1), data(samples_per_client=150), 0, "t")
    with pytest.raises(DataError, match=r"^data.samples-per-client: 2 clients need 300 .* 'bee'"):
        deal_task(TASK, (0, 1), data(samples_per_client=150, holdout=0.1), 0, "bee")


def test_a_holdout_of_no_row_is_refused():
    task = TokenisedTask(table([0, 1]), table([0, 1]), 2, ("no", "yes"))
    with pytest.raises(DataError, match=r"^data.holdout: 0.1 of the 2 training rows of task 't'"):
        deal_task(task, (0,), data(holdout=0.1, samples_per_client=1), 0, "t")


def test_impossible_pathological_names_the_task():
    keys = {"partitioner": "pathological", "num_classes_per_partition": 3}
    with pytest.raises(DataError, match=r"^data.num-classes-per-partition: 3 .*\(task 't'\)"):
        deal_task(TASK, (0, 1), data(**keys), 0, "t")


@pytest.mark.parametrize("holdout", [0.0, 0.5])
def test_evaluation_rows_are_at_most_so_many_and_keep_the_classes_shares(holdout):
    whole, few = (
        deal_task(TASK, (0, 1), data(holdout=holdout, evaluation_rows=n), 0, "t") for n in (0, 25)
    )
    labels = (TASK.train if holdout else TASK.validation).labels
    rows = few[0].full_evaluation
    assert len(rows) == 25
    assert set(rows) < set(whole[0].full_evaluation)
    assert np.bincount(labels[rows]).tolist() == ([10, 15] if holdout else [13, 12])
    assert sorted(r for s in few.values() for r in s.evaluation) == rows.tolist()
    for p in (0, 1):
        np.testing.assert_array_equal(few[p].train, whole[p].train)


def test_more_evaluation_rows_than_there_are_mean_all():
    whole, same = (deal_task(TASK, (0, 1), data(evaluation_rows=n), 0, "t") for n in (0, 100))
    np.testing.assert_array_equal(whole[0].evaluation, same[0].evaluation)
