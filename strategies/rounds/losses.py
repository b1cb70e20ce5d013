"""When lost clients stop a run."""

from __future__ import annotations

from collections.abc import Sequence

from atlas_flwr.errors import RunFailed
from atlas_flwr.results.record import ClientRow
from strategies.rounds.rules import Limits


def check_losses(
    rows: Sequence[ClientRow],
    limits: Limits,
    where: str,
    asked: int | None = None,
    again: bool = False,
) -> None:
    """Stop at a lost client, or go on if enough replied.

    Args:
        rows: The rows of the phase that has ended.
        limits: What the run forgives.
        where: Round and phase, for the message.
        asked: Answers wanted; by default one of each client that was asked.
        again: Whether who is missing will be asked again, so that nobody has to reply.

    Raises:
        RunFailed: Names each lost partition and why.
    """
    lost = [row for row in rows if row.status != "ok"]
    replied = len(rows) - len(lost)
    if not lost:
        return
    names = "; ".join(f"partition {row.partition} {row.status}: {row.error}" for row in lost)
    if limits.on_failure == "raise":
        raise RunFailed(f"{where}: {names}")
    if not again and replied < min(limits.min_results, asked or len(rows)):
        raise RunFailed(
            f"{where}: {replied} replied, run.min-results is {limits.min_results}: {names}"
        )
