"""What each client may spend on its adapter: its device's budgets, or its own rank."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from atlas_flwr.config.devices import GB, DeviceProfile
from atlas_flwr.config.schema import Config
from atlas_flwr.data.tokenised import TokenisedTask
from atlas_flwr.errors import ConfigError, ModelError
from atlas_flwr.models.backbone import LoadedModel, load
from atlas_flwr.models.footprint import predicted
from atlas_flwr.ranks.budget import Budget, Grant, allowance, cost, rank_costs
from atlas_flwr.ranks.memory import Memory
from atlas_flwr.training.precision import resolve_device
from clients.site import deal, model_spec
from strategies.registry import widest_rank


def check_device_ranks(config: Config) -> None:
    """Check that every device has a rank, where the strategy gives none by itself.

    Raises:
        ConfigError: Names the device.
    """
    if config.devices is None or widest_rank(config.strategy.name, config.strategy.options):
        return
    for name in config.devices.profiles:
        if config.device_profiles[name].rank is None:
            raise ConfigError(
                f"device.rank: '{name}' of devices.profiles has none, and strategy.name = "
                f"'{config.strategy.name}' gives no ranks by itself; set it, or use 'atlas'"
            )


def grants(config: Config, opened: Mapping[str, TokenisedTask]) -> tuple[Grant, ...]:
    """Return what each client's adapter may have; nobody has any under full fine-tuning.

    Budgets bind where the strategy gives ranks by itself; elsewhere a client has its own rank's
    parameters, and its device must only have the memory.

    Args:
        config: The experiment.
        opened: Its tasks.

    Raises:
        ConfigError: A device lacks the memory, or a budget leaves nothing for an adapter.
        ModelError: There are devices with a memory, and the model's shape is not known.
    """
    if config.model.adaptation == "full":
        return ()
    return tuple(
        _grant(config, partition, opened[config.task_of(partition)])
        for partition in range(config.run.clients)
    )


def _grant(config: Config, partition: int, task: TokenisedTask) -> Grant:
    loaded = load(model_spec(config), task.num_labels, config.run.seed)
    ranks = config.module_ranks(config.rank_of(partition), loaded.backbone.shapes)
    own = cost(ranks, rank_costs(loaded.backbone.shapes))
    name = config.device_of(partition)
    if name is None:
        return Grant(own, resting=_resting_if_known(config, partition, task, loaded))
    profile = config.device_profiles[name]
    budget = Budget(profile.memory, profile.state, profile.uplink)
    resting = _resting(config, partition, task, loaded)
    if budget.memory is not None and resting.total >= budget.memory:
        _refuse_memory(name, profile, resting)
    if budget == Budget() or not widest_rank(config.strategy.name, config.strategy.options):
        return Grant(own, device=name, resting=resting)
    head = sum(parameter.numel() for parameter in loaded.head.values())
    sends = config.head_policy != "local"
    try:
        allowed = allowance(budget, resting, head=head, sends_head=sends)
    except ConfigError as error:
        raise ConfigError(
            f"devices.profiles: '{name}': {error} beside a head of {head:,} parameters; define "
            "it as [[device]] with more"
        ) from error
    assert allowed.params is not None  # some limit is set
    assert allowed.by is not None
    return Grant(allowed.params, allowed.by, name, allowed.each, resting)


def _resting(config: Config, partition: int, task: TokenisedTask, loaded: LoadedModel) -> Memory:
    """Return the memory predicted for the client's largest batch, without an adapter."""
    rows = deal(config, config.task_of(partition))[partition].train
    longest = int(task.train.lengths[rows].max(initial=0))  # cut to max-length when tokenised
    device = resolve_device(config.engine.device).type
    return predicted(loaded, min(config.train.batch_size, len(rows)), longest, device=device)


def _resting_if_known(
    config: Config, partition: int, task: TokenisedTask, loaded: LoadedModel
) -> Memory | None:
    """Return the prediction, None for a model it can't be made for: no device needs it."""
    try:
        return _resting(config, partition, task, loaded)
    except ModelError:
        return None


def _refuse_memory(name: str, profile: DeviceProfile, need: Memory) -> NoReturn:
    parts = ", ".join(
        f"{part} {size / GB:.2f}" for part, size in vars(need).items() if part != "adapter"
    )
    raise ConfigError(
        f"devices.profiles: '{name}' has {profile.memory_gb:g} GB, training needs "
        f"{need.total / GB:.2f} GB before there is an adapter ({parts}); lower train.batch-size or "
        "model.max-length, choose a smaller model, or raise memory-gb"
    )
