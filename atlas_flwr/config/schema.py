"""The experiment file as frozen values; every key but ``data.tasks`` has a default.

Keys are written with hyphens in TOML (``samples-per-client``) and with underscores here.
Own-field checks live here; checks across sections are in ``load.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from atlas_flwr.config.devices import DEVICES, DeviceProfile
from atlas_flwr.config.durations import checked_span
from atlas_flwr.config.names import Name
from atlas_flwr.config.ranks import flat_pattern, module_ranks
from atlas_flwr.config.trackers import TrackerNames

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
# Strict: "0.1" and true are not numbers; a whole number is.
Fraction = Annotated[float, Field(gt=0, le=1, strict=True)]
Share = Annotated[float, Field(ge=0, lt=1, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
# One column name or several; one rank or one for each client in turn.
Names = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda v: (v,) if isinstance(v, str) else v),
    Field(min_length=1),
]
Span = Annotated[str, AfterValidator(checked_span)]
Ranks = Annotated[
    tuple[PositiveInt, ...],
    BeforeValidator(lambda v: v if isinstance(v, list | tuple) else (v,)),
    Field(min_length=1),
]
RankPattern = Annotated[dict[str, PositiveInt], BeforeValidator(flat_pattern)]


class Section(BaseModel):
    """Base of all sections: frozen, no unknown keys, hyphens in TOML."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=lambda name: name.replace("_", "-"),
        validate_by_name=True,
        validate_by_alias=True,
    )


class RunSection(Section):
    """Who takes part, for how long, and what happens when somebody is lost."""

    name: Name = "run"
    rounds: PositiveInt = 5
    clients: PositiveInt = 3
    fraction: Fraction = 1.0
    """Share of the clients drawn each round (at least one), by partition id from ``seed``."""
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 42
    on_failure: Literal["raise", "skip"] = "raise"
    min_results: PositiveInt = 1
    """Replies a round needs when ``on-failure`` is ``skip``."""
    client_timeout: PositiveFloat = 3600.0
    """Seconds without any reply after which the clients still missing are named as lost; on Ray
    also the longest that one client may work."""
    stop_after: Span | None = None
    """Time such as "3h30m" after which the run stops between two rounds, to be resumed."""
    mirror: str | None = None
    """A folder that gets a copy of every commit, in one named like the run's own."""
    trackers: TrackerNames = ()
    """Where the run is shown while it goes on: tensorboard, wandb, mlflow, trackio; all write into
    the run directory, W&B offline."""
    out: str | None = None


class ModelSection(Section):
    """Which model, and which of its tensors are trained."""

    name: Annotated[str, Field(min_length=1)] = "minilm"
    adaptation: Literal["lora", "full"] = "lora"
    head: Literal["auto", "shared", "per_task", "personal", "local"] = "auto"
    """``auto``: shared for one task, per_task for several, or what the strategy needs.
    ``personal``: each client's own, kept by the server; ``local`` never leaves the client."""
    max_length: Annotated[int, Field(ge=4, le=8192, strict=True)] = 128
    """Tokens kept of one row; shorter rows are padded to their batch, never to this."""


class DataSection(Section):
    """Which tasks, and how their rows are dealt to the clients."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    root: str | None = None
    """``<root>/<task>/{train,validation}.parquet`` instead of the hub, for built-in tasks."""
    samples_per_client: PositiveInt = 300
    partitioner: Literal["iid", "dirichlet", "pathological", "quantity"] = "iid"
    alpha: PositiveFloat = 0.5
    """Concentration of ``dirichlet`` (label mix) and ``quantity`` (sizes)."""
    num_classes_per_partition: PositiveInt = 1
    min_partition_size: PositiveInt = 10
    holdout: Share = 0.0
    """Share of the training rows that is evaluated on *instead of* the validation rows (tuning)."""
    evaluation_rows: Annotated[int, Field(ge=0, strict=True)] = 0
    """At most so many rows of a task are scored, its classes in proportion; 0: all of them."""


class TaskSection(Section):
    """A task of the user's own: files, or a built-in task with its labels mapped."""

    name: Name
    path: str | None = None
    text: Names | None = None
    label: str | None = None
    base: str | None = None
    label_map: tuple[Annotated[int, Field(ge=0, strict=True)], ...] | None = None


class TrainSection(Section):
    """One client's local training; AdamW is created afresh each round, at a constant rate."""

    local_epochs: PositiveInt = 1
    batch_size: PositiveInt = 16
    learning_rate: PositiveFloat | None = None
    """Absent: 1e-3 for LoRA, 5e-5 for full fine-tuning."""
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """``auto``: the fastest the device has (bf16 or fp16 on a GPU; bf16 on a CPU made for it)."""


class LoraSection(Section):
    """Shape and scale of the LoRA factors."""

    rank: Ranks = (8,)
    """One rank, or a list dealt to the clients in turn."""
    rank_pattern: RankPattern = Field(default_factory=dict)
    """Endings of module names and their own rank, over every client's rank; the longest wins."""
    scaling: Literal["constant", "standard", "rs"] = "constant"
    """``constant``: s = scale; ``standard``: s = alpha/r; ``rs``: s = alpha/sqrt(r)."""
    scale: PositiveFloat = 2.0
    alpha: PositiveFloat = 16.0
    targets: Literal["auto"] | Annotated[tuple[str, ...], Field(min_length=1)] = "auto"
    """``auto``: every linear layer of the backbone; else endings of module names."""
    dropout: Share = 0.0


class DevicesSection(Section):
    """Which devices the clients are: the rank follows from the device instead of ``lora.rank``."""

    profiles: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of devices, dealt to the clients in turn."""


class DeviceSection(Section):
    """A device of the user's own, or a built-in one redefined; a limit left out is none."""

    name: Name
    rank: PositiveInt | None = None
    """Absent: for strategies that give ranks by themselves, within the limits below."""
    memory_gb: PositiveFloat | None = None
    """Memory of the whole training process, in 10^9 bytes."""
    state_mb: PositiveFloat | None = None
    """Adapter and head with their gradients and moments, in 10^6 bytes."""
    uplink_mb: PositiveFloat | None = None
    """What one round may send up, in 10^6 bytes."""

    @property
    def profile(self) -> DeviceProfile:
        """The device as the built-in ones are written."""
        return DeviceProfile(self.rank, self.memory_gb, self.state_mb, self.uplink_mb)


class StrategySection(Section):
    """The method, by the name ``atlas list`` prints, and its own options."""

    name: str = "fedavg"
    options: dict[str, Any] = Field(default_factory=dict)


class EngineSection(Section):
    """Where the clients run."""

    kind: Literal["ray", "inline"] = "ray"
    workers: PositiveInt | None = None
    """Clients at a time. Absent: one per ``threads`` CPU cores, no more than there are clients."""
    threads: PositiveInt = 1
    gpus_per_client: Literal["auto"] | NonNegativeFloat = "auto"
    """``auto``: as many clients share a GPU as its memory holds, by a measurement of one."""
    micro_batch: PositiveInt | None = None
    """Rows passed at once in training; their gradients add up to those of the whole batch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"


class FirewallSection(Section):
    """What an answer must be before any strategy sees it, beside the schema, which has no key."""

    norm_ratio: NonNegativeFloat = 10.0
    """How many times the median norm of its like an answer may have; 0: any norm passes."""


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
