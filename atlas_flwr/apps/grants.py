"""What each client may spend on its adapter: its device's budgets, or its own rank."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from atlas_flwr.apps.facts import DataFacts
from atlas_flwr.config.devices import GB, DeviceProfile
from atlas_flwr.config.schema import Config
from atlas_flwr.errors import ConfigError, ModelError
from atlas_flwr.models.backbone import LoadedModel, load
from atlas_flwr.models.footprint import predicted, step
from atlas_flwr.ranks.budget import Budget, Grant, allowance, cost, rank_costs
from atlas_flwr.ranks.memory import GRADIENT_BYTES, Memory, rank_bytes
from atlas_flwr.training.precision import device_name, resolve_device
from atlas_flwr.types import Job, LoraFactors, ModelParts, Report, Update
from atlas_flwr.wire import count_bytes, pack_update
from clients.site import model_spec
from strategies.allocated import RankOptions
from strategies.registry import parse_options, widest_rank


def check_device_ranks(config: Config) -> None:
    """Check that every device has a rank, where the strategy gives none by itself.

    Raises:
        ConfigError: Names the device.
    """
    if config.devices is None or widest_rank(config.strategy.name, config.strategy.options):
        return
    for name in config.devices.profiles:
        if config.device_profiles[name].rank is None:
            options = parse_options(config.strategy.name, config.strategy.options)
            fixed = isinstance(options, RankOptions)
            remedy = "another strategy.options.ranks" if fixed else "strategy.name = 'atlas'"
            raise ConfigError(
                f"device.rank: '{name}' of devices.profiles has none, and '{config.strategy.name}' "
                f"{'at ranks = fixed ' if fixed else ''}gives no ranks by itself; set it, or use "
                f"{remedy}"
            )


def grants(config: Config, facts: DataFacts) -> tuple[Grant, ...]:
    """Return what each client's adapter may have; nobody has any under full fine-tuning.

    Budgets bind where the strategy gives ranks by itself. Elsewhere a client trains at its own
    rank, whatever its device's uplink and trainable state; the device must only have the memory
    that this takes. Where the strategy weighs modules by their gradients, the device must have the
    memory for those too.

    Args:
        config: The experiment.
        facts: What is known of the clients' rows.

    Raises:
        ConfigError: A device lacks the memory, or a budget leaves nothing for an adapter.
        ModelError: There are devices with a memory, and the model's shape is not known.
    """
    if config.model.adaptation == "full":
        return ()
    return tuple(_grant(config, partition, facts) for partition in range(config.run.clients))


def uplink_overhead(
    shapes: Mapping[str, tuple[int, int]],
    head: Mapping[str, tuple[int, ...]],
    scales: Iterable[float],
    device: str = "cpu",
) -> int:
    """Return the bytes that the answer to a round's training has beside its numbers, at most.

    An answer at rank 1 is packed and weighed: names, NumPy's headers, the scales, the report. None
    of them grows with the rank; what is told in digits is as long as it can get.

    Args:
        shapes: ``(d_out, d_in)`` by adapted module.
        head: Shapes of the head's tensors that travel.
        scales: The LoRA scales an adapter may have; the longest in digits stands for all.
        device: What the client says it trained on.
    """
    scale = max(scales, key=lambda each: len(repr(each)))
    adapter = {
        module: LoraFactors(np.ones((1, d_in), np.float32), np.ones((d_out, 1), np.float32), scale)
        for module, (d_out, d_in) in shapes.items()
    }
    tensors = {name: np.ones(shape, np.float32) for name, shape in head.items()}
    parts = ModelParts(adapter=adapter, head=tensors)
    report = Report(sys.maxsize, {"loss": 1.0}, 1.0, sys.maxsize, device)
    numbers = sum(4 * math.prod(shape) for shape in parts.shapes().values())
    job = Job(sys.maxsize, "train.sparse", sys.maxsize)
    return sum(count_bytes(pack_update(Update(0, report, parts), job)).values()) - numbers


def _grant(config: Config, partition: int, facts: DataFacts) -> Grant:
    """Return one client's grant: what its own rank costs, or what its device's budgets leave."""
    task = facts.tasks[config.task_of(partition)]
    loaded = load(model_spec(config), task.num_labels, config.run.seed)
    costs = rank_costs(loaded.backbone.shapes)
    ranks = config.module_ranks(config.rank_of(partition), costs)
    name, params = config.device_of(partition), cost(ranks, costs)
    own = Grant(params, device=name, ranks=sum(ranks.values()))
    allots = widest_rank(config.strategy.name, config.strategy.options) > 0
    if allots:  # the same parameters, in any ranks
        own = replace(own, ranks=params // min(costs.values()))
    batch = _largest_batch(config, partition, facts)
    try:
        resting = predicted(loaded, *batch[:2], device=batch[2])
    except ModelError:
        if name is None:  # no device has to hold it
            return own
        raise
    own = replace(own, resting=resting, rank_bytes=rank_bytes(step(*batch)))
    if name is None:
        return own
    profile = config.device_profiles[name]
    _check_memory(name, profile, resting, None if allots else own)
    if not allots:
        return own
    _check_gradients(config, name, profile, resting, loaded)
    budget = Budget(profile.memory, profile.state, profile.uplink)
    return own if budget == Budget() else _afforded(config, own, budget, loaded)


def _afforded(config: Config, own: Grant, budget: Budget, loaded: LoadedModel) -> Grant:
    """Return the grant of a device with limits."""
    assert own.resting is not None  # it has a device
    shapes, options = loaded.backbone.shapes, config.strategy.options
    narrowest = min(rank_costs(shapes).values())
    head = sum(parameter.numel() for parameter in loaded.head.values())
    sends = config.head_policy != "local"
    beside = uplink_overhead(
        shapes,
        {n: tuple(p.shape) for n, p in loaded.head.items()} if sends else {},
        [config.scale_of(r + 1) for r in range(widest_rank(config.strategy.name, options))],
        device_name(resolve_device(config.engine.device)),
    )
    try:
        allowed = allowance(
            budget,
            own.resting,
            head=head,
            sends_head=sends,
            rank_bytes=own.rank_bytes,
            narrowest=narrowest,
            overhead=beside,
        )
    except ConfigError as error:
        raise ConfigError(
            f"devices.profiles: '{own.device}': {error} beside a head of {head:,} parameters (an "
            f"answer has {beside:,} bytes of names and headers); define it as [[device]] with more"
        ) from error
    assert allowed.params is not None  # some limit is set
    assert allowed.by is not None
    return replace(
        own,
        params=allowed.params,
        by=allowed.by,
        each=allowed.each,
        ranks=allowed.params // narrowest,
    )


def _largest_batch(config: Config, partition: int, facts: DataFacts) -> tuple[int, int, str]:
    """Return the rows of the client's largest batch, its tokens at most, and what it trains on."""
    rows = min(config.train.batch_size, facts.rows[partition].train)
    return rows, facts.longest[partition], resolve_device(config.engine.device).type


