"""Local-only training: nobody shares anything; the floor every method must beat."""

from __future__ import annotations

from atlas_flwr.types import PARTS, Part
from strategies.base import Method


class LocalOnly(Method):
    """Each client trains its own model, kept in its vault; no tensor is ever sent.

    A client that is not drawn keeps its model. Any mix of ranks is fine.
    """

    summary = "every client alone; nothing is shared (the floor)"
    mixed_ranks = True

    def body_key(self, partition: int) -> str:
        """Name the client's own group."""
        return f"client-{partition}"

    def head_key(self, partition: int) -> str:
        """Name the client's own group."""
        return f"client-{partition}"

    def private(self) -> frozenset[Part]:
        """Keep everything."""
        return frozenset(PARTS)

    def check(self) -> None:
        """Accept every setting: no two clients ever meet."""
