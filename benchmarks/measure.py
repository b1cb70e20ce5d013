"""Seconds of two things done in turn, and the ratio between them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Ratio:
    """One answer: the seconds of ``top`` over those of ``bottom``, taken in turn.

    Attributes:
        top: What the numerator is.
        bottom: What the denominator is.
        pairs: Seconds of both, one pair a repetition; the warm-up is left out.
        sense: Whether the ratio should stay below or above its target.
        target: The target.
        settings: What was measured.
    """

    top: str
    bottom: str
    pairs: tuple[tuple[float, float], ...]
    sense: Literal["<=", ">="]
    target: float
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """The ratio of each repetition: what slows the machine slows both of a pair."""
        return [top / bottom for top, bottom in self.pairs]

    @property
    def median(self) -> float:
        """The median over the repetitions."""
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool:
        """Whether the median keeps to the target."""
        return self.median <= self.target if self.sense == "<=" else self.median >= self.target

    def seconds(self, side: Literal[0, 1]) -> float:
        """Return the median seconds of one side: 0 is ``top``, 1 is ``bottom``."""
        return statistics.median(pair[side] for pair in self.pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "top": self.top,
            "bottom": self.bottom,
            "median": self.median,
            "min": min(self.ratios),
            "max": max(self.ratios),
            "target": f"{self.sense} {self.target}",
            "met": self.met,
            "top_seconds": [top for top, _ in self.pairs],
            "bottom_seconds": [bottom for _, bottom in self.pairs],
            "settings": dict(self.settings),
        }


def seconds_of(work: Callable[[], object]) -> float:
    """Return the wall time of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def in_turn(
    top: Callable[[], object], bottom: Callable[[], object], repetitions: int
) -> tuple[tuple[float, float], ...]:
    """Time two pieces of work A B A B ..., after one of each that is not counted."""
    top()
    bottom()
    return tuple((seconds_of(top), seconds_of(bottom)) for _ in range(repetitions))


class Turns:
    """A run's watcher that does the rival's round after each federated one, with the run stopped.

    Attributes:
        pairs: Seconds of each federated round and of the rival's; the first pair is the warm-up.
    """

    def __init__(self, rival: Callable[[int], object]) -> None:
        self.pairs: list[tuple[float, float]] = []
        self._rival = rival
        self._since = time.perf_counter()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take the time at the end of a round, recording included."""
        if event["event"] != "round":
            return
        ours = time.perf_counter() - self._since
        theirs = seconds_of(lambda: self._rival(int(event["round"])))
        self.pairs.append((ours, theirs))
        self._since = time.perf_counter()
