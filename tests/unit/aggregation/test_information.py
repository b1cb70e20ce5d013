"""What rows of a label mix tell, against torch's Hessian and the variance of class means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.aggregation.information import informative_rows
from atlas_flwr.errors import AggregationError

COUNTS = st.lists(st.integers(0, 500), min_size=2, max_size=6).filter(sum)


def information(counts: list[float]) -> float:
    """The trace of the loss's Hessian in one row of logits, where they know the mix alone."""
    rows = torch.tensor(counts, dtype=torch.float64)
    logits = torch.log(rows / rows.sum())

    def loss(z: torch.Tensor) -> torch.Tensor:
        return (rows * -F.log_softmax(z, 0)).sum()

    return float(torch.autograd.functional.hessian(loss, logits).diagonal().sum())


@given(COUNTS)
def test_it_is_the_fisher_information_over_that_of_a_row_of_even_classes(counts: list[int]) -> None:
    filled = [count + 0.5 for count in counts]
    even = information([1.0 / len(counts)] * len(counts))
    assert informative_rows(counts) == pytest.approx(information(filled) / even)


def test_of_two_classes_it_is_what_a_difference_of_means_is_worth() -> None:
    """Its variance is that of as many rows, half of each class."""
    rng, draws = np.random.default_rng(0), 20_000
    apart = [rng.standard_normal((draws, n)).mean(axis=1) for n in (12, 108)]
    worth = 4 / np.var(apart[1] - apart[0])
    assert informative_rows([12, 108]) == pytest.approx(worth, rel=0.06)


@given(COUNTS, st.randoms())
def test_no_mix_tells_more_than_even_classes_and_none_nothing(
    counts: list[int], random: object
) -> None:
    found = informative_rows(counts)
    assert 0 < found <= sum(counts) + len(counts) / 2 + 1e-9
    random.shuffle(counts)  # type: ignore[attr-defined]
    assert informative_rows(counts) == pytest.approx(found)
    assert informative_rows([40] * len(counts)) == pytest.approx(40.5 * len(counts))
    assert informative_rows([300, 0]) < 3


@pytest.mark.parametrize("counts", [[], [3], [3, -1], [[1, 2]]])
def test_what_are_no_counts_of_classes_is_refused(counts: list[int]) -> None:
    with pytest.raises(AggregationError, match="two or more counts"):
        informative_rows(counts)
