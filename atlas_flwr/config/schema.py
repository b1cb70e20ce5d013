"""One experiment: its sections, and what follows from several of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from atlas_flwr.config.devices import DEVICES, DeviceProfile
from atlas_flwr.config.ranks import module_ranks
from atlas_flwr.config.sections import (
    DataSection,
    DeviceSection,
    DevicesSection,
    EngineSection,
    FirewallSection,
    LoraSection,
    ModelSection,
    RunSection,
    Section,
    StrategySection,
    TaskSection,
    TrainSection,
)


class Config(Section):
    """One experiment."""

    run: RunSection = RunSection()
    model: ModelSection = ModelSection()
    data: DataSection
    task: tuple[TaskSection, ...] = ()
    train: TrainSection = TrainSection()
    lora: LoraSection = LoraSection()
    devices: DevicesSection | None = None
    device: tuple[DeviceSection, ...] = ()
    strategy: StrategySection = StrategySection()
    engine: EngineSection = EngineSection()
    firewall: FirewallSection = FirewallSection()

    @property
    def head_policy(self) -> Literal["shared", "per_task", "personal", "local"]:
        """The head policy with ``auto`` resolved: shared for one task, per task for several."""
        if self.model.head != "auto":
            return self.model.head
        return "shared" if len(self.data.tasks) == 1 else "per_task"

    @property
    def learning_rate(self) -> float:
        """The local learning rate with its default resolved."""
        if self.train.learning_rate is not None:
            return self.train.learning_rate
        return 1e-3 if self.model.adaptation == "lora" else 5e-5

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave ``lora.rank`` out where devices decide: what is written can be read again."""
        tree: dict[str, Any] = write(self)
        if self.devices is not None and "lora" in tree:
            tree["lora"].pop("rank", None)
        return tree

    @property
    def device_profiles(self) -> dict[str, DeviceProfile]:
        """Every device there is: those built in, and the user's over them."""
        return DEVICES | {device.name: device.profile for device in self.device}

    def device_of(self, partition: int) -> str | None:
        """Return the name of a client's device, dealt in turn; None without ``[devices]``."""
        if self.devices is None:
            return None
        return self.devices.profiles[partition % len(self.devices.profiles)]

    def rank_of(self, partition: int) -> int:
        """Return a client's base LoRA rank: its device's, else ``lora.rank`` dealt in turn.

        It is 1 on a device without a rank, whose strategy gives ranks by itself.
        """
        device = self.device_of(partition)
        if device is not None:
            return self.device_profiles[device].rank or 1
        return self.lora.rank[partition % len(self.lora.rank)]

    def module_ranks(self, rank: int, modules: Iterable[str]) -> dict[str, int]:
        """Return each module's rank for a client of a base rank, by ``lora.rank-pattern``.

        Args:
            rank: The client's base rank.
            modules: Full names of the adapted modules.

        Raises:
            ConfigError: An ending of the pattern matches no module.
        """
        return module_ranks(rank, self.lora.rank_pattern, modules)

    def scale_of(self, rank: int) -> float:
        """Return the LoRA scale ``s`` of a rank under ``lora.scaling``."""
        match self.lora.scaling:
            case "constant":
                return self.lora.scale
            case "standard":
                return self.lora.alpha / rank
            case "rs":
                return self.lora.alpha / math.sqrt(rank)

    def task_of(self, partition: int) -> str:
        """Return a client's task: clients are dealt in contiguous, nearly equal blocks."""
        return self.data.tasks[partition * len(self.data.tasks) // self.run.clients]

    def partitions_of(self, task: str) -> tuple[int, ...]:
        """Return the partitions that hold a task, in order."""
        return tuple(p for p in range(self.run.clients) if self.task_of(p) == task)
