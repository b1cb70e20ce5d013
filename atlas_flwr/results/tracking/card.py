"""What a tracker is, and what it is told of a run before its first number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Card:
    """A run as a tracker knows it.

    Attributes:
        folder: The tracker's own folder; nothing is written outside it.
        experiment: The experiment's name.
        run: The run's name.
        config: The configuration, dotted keys and plain values.
        kept: Rounds that had ended when the run went on; 0 for one that begins.
    """

    folder: Path
    experiment: str
    run: str
    config: Mapping[str, str | int | float | bool]
    kept: int = 0


class Tracker(Protocol):
    """Where numbers of a run are shown.

    What it raises is told as one note; the run goes on without it.
    """

    def start(self, card: Card) -> int:
        """Begin, or go on with what the folder holds; return the last round that it holds.

        What it holds of rounds after ``card.kept`` is dropped: they are run again.
        """

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take in numbers of a round."""

    def end(self, status: str) -> None:
        """Close: the run is ``completed``, ``stopped``, ``failed``, or was ``killed``."""
