"""What an experiment would run: ``atlas check`` as tables, from its real data and model."""

from __future__ import annotations

import json

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from atlas_flwr.apps.autopilot import foreseen
from atlas_flwr.apps.catalogue import plain_table
from atlas_flwr.apps.prepare import Prepared, prepare, resolve
from atlas_flwr.config.devices import GB
from atlas_flwr.config.schema import Config
from atlas_flwr.ranks.budget import Grant
from atlas_flwr.types import ModelParts
from clients.site import deal


def describe_experiment(config: Config) -> RenderableType:
    """Open an experiment's data and model and say what would run.

    Raises:
        UserError: Anything that would stop it, in one line.
    """
    prepared = prepare(config)
    config = resolve(config)
    return Group(
        Text(f"{config.run.name}: nothing is wrong. This would run:", style="bold"),
        _facts(config, prepared),
        _clients(config, prepared),
        *([_devices(config, prepared)] if config.devices else []),
    )


def _options(config: Config) -> str:
    """Return the strategy's options as they would be written, defaults included."""
    options = config.strategy.options.items()
    return ", ".join(f"{key} = {json.dumps(value)}" for key, value in options)


def _facts(config: Config, prepared: Prepared) -> Table:
    """Return the run in a few lines, with the bytes one client's model has."""
    setting = prepared.method.setting
    table = Table.grid(padding=(0, 2))
    trained = _span([_trained(prepared, p) for p in range(setting.clients)])
    cohort = f"{config.run.fraction:.0%} of {config.run.clients} clients"
    pattern = ", ".join(f"{end} = {r}" for end, r in config.lora.rank_pattern.items())
    for name, value in (
        ("strategy", f"{config.strategy.name}, model.head = {config.model.head}"),
        ("options", _options(config) or "none"),
        ("model", f"{config.model.name}, {config.model.adaptation}: {trained} numbers trained"),
        ("rounds", f"{config.run.rounds}, {cohort} each, seed {config.run.seed}"),
        ("engine", f"{config.engine.kind}, device {config.engine.device}"),
        ("clients run", foreseen(config, setting)),
        ("learning rate", f"{config.learning_rate:g}"),
        *([("rank pattern", f"{pattern}, for every client")] if pattern else []),
    ):
        # As text: rich would read the brackets of a name as its own marks.
        table.add_row(Text(name, style="dim"), Text(value))
    return table


def _clients(config: Config, prepared: Prepared) -> Table:
    """Return a row for each client: its rows, its label mix, its device and its ranks."""
    columns = ("client", "task", "training rows", "validation rows", "label mix")
    device = ("device",) if config.devices else ()
    table = plain_table("Clients", *columns, *device, "rank")
    setting = prepared.method.setting
    given = prepared.method.widest(prepared.method.options)
    for partition, task in enumerate(setting.tasks):
        shard = deal(config, task)[partition]
        mix = " ".join(f"{share:.0%}" for share in shard.mix)
        numbers = (str(len(shard.train)), str(len(shard.evaluation)), mix)
        named = config.device_of(partition)
        # A method that gives ranks does so in round 1.
        ranks = "by budget" if given else _ranks(setting.initial_for(partition))
        table.add_row(str(partition), task, *numbers, *((named,) if named else ()), ranks)
    return table


def _devices(config: Config, prepared: Prepared) -> Table:
    """Return a row for each kind of device: its budgets, and what they leave for an adapter."""
    columns = ("device", "predicted memory", "trained", "uplink a round", "adapter parameters")
    table = plain_table("Devices", *columns, "who says so")
    named: dict[str, list[Grant]] = {}
    for grant in prepared.method.setting.grants:
        named.setdefault(grant.device or "", []).append(grant)
    for name, grants in named.items():
        profile = config.device_profiles[name]
        needs = max(g.needs for g in grants if g.needs is not None)
        table.add_row(
            name,
            f"{needs / GB:.2f} of {_limit(profile.memory_gb, 'GB')}",
            _limit(profile.state_mb, "MB"),
            _limit(profile.uplink_mb, "MB"),
            _span([g.params for g in grants]),
            ", ".join(dict.fromkeys(g.by for g in grants)),
        )
    return table


def _limit(value: float | None, unit: str) -> str:
    return "any" if value is None else f"{value:g} {unit}"


def _span(values: list[int]) -> str:
    return " to ".join(f"{value:,}" for value in sorted({min(values), max(values)}))


def _ranks(parts: ModelParts) -> str:
    """Return a model's rank, those by module as their range."""
    ranks = sorted(set(parts.ranks().values()))
    return "–".join(str(rank) for rank in sorted({ranks[0], ranks[-1]})) if ranks else "full"


def _trained(prepared: Prepared, partition: int) -> int:
    """Return how many numbers a client trains: as many as it may, where ranks are given to it."""
    method = prepared.method
    parts = method.setting.initial_for(partition)
    head = sum(tensor.size for tensor in parts.head.values())
    if method.widest(method.options):
        return head + method.setting.grants[partition].params
    return head + sum(tensor.size for tensor in parts.body().values())
