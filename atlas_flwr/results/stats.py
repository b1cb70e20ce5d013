"""Paired statistics over seeds: differences, intervals, exact tests, corrections, effect sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats  # type: ignore[import-untyped]

# Of the largest difference: what float sums leave of differences that are the same.
SAME = 1e-12


@dataclass(frozen=True)
class Paired:
    """What pairs of numbers say about two methods; None where the pairs can't say it.

    Attributes:
        n: Pairs.
        dropped: Keys that only one of the two has.
        mean: Mean difference, first minus second; None without a pair.
        low: Lower end of the mean's confidence interval, and ``high`` its upper end; None below
            two pairs.
        t_p: Two-sided p of the paired t-test; None below two pairs, and where all differences are
            the same number, for then t is 0/0 or infinite.
        wilcoxon_p: Two-sided exact p of the signed-rank test; None below two pairs, 1 where all
            differences are zero.
        d_z: Mean difference over the differences' standard deviation (Cohen); None where the
            latter is zero.
        g_z: ``d_z`` without its bias in small samples (Hedges); None below three pairs.
        rank_biserial: Matched-pairs rank-biserial correlation (Kerby 2014), from -1 to 1; None
            where all differences are zero.
        wins: Pairs in which the first is larger; ``losses`` and ``ties`` the others.
        same: Whether there are two pairs or more, and all differences are the same number.
    """

    n: int
    dropped: int
    mean: float | None
    low: float | None
    high: float | None
    t_p: float | None
    wilcoxon_p: float | None
    d_z: float | None
    g_z: float | None
    rank_biserial: float | None
    wins: int
    losses: int
    ties: int
    same: bool


def paired(
    first: Mapping[Any, float], second: Mapping[Any, float], confidence: float = 0.95
) -> Paired:
    """Compare two methods on what both were run on, such as ``(setting, seed)``.

    Keys that only one of them has are dropped, and counted. Differences that are all the same
    number have an interval of no width and no t-test.

    Args:
        first: The one method's numbers; finite.
        second: The other's.
        confidence: Of the interval, between 0 and 1.

    Raises:
        ValueError: A number is not finite.
    """
    keys = [key for key in first if key in second]
    d = np.array([first[key] - second[key] for key in keys], dtype=np.float64)
    if not np.isfinite(d).all():
        raise ValueError("paired: a number is not finite")
    n, dropped = len(d), len(first.keys() ^ second.keys())
    # Two numbers that differ by rounding are the same.
    scale = max((max(abs(first[k]), abs(second[k])) for k in keys), default=0.0)
    d[np.abs(d) <= SAME * scale] = 0.0
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    counts = (wins, losses, n - wins - losses)
    if n < 2:
        mean = float(d[0]) if n else None
        return Paired(n, dropped, mean, None, None, None, None, None, None, None, *counts, False)
    mean, sd = float(d.mean()), float(d.std(ddof=1))
    same = sd <= SAME * scale
    half = 0.0 if same else float(stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    d_z = None if same else mean / sd
    t_p = None if same else float(2 * stats.t.sf(abs(mean) / (sd / math.sqrt(n)), n - 1))
    return Paired(
        n=n,
        dropped=dropped,
        mean=mean,
        low=mean - half,
        high=mean + half,
        t_p=t_p,
        wilcoxon_p=signed_rank_p(d.tolist()),
        d_z=d_z,
        g_z=None if d_z is None or n < 3 else d_z * hedges_factor(n - 1),
        rank_biserial=rank_biserial(d.tolist()),
        wins=wins,
        losses=losses,
        ties=counts[2],
        same=same,
    )


def _signed_ranks(differences: Sequence[float]) -> tuple[list[int], int]:
    """Return twice the mid-ranks of the non-zero differences' sizes, and the sum of positive ones.

    Doubled, mid-ranks of ties are whole numbers.
    """
    there = [d for d in differences if d != 0]
    # Sizes that differ by rounding are ties.
    sizes = np.array([float(f"{abs(d):.12g}") for d in there])
    doubled = [round(2 * rank) for rank in stats.rankdata(sizes)] if there else []
    return doubled, sum(rank for rank, d in zip(doubled, there, strict=True) if d > 0)


def signed_rank_p(differences: Sequence[float]) -> float:
    """Return the two-sided exact p of Wilcoxon's signed-rank test.

    Zeros are left out (Wilcoxon's own way), ties have mid-ranks, and the distribution is counted
    over all 2ⁿ signs of the ranks at hand, so it is exact with ties too. Its least value is 2⁻ⁿ⁺¹:
    below six pairs it can't be less than 0.05. Without a difference that is not zero it is 1.

    Args:
        differences: Finite numbers.
    """
    ranks, positive = _signed_ranks(differences)
    ways = np.ones(1)
    for rank in ranks:  # signs whose positive ranks sum to each number
        more = np.zeros(len(ways) + rank)
        more[: len(ways)] += ways
        more[rank:] += ways
        ways = more
    low = min(positive, sum(ranks) - positive)
    return float(min(1.0, 2 * ways[: low + 1].sum() / ways.sum()))


def rank_biserial(differences: Sequence[float]) -> float | None:
    """Return the share of signed-rank sum that is positive minus the negative one (Kerby 2014).

    Args:
        differences: Finite numbers; zeros are left out. Without any other: None.
    """
    ranks, positive = _signed_ranks(differences)
    total = sum(ranks)
    return (2 * positive - total) / total if total else None


def hedges_factor(freedom: int) -> float:
    """Return what takes the small-sample bias out of a standardised mean difference.

    ``J = Γ(f/2) / (√(f/2) Γ((f-1)/2))`` for ``f`` degrees of freedom (Hedges 1981, eq. 6e); for
    one degree of freedom it is 0, for there is no unbiased estimate.
    """
    if freedom < 2:
        return 0.0
    half = freedom / 2
    return math.exp(math.lgamma(half) - math.lgamma(half - 0.5)) / math.sqrt(half)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for a family of tests by Holm's step-down method (Holm 1979).

    The k-th smallest of m is multiplied by ``m - k + 1``, never below the one before it, at most
    1. Entries without a test (None) are no part of the family.

    Args:
        p_values: Raw p values.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = largest
    return adjusted
