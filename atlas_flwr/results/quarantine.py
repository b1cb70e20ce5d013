"""Who was refused, why, and how often: the answers that never reached a model. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("client", "task", "phase", "rounds", "answers refused", "of", "reason")


def quarantined(clients: pd.DataFrame) -> list[list[str]]:
    """Return a row per client, phase and reason of refusal, in the order of ``COLUMNS``.

    Reasons that differ in their numbers alone are told once, in the last one's words, with the
    rounds they were given in; ``of`` is how many answers the client was asked for in that phase.

    Args:
        clients: Rows of ``clients.parquet``.
    """
    found = []
    for (partition, phase), rows in clients.groupby(["partition", "phase"], sort=True):
        refused = rows[rows["status"] == "rejected"].sort_values("round", kind="stable")
        for _, same in refused.groupby(refused["error"].map(_numberless), sort=False):
            at = [int(r) for r in same["round"]]
            told = [str(partition), str(same["task"].iloc[0]), str(phase), spans(at)]
            found.append([*told, str(len(same)), str(len(rows)), str(same["error"].iloc[-1])])
    return found


def _numberless(reason: object) -> str:
    """Return a reason with its numbers blotted out."""
    return re.sub(r"\d[\d.]*(e[+-]?\d+)?", "#", str(reason))


def spans(numbers: Sequence[int]) -> str:
    """Return whole numbers as ranges.

    >>> spans([1, 2, 3, 5]), spans([4])
    ('1–3, 5', '4')
    """
    ordered = sorted(set(numbers))
    runs = groupby(enumerate(ordered), key=lambda pair: pair[1] - pair[0])
    ends = [[n for _, n in run] for _, run in runs]
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}–{r[-1]}" for r in ends)
