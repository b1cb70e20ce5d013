"""Paired statistics against SciPy, Holm's correction against statsmodels' numbers and its laws."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from atlas_flwr.results.stats import hedges_factor, holm, paired, rank_biserial, signed_rank_p

numbers = st.lists(st.floats(-1, 1), min_size=3, max_size=12)
ps = st.lists(st.none() | st.floats(0, 1), max_size=12)


def two(differences: list[float]) -> tuple[dict[int, float], dict[int, float]]:
    """Give two methods that differ by these numbers."""
    return dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0)


@given(numbers)
def test_the_mean_its_interval_and_t_are_scipy_s(differences: list[float]) -> None:
    assume(np.std(differences) > 1e-6)
    found = paired(*two(differences))
    there = stats.ttest_rel(differences, np.zeros(len(differences)))
    interval = there.confidence_interval(0.95)
    assert found.t_p == pytest.approx(there.pvalue, rel=1e-9, abs=1e-15)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=1e-12)
    assert found.mean == pytest.approx(np.mean(differences), abs=1e-12)
    d_z = np.mean(differences) / np.std(differences, ddof=1)
    assert found.d_z == pytest.approx(d_z, abs=1e-9)


@given(st.permutations(range(1, 9)), st.lists(st.booleans(), min_size=8, max_size=8))
def test_the_signed_rank_p_is_scipy_s_exact_one(sizes: list[int], signs: list[bool]) -> None:
    differences = [size if sign else -size for size, sign in zip(sizes, signs, strict=True)]
    there = stats.wilcoxon(differences, method="exact").pvalue
    assert signed_rank_p(differences) == pytest.approx(there, abs=1e-12)


@given(st.lists(st.sampled_from([-2, -1, 0, 1, 2, 3]), min_size=2, max_size=8))
def test_with_ties_it_is_the_share_of_all_signs(differences: list[int]) -> None:
    there = np.array([d for d in differences if d])
    ranks = stats.rankdata(np.abs(there)) if len(there) else np.array([])
    total = ranks.sum() / 2
    ours = abs(ranks[there > 0].sum() - total) if len(there) else 0.0
    all_signs = [
        abs(sum(r for r, s in zip(ranks, signs, strict=True) if s) - total)
        for signs in product((0, 1), repeat=len(ranks))
    ]
    share = np.mean([far >= ours - 1e-9 for far in all_signs])
    assert signed_rank_p([float(d) for d in differences]) == pytest.approx(share)


def test_few_seeds_can_t_have_a_small_signed_rank_p() -> None:
    for n in (3, 5, 6):
        assert signed_rank_p([0.1 * (i + 1) for i in range(n)]) == pytest.approx(2 ** (1 - n))


def test_one_pair_has_no_test() -> None:
    found = paired({1: 0.7}, {1: 0.6, 2: 0.5})
    assert (found.n, found.dropped, found.wins) == (1, 1, 1)
    assert found.mean == pytest.approx(0.1)
    gone = (found.low, found.high, found.t_p, found.wilcoxon_p, found.d_z, found.g_z)
    assert gone == (None,) * 6
    assert paired({}, {1: 0.5}).mean is None


def test_two_pairs_have_no_corrected_effect() -> None:
    found = paired({1: 0.7, 2: 0.8}, {1: 0.6, 2: 0.5})
    assert found.g_z is None
    assert found.d_z is not None


@pytest.mark.parametrize("by", [0.0, 0.1, 1 / 3])
def test_the_same_difference_everywhere_has_no_t(by: float) -> None:
    base = {i: 0.1 * i for i in range(6)}
    found = paired({i: v + by for i, v in base.items()}, base)
    assert found.same
    assert (found.t_p, found.d_z, found.g_z) == (None, None, None)
    assert found.low == found.high == pytest.approx(by)
    assert found.wilcoxon_p == pytest.approx(1.0 if not by else 2 / 64)
    assert found.rank_biserial == (None if not by else 1.0)
    assert (found.wins, found.ties) == ((0, 6) if not by else (6, 0))


@given(numbers)
def test_turned_round_only_signs_change(differences: list[float]) -> None:
    first, second = two(differences)
    here, there = paired(first, second), paired(second, first)
    assert here.mean == pytest.approx(-(there.mean or 0.0), abs=1e-12)
    assert (here.wins, here.losses, here.ties) == (there.losses, there.wins, there.ties)
    assert here.t_p == pytest.approx(there.t_p)
    assert here.wilcoxon_p == there.wilcoxon_p
    assert here.wins + here.losses + here.ties == here.n


def test_a_number_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        paired({1: math.nan}, {1: 0.5})


def test_rank_biserial_is_kerby_s_example() -> None:
    # Five pairs, the ranks of the two negative ones are 1 and 2: 12/15 - 3/15.
    assert rank_biserial([-1.0, -2.0, 3.0, 4.0, 5.0]) == pytest.approx(9 / 15)


def test_hedges_factor_is_the_known_one() -> None:
    # Borenstein et al. 2009, eq. 4.22, is good to a percent: 1 - 3 / (4 f - 1).
    for f in range(3, 40):
        assert hedges_factor(f) == pytest.approx(1 - 3 / (4 * f - 1), rel=0.01)
    assert hedges_factor(2) == pytest.approx(math.gamma(1) / math.gamma(0.5))


def test_holm_is_statsmodels() -> None:
    # statsmodels 0.15.0 multipletests(p, method="holm"), and R's p.adjust.
    raw = [0.01, 0.02, 0.03, 0.04, 0.05]
    assert holm(raw) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    raw = [0.03, 0.001, 0.8, 0.012, 0.5, 0.04]
    assert holm(raw) == pytest.approx([0.12, 0.006, 1.0, 0.06, 1.0, 0.12])


@given(ps)
def test_holm_keeps_order_never_lowers_and_ends_at_one(raw: list[float | None]) -> None:
    found = holm(raw)
    assert [p is None for p in found] == [p is None for p in raw]
    pairs = [(p, q) for p, q in zip(raw, found, strict=True) if p is not None and q is not None]
    assert all(p <= q <= 1 for p, q in pairs)
    ordered = [q for _, q in sorted(pairs)]
    assert ordered == sorted(ordered)


def test_entries_without_a_test_are_no_part_of_the_family() -> None:
    assert holm([None, 0.02, None]) == [None, 0.02, None]
    assert holm([]) == []
