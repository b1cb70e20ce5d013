"""How good one round's merge was: its distances, and how many directions the update uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from atlas_flwr.aggregation.measures import effective_rank, relative_error
from atlas_flwr.results.record import Measured
from atlas_flwr.types import Adapter
from strategies.state import State

if TYPE_CHECKING:
    from strategies.base import Method


def measured(method: Method, state: State, exact: Mapping[str, Adapter]) -> Measured:
    """Return how far the merge is from the exact mean, and the receivers from the merge.

    Args:
        method: The method whose merge it was.
        state: The state after it.
        exact: The exact mean products of the groups that have one; without any there is nothing
            to measure.
    """
    applied = {group: method.applied(state, group) for group in exact}
    return Measured(
        aggregation_error=relative_error((applied[g], exact[g]) for g in exact),
        truncation_error=_truncation(method, state, applied) if exact else None,
        effective_rank=effective_rank(method.gained(state, group) for group in exact),
    )


def _truncation(
    method: Method, state: State, applied: Mapping[str, Adapter]
) -> dict[str, float | None]:
    """Return what receivers of each rank lack of what was applied: one of each rank and group."""
    partitions = range(len(method.setting.ranks))
    ranks = [method.rank_of(state, partition) for partition in partitions]
    held: dict[int, dict[str, Adapter]] = {rank: {} for rank in sorted(ranks)}
    for partition, rank in zip(partitions, ranks, strict=True):
        group = method.body_key(partition)
        if group in applied and group not in held[rank]:
            held[rank][group] = method.held(state, partition)
    return {
        str(rank): relative_error((own, applied[group]) for group, own in of_rank.items())
        for rank, of_rank in held.items()
    }
