"""The client that fine-tunes LoRA factors and the task head over a frozen backbone."""

from __future__ import annotations

from typing import ClassVar

from atlas_flwr.types import Part
from clients.base import FineTuneClient


class LoraClient(FineTuneClient):
    """Trains the adapter and the head; the backbone never changes and never travels."""

    kinds: ClassVar[tuple[Part, ...]] = ("lora_A", "lora_B", "core", "delta", "head")
