"""The sections of the experiment file as frozen values; every key but ``data.tasks`` has a default.

Keys are written with hyphens in TOML (``samples-per-client``) and with underscores here. The
docstring below a key is what the reference page says of it. Checks of one key live here; checks
across sections are in ``load.py``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from atlas_flwr.config.devices import DeviceProfile
from atlas_flwr.config.durations import checked_span
from atlas_flwr.config.names import Name
from atlas_flwr.config.ranks import flat_pattern
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
    """Name of the run; part of the default run directory's."""
    rounds: PositiveInt = 5
    """Rounds of training."""
    clients: PositiveInt = 3
    """Number of clients."""
    fraction: Fraction = 1.0
    """Share of the clients drawn each round (at least one), by partition id from ``seed``."""
    seed: Annotated[int, Field(ge=0, lt=2**32, strict=True)] = 42
    """What every random draw follows from."""
    on_failure: Literal["raise", "skip"] = "raise"
    """What a lost or refused client does to the run: stop it, or go on without."""
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
    """The run directory; ``--out`` overrides it."""


class ModelSection(Section):
    """Which model, and which of its tensors are trained."""

    name: Annotated[str, Field(min_length=1)] = "minilm"
    """A named model, a hub id, or a folder."""
    adaptation: Literal["lora", "full"] = "lora"
    """LoRA adapters, or all weights."""
    head: Literal["auto", "shared", "per_task", "personal", "local"] = "auto"
    """``auto``: shared for one task, per_task for several, or what the strategy needs.
    ``personal``: each client's own, kept by the server; ``local`` never leaves the client."""
    max_length: Annotated[int, Field(ge=4, le=8192, strict=True)] = 128
    """Tokens kept of one row; shorter rows are padded to their batch, never to this."""


class DataSection(Section):
    """Which tasks, and how their rows are dealt to the clients."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    """Built-in tasks, or names of ``[[task]]``s; dealt to the clients in equal blocks."""
    root: str | None = None
    """``<root>/<task>/{train,validation}.parquet`` instead of the hub, for built-in tasks."""
    samples_per_client: PositiveInt = 300
    """Training rows of each client."""
    partitioner: Literal["iid", "dirichlet", "pathological", "quantity"] = "iid"
    """How labels (or sizes) are spread over the clients of a task."""
    alpha: PositiveFloat = 0.5
    """Concentration of ``dirichlet`` (label mix) and ``quantity`` (sizes)."""
    num_classes_per_partition: PositiveInt = 1
    """Classes of each client under ``pathological``."""
    min_partition_size: PositiveInt = 10
    """Rows that each client gets at least, under ``quantity``."""
    holdout: Share = 0.0
    """Share of the training rows that is evaluated on *instead of* the validation rows (tuning)."""
    evaluation_rows: Annotated[int, Field(ge=0, strict=True)] = 0
    """At most so many rows of a task are scored, its classes in proportion; 0: all of them."""


class TaskSection(Section):
    """A task of the user's own: files, or a built-in task with its labels mapped."""

    name: Name
    """What ``data.tasks`` calls it."""
    path: str | None = None
    """A folder with ``train.*`` and ``validation.*``, or one file (split 80/20 by seed):
    parquet, csv, tsv or jsonl."""
    text: Names | None = None
    """The column, or the two columns, of text."""
    label: str | None = None
    """The column of class names or numbers."""
    base: str | None = None
    """A built-in task that this one is a variant of."""
    label_map: tuple[Annotated[int, Field(ge=0, strict=True)], ...] | None = None
    """The new number of each label of ``base``."""


class TrainSection(Section):
    """One client's local training; AdamW is created afresh each round, at a constant rate."""

    local_epochs: PositiveInt = 1
    """Passes over a client's rows in one round."""
    batch_size: PositiveInt = 16
    """Rows of one optimizer step."""
    learning_rate: PositiveFloat | None = None
    """Absent: 1e-3 for LoRA, 5e-5 for full fine-tuning."""
    weight_decay: NonNegativeFloat = 0.0
    """Of AdamW."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are clipped to this norm."""
    logit_adjustment: NonNegativeFloat = 0.0
    """τ: a client adds τ log of its share of each class to the logits, in training and on its own
    rows, so that label mixes are not learned; 1 is the usual one, 0 none."""
    own_offset: Literal["mix", "fitted"] = "mix"
    """What is added to the logits when a client is scored on its own slice: ``mix`` is the τ log of
    its shares; ``fitted`` is what makes its training rows most likely under the model it has been
    given, near that, which costs a pass over them in every round."""
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
    """s under ``constant``."""
    alpha: PositiveFloat = 16.0
    """α under ``standard`` and ``rs``."""
    targets: Literal["auto"] | Annotated[tuple[str, ...], Field(min_length=1)] = "auto"
    """``auto``: every linear layer of the backbone; else endings of module names."""
    dropout: Share = 0.0
    """Dropout before A, in training."""


class DevicesSection(Section):
    """Which devices the clients are: the rank follows from the device instead of ``lora.rank``."""

    profiles: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of devices, dealt to the clients in turn."""


class DeviceSection(Section):
    """A device of the user's own, or a built-in one redefined; a limit left out is none."""

    name: Name
    """What ``devices.profiles`` calls it; a built-in name redefines that one."""
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
    """See [strategies](strategies.md)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """See [strategies' options](options.md)."""


class EngineSection(Section):
    """Where the clients run."""

    kind: Literal["ray", "inline"] = "ray"
    """``ray``: Flower's simulation engine; ``inline``: one after another in this process."""
    workers: PositiveInt | None = None
    """Clients at a time. Absent: one per ``threads`` CPU cores that this process may use, no more
    than there are clients."""
    threads: PositiveInt = 1
    """CPU threads of one client."""
    gpus_per_client: Literal["auto"] | NonNegativeFloat = "auto"
    """``auto``: as many clients share a GPU as its memory holds, by a measurement of one."""
    micro_batch: PositiveInt | None = None
    """Rows passed at once in training; their gradients add up to those of the whole batch."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where tensors live; ``auto`` takes a GPU if there is one."""


class FirewallSection(Section):
    """What an answer must be before any strategy sees it, beside the schema, which has no key."""

    norm_ratio: NonNegativeFloat = 10.0
    """How many times the median norm of its like an answer may have; 0: any norm passes."""
