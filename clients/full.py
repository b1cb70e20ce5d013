"""The client that fine-tunes every weight."""

from __future__ import annotations

from typing import ClassVar

from atlas_flwr.types import Part
from clients.base import FineTuneClient


class FullClient(FineTuneClient):
    """Trains all weights and the head; all of them travel."""

    kinds: ClassVar[tuple[Part, ...]] = ("weights", "head")
