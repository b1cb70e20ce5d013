from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.training.batches import bucketed, by_length

LENGTHS = st.lists(st.integers(1, 64), max_size=300).map(lambda x: np.array(x, dtype=np.int32))


@given(lengths=LENGTHS, size=st.integers(1, 17), mega=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_row_occurs_once_in_batches_of_the_size(lengths, size, mega, seed):
    batches = bucketed(lengths, size, np.random.default_rng(seed), mega)
    rows = np.concatenate([*batches, np.empty(0, np.int64)])
    assert sorted(rows) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= size for batch in batches)
    # Every run but the last is whole, so at most one batch of the epoch is short.
    assert sum(len(batch) < size for batch in batches) <= 1
    assert len(batches) == -(-len(lengths) // size)


@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_same_generator_same_batches(lengths, seed):
    one, two = (bucketed(lengths, 4, np.random.default_rng(seed)) for _ in range(2))
    assert len(one) == len(two)
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def padded(lengths, batches) -> int:
    return sum(len(batch) * int(lengths[batch].max()) for batch in batches)


def test_buckets_pad_less_than_random_batches_and_no_less_than_the_sort():
    lengths = np.random.default_rng(0).integers(4, 100, 2000).astype(np.int32)
    rng = np.random.default_rng(1)
    random = padded(lengths, bucketed(lengths, 16, rng, mega=1))
    buckets = padded(lengths, bucketed(lengths, 16, rng))
    best = padded(lengths, by_length(lengths, 16))
    assert best <= buckets < 0.65 * random
    assert best >= lengths.sum()


def test_order_of_batches_is_not_the_order_of_lengths():
    lengths = np.arange(1, 401, dtype=np.int32)
    firsts = [int(lengths[b].max()) for b in bucketed(lengths, 8, np.random.default_rng(0))]
    assert firsts != sorted(firsts)
    assert firsts != sorted(firsts, reverse=True)


def test_epochs_of_one_generator_differ():
    lengths = np.full(64, 5, dtype=np.int32)
    rng = np.random.default_rng(0)
    one, two = bucketed(lengths, 8, rng), bucketed(lengths, 8, rng)
    assert any(not np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@given(lengths=LENGTHS, size=st.integers(1, 17))
def test_evaluation_takes_every_row_once_longest_first(lengths, size):
    batches = by_length(lengths, size)
    rows = np.concatenate([*batches, np.empty(0, np.int64)]).astype(np.int64)
    assert sorted(rows) == list(range(len(lengths)))
    assert list(lengths[rows]) == sorted(lengths, reverse=True)
