"""How a task's rows are dealt to its clients: label mixes, sizes, and the rows themselves.

Names and arguments are those of flwr-datasets' partitioners; what differs is that the *mix* is
drawn first and rows follow from it, so that the number of rows does not change who has what.
A mix is a matrix ``pi`` of shape ``(K, C)``: row ``k`` is client ``k``'s share of each class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.errors import DataError

Partitioner = Literal["iid", "dirichlet", "pathological", "quantity"]
Indices = NDArray[np.int64]
Mixes = NDArray[np.float64]

_ROUNDING = 1e-9  # of a row: what floating point may add before a count is rounded up


def draw_mixes(
    partitioner: Partitioner,
    prior: NDArray[np.float64],
    rngs: Sequence[np.random.Generator],
    *,
    alpha: float,
    num_classes_per_partition: int,
) -> Mixes:
    """Return each client's label mix, shape ``(K, C)``, rows summing to 1.

    * ``iid``, ``quantity``: the task's own mix.
    * ``dirichlet``: ``pi_k ~ Dir(alpha · C · prior)``: Hsu et al. 2019 (arXiv:1909.06335), where
      the mix tends to the prior as alpha grows, with alpha counted per class as flwr-datasets
      does; for balanced classes it is flwr-datasets' symmetric ``Dir(alpha)`` over the labels.
    * ``pathological``: each client holds ``num_classes_per_partition`` classes, the least used
      first, ties by lot, so that two classes' holders differ by at most one; a class is shared
      equally by its holders, hence ``pi_kc ∝ prior_c / holders_c`` (McMahan et al. 2017).

    Args:
        partitioner: Which of the four.
        prior: Share of each class in the training rows, shape ``(C,)``; a class without rows
            stays out of every mix.
        rngs: One generator a client; for ``dirichlet`` a client's mix depends on its own alone.
        alpha: Concentration of ``dirichlet``.
        num_classes_per_partition: Classes a ``pathological`` client holds.

    Raises:
        DataError: More classes a client than there are.
    """
    if partitioner == "dirichlet":
        return _dirichlet(prior, rngs, alpha)
    if partitioner == "pathological":
        return _pathological(prior, rngs, num_classes_per_partition)
    return np.tile(prior / prior.sum(), (len(rngs), 1))


def _dirichlet(
    prior: NDArray[np.float64], rngs: Sequence[np.random.Generator], alpha: float
) -> Mixes:
    present = np.flatnonzero(prior)
    mixes = np.zeros((len(rngs), len(prior)))
    concentration = alpha * len(present) * prior[present] / prior.sum()
    for row, rng in zip(mixes, rngs, strict=True):
        row[present] = rng.dirichlet(concentration)
    return mixes


def _pathological(
    prior: NDArray[np.float64], rngs: Sequence[np.random.Generator], per_client: int
) -> Mixes:
    present = np.flatnonzero(prior)
    if per_client > len(present):
        raise DataError(
            f"data.num-classes-per-partition: {per_client} classes a client, but the training rows "
            f"have {len(present)}; use {len(present)} or fewer"
        )
    holders = np.zeros(len(prior), dtype=np.int64)
    held = np.zeros((len(rngs), len(prior)), dtype=bool)
    for row, rng in zip(held, rngs, strict=True):
        lot = rng.permutation(present)
        chosen = lot[np.argsort(holders[lot], kind="stable")[:per_client]]
        row[chosen] = True
        holders[chosen] += 1
    weights = np.where(held, prior / np.maximum(holders, 1), 0.0)
    mixes: Mixes = weights / weights.sum(axis=1, keepdims=True)
    return mixes


def draw_sizes(
    partitioner: Partitioner,
    samples_per_client: int,
    partitions: Sequence[int],
    rng: np.random.Generator,
    *,
    alpha: float,
    min_partition_size: int,
) -> Indices:
    """Return each client's number of training rows, shape ``(K,)``.

    ``quantity``: ``K · samples_per_client`` rows in all; every client has ``min_partition_size``
    and the rest is shared ``~ Dir(alpha)``. Otherwise each has ``samples_per_client``.

    Raises:
        DataError: The smallest size is above the mean one, or a partition, named, is empty.
    """
    clients = len(partitions)
    sizes = np.full(clients, samples_per_client, dtype=np.int64)
    if partitioner == "quantity":
        spare = clients * (samples_per_client - min_partition_size)
        if spare < 0:
            raise DataError(
                f"data.min-partition-size: {min_partition_size} is above data.samples-per-client "
                f"({samples_per_client}), the mean size; lower it"
            )
        shares = rng.dirichlet(np.full(clients, alpha))
        sizes = min_partition_size + largest_remainder(shares, spare)
    for partition, size in zip(partitions, sizes, strict=True):
        if size < 1:
            raise DataError(
                f"data.min-partition-size: {min_partition_size} leaves partition {partition} "
                "without training rows; use 1 or more"
            )
    return sizes


def deal_training(
    labels: Indices,
    mixes: Mixes,
    sizes: Indices,
    rng: np.random.Generator,
    *,
    every_class: bool = False,
) -> tuple[list[Indices], Mixes]:
    """Deal disjoint training rows, ``sizes[k]`` at mix ``k`` by largest remainder.

    Where clients want more of a class than there is, all are cut in proportion; gaps are filled
    from the other classes of a client's mix, then from any. A client that was cut gets the mix
    it realised; the others keep theirs exactly.

    Args:
        labels: Class of each training row, shape ``(n,)``.
        mixes: Wanted mixes, shape ``(K, C)``.
        sizes: Rows of each client, shape ``(K,)``.
        rng: Chooses which rows of a class a client gets.
        every_class: No class of the mix is rounded to no row, if the size allows.

    Returns:
        Row numbers of each client, ascending, and the realised mixes.

    Raises:
        DataError: Fewer rows than the sizes ask for.
    """
    clients, total = len(sizes), int(sizes.sum())
    if total > len(labels):
        raise DataError(
            f"data.samples-per-client: {clients} clients need {total} training rows of the task, "
            f"which has {len(labels)}; use at most {len(labels) // clients} or fewer clients"
        )
    by_class = [np.flatnonzero(labels == c) for c in range(mixes.shape[1])]
    want = np.array([largest_remainder(m, int(s)) for m, s in zip(mixes, sizes, strict=True)])
    want = _no_class_lost(want, mixes) if every_class else want
    got = _within_supply(want, mixes, np.array([len(rows) for rows in by_class]))
    cut = (got != want).any(axis=1)
    realised = np.where(cut[:, None], got / sizes[:, None], mixes)
    return _deal(by_class, got, rng), realised


def deal_evaluation(
    labels: Indices, mixes: Mixes, prior: NDArray[np.float64], rng: np.random.Generator
) -> list[Indices]:
    """Deal evaluation rows to the clients, disjoint, each its own label mix.

    Each class is dealt in proportion to the mixes; where clients ask together for more of a class
    than its share, what else they were dealt is cut to it, for else a client that has 9 % of a
    class that the others have less of would be scored on all of it. A slice is thus shifted from
    the evaluation set as the client's training rows are from the training set: with one prior in
    both it has the client's mix, to a row of each class. Clients whose mix is the prior have every
    row once; so has any deal in which the mixes average to the prior.

    Args:
        labels: Class of each row of the evaluation set, shape ``(n,)``.
        mixes: Realised mixes, shape ``(K, C)``.
        prior: Shares of the classes in the training set, shape ``(C,)``; above 0 in every mix.
        rng: Chooses which rows of a class a client gets.

    Returns:
        Row numbers of each client, ascending; a slice may be empty.
    """
    by_class = [np.flatnonzero(labels == c) for c in range(mixes.shape[1])]
    counts = np.zeros(mixes.shape, dtype=np.int64)
    for c, rows in enumerate(by_class):
        if mixes[:, c].any():
            counts[:, c] = largest_remainder(mixes[:, c], len(rows))
    asked = mixes.sum(axis=0) / np.where(prior > 0, prior, 1.0)
    most = np.where(mixes > 0, asked, 0.0).max(axis=1, keepdims=True)
    share = np.divide(asked, most, where=most > 0, out=np.zeros_like(mixes))
    kept = np.ceil(counts * np.minimum(share, 1.0) - _ROUNDING)
    return _deal(by_class, kept.astype(np.int64), rng)


def stratified_part(labels: Indices, share: float, rng: np.random.Generator) -> Indices:
    """Return ascending row numbers of about ``share`` of the rows of each class.

    At least one row of each class is inside and one outside; a class of a single row stays
    outside.
    """
    inside = [np.empty(0, dtype=np.int64)]
    for c in np.unique(labels):
        rows = np.flatnonzero(labels == c)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        inside.append(rng.permutation(rows)[:count])
    return np.sort(np.concatenate(inside))


def largest_remainder(weights: NDArray[np.float64], total: int) -> Indices:
    """Return whole numbers that sum to ``total``, nearest to it in proportion to the weights.

    Hamilton's method: round down, then one more where the most was lost, the first on a tie; a
    weight of zero gets nothing.

    >>> largest_remainder(np.array([0.5, 0.3, 0.2]), 4)
    array([2, 1, 1])
    """
    quotas = weights / weights.sum() * total
    counts: Indices = np.floor(quotas).astype(np.int64)
    loss = np.where(weights > 0, quotas - counts, -1.0)
    counts[np.argsort(-loss, kind="stable")[: total - int(counts.sum())]] += 1
    return counts


# ------------------------------------------------------------------ private


def _no_class_lost(want: Indices, mixes: Mixes) -> Indices:
    """Move single rows from a client's largest class to classes of its mix rounded to none."""
    moved = want.copy()
    for row, mix in zip(moved, mixes, strict=True):
        for c in np.flatnonzero((mix > 0) & (row == 0)):
            if row.max() > 1:
                row[row.argmax()] -= 1
                row[c] = 1
    return moved