def _check_memory(name: str, profile: DeviceProfile, resting: Memory, own: Grant | None) -> None:
    """Refuse a device without room for the model, or for the adapter of a rank that is known."""
    needs, sizes = resting.total, {k: v for k, v in vars(resting).items() if k != "adapter"}
    what, remedy = " before there is an adapter", "lower"
    if profile.memory is None or (needs < profile.memory and own is None):
        return
    if needs < profile.memory and own is not None:
        assert own.needs is not None  # the model's shape is known
        if own.needs <= profile.memory:
            return
        sizes["adapter"] = own.needs - needs  # with what A x holds
        needs, what, remedy = own.needs, " at its rank", "lower the rank or"
    parts = ", ".join(f"{part} {size / GB:.2f}" for part, size in sizes.items())
    raise ConfigError(
        f"devices.profiles: '{name}' has {profile.memory_gb:g} GB, training needs "
        f"{needs / GB:.2f} GB{what} ({parts}); {remedy} train.batch-size or "
        "model.max-length, choose a smaller model, or raise memory-gb"
    )


def _check_gradients(
    config: Config, name: str, profile: DeviceProfile, resting: Memory, loaded: LoadedModel
) -> None:
    """Refuse a device without room for the gradients of all adapted weights, where it tells them.

    They are held together, once, before there is an adapter; training's own needs are a bound on
    what else is held.
    """
    options = parse_options(config.strategy.name, config.strategy.options)
    assert isinstance(options, RankOptions)  # it allots ranks
    if profile.memory is None or options.ranks in ("uniform", "fixed"):
        return
    weights = sum(d_out * d_in for d_out, d_in in loaded.backbone.shapes.values())
    needs = resting.total + GRADIENT_BYTES * weights
    if needs > profile.memory:
        raise ConfigError(
            f"devices.profiles: '{name}' has {profile.memory_gb:g} GB, the gradients of all "
            f"adapted weights need {needs / GB:.2f} GB with the model and a batch beside them; set "
            "strategy.options.ranks = 'uniform', which needs none, or raise memory-gb"
        )
