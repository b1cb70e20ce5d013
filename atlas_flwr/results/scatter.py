"""Two numbers of each thing, as points against the line on which they are the same. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

from atlas_flwr.results.svg.parts import Series, ticks

APART = 0.028  # of an axis: points that are nearer than that hide each other
REACH = 6  # half such distances that a point is moved at most, along either axis


@dataclass(frozen=True)
class Scatter:
    """Points against the line on which both numbers are the same.

    Attributes:
        name: The PNG file's, without suffix.
        title: The heading.
        caption: What the numbers are, and their ratio.
        axes: What the horizontal and the vertical axis count.
        groups: Points by group, each point with its label.
    """

    name: str
    title: str
    caption: str
    axes: tuple[str, str]
    groups: Sequence[Series] = field(default=())

    @property
    def top(self) -> float:
        """The end of both axes; they begin at 0."""
        high = max(v for g in self.groups for point in g.points for v in point)
        return ticks(0.0, 1.05 * high)[-1]  # a marker is no circle cut in half

    def places(self) -> list[list[tuple[float, float]]]:
        """Return where each group's points are drawn: a little aside where they hid another."""
        taken = list[tuple[float, float]]()
        near = APART * self.top
        aside = sorted(product(range(-REACH, REACH + 1), repeat=2), key=lambda at: math.hypot(*at))

        def free(x: float, y: float) -> tuple[float, float]:
            for right, up in aside:
                at = x + right * near / 2, y + up * near / 2
                inside = min(at) >= 0 and max(at) <= self.top
                if inside and all(math.dist(at, other) >= 0.999 * near for other in taken):
                    return at
            return x, y  # a crowd

        found = list[list[tuple[float, float]]]()
        for group in self.groups:
            found.append([])
            for point in group.points:
                taken.append(free(*point))
                found[-1].append(taken[-1])
        return found