def _within_supply(want: Indices, mixes: Mixes, supply: Indices) -> Indices:
    """Cut wishes to the supply and fill the gaps; see ``deal_training``."""
    got = _cut(want, supply)
    anything = np.tile(supply.astype(np.float64), (len(want), 1))
    for weights in (mixes, anything):
        _fill(got, want.sum(axis=1), weights, supply)
    return got


def _fill(got: Indices, sizes: Indices, weights: Mixes, supply: Indices) -> None:
    """Fill what clients lack, in place, in proportion to their weights of the classes left.

    Each pass fills every gap it can or exhausts a class, hence at most ``C + 1`` passes.
    """
    while True:
        left = supply - got.sum(axis=0)
        gaps = sizes - got.sum(axis=1)
        usable = np.where(left > 0, weights, 0.0)
        needy = np.flatnonzero((gaps > 0) & (usable.sum(axis=1) > 0))
        if not needy.size:
            return
        ask = np.zeros_like(got)
        for k in needy:
            ask[k] = largest_remainder(usable[k], int(gaps[k]))
        got += _cut(ask, left)


def _cut(ask: Indices, supply: Indices) -> Indices:
    """Cut each class's wishes in proportion where they exceed its supply."""
    got = ask.copy()
    for c in np.flatnonzero(ask.sum(axis=0) > supply):
        got[:, c] = largest_remainder(ask[:, c].astype(np.float64), int(supply[c]))
    return got


def _deal(by_class: Sequence[Indices], counts: Indices, rng: np.random.Generator) -> list[Indices]:
    """Give client k ``counts[k, c]`` of class c's rows, in a random order of the rows."""
    hands: list[list[Indices]] = [[] for _ in counts]
    for c, rows in enumerate(by_class):
        ends = np.cumsum(counts[:, c])
        for hand, part in zip(hands, np.split(rng.permutation(rows), ends), strict=False):
            hand.append(part)
    return [np.sort(np.concatenate(hand)) for hand in hands]
