"""What there is to run: strategies, tasks, models, devices, experiments; loads in no time."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table

from atlas_flwr.apps.shipped import named_file, shipped_experiments, shipped_suites
from atlas_flwr.config.devices import DEVICES
from atlas_flwr.config.load import load_config
from atlas_flwr.data.tasks import TASKS
from atlas_flwr.errors import ConfigError, did_you_mean
from atlas_flwr.models.catalog import MODELS
from strategies.registry import REFUSED, STRATEGIES


def experiment_file(given: Path) -> Path:
    """Return the file a command line names: a path, or the name of a shipped experiment.

    Raises:
        ConfigError: Neither a file nor a shipped name.
    """
    shipped = shipped_experiments()
    if found := named_file(given, shipped):
        return found
    if given.is_dir():
        raise ConfigError(f"{given}: is a folder; name the experiment's TOML file in it")
    if given.stem in shipped_suites():
        raise ConfigError(f"{given}: is a suite, not an experiment: atlas suite {given.stem}")
    near = did_you_mean(str(given), shipped)
    raise ConfigError(f"{given}: no such file{near}; shipped experiments: {', '.join(shipped)}")


def describe_catalogue() -> RenderableType:
    """Return tables of the strategies, tasks, models, devices and shipped experiments."""
    strategies = plain_table(
        "Strategies", "name", "what it does", "LoRA ranks", "options (default)"
    )
    for name, method in STRATEGIES.items():
        fields = method.options_type.model_fields.items()
        options = ", ".join(f"{field.alias} ({field.default})" for _, field in fields)
        ranks = "mixed" if method.mixed_ranks else "one"
        strategies.add_row(name, method.summary, ranks, options or "none")
    for name, why in REFUSED.items():
        strategies.add_row(name, f"refused: {why}", "–", "–")
    tasks = plain_table("Tasks", "name", "text columns", "labels", "where from")
    for name, spec in TASKS.items():
        source = f"PyPI: {spec.package}" if spec.package else f"hub: {'/'.join(spec.hub or ())}"
        tasks.add_row(name, ", ".join(spec.text), ", ".join(spec.label_names or ()), source)
    models = plain_table("Models", "name", "what it is", "where from")
    for name, model in MODELS.items():
        source = f"PyPI: {model.wheel}" if model.package else f"hub: {model.hub_id}"
        models.add_row(name, model.about, source)
    models.add_row("any other", "a hub id or a local folder", "AutoModelForSequenceClassification")
    devices = plain_table(
        "Devices", "name", "what it stands for", "memory", "trained", "uplink a round", "LoRA rank"
    )
    for name, device in DEVICES.items():
        limits = (f"{device.memory_gb:g} GB", f"{device.state_mb:g} MB", f"{device.uplink_mb:g} MB")
        devices.add_row(name, device.about, *limits, str(device.rank))
    experiments = plain_table("Experiments", "name", "tasks", "strategy", "clients", "rounds")
    for name, path in shipped_experiments().items():
        config = load_config(path)
        run, chosen = config.run, config.strategy.name
        tasks_of = ", ".join(config.data.tasks)
        experiments.add_row(name, tasks_of, chosen, str(run.clients), str(run.rounds))
    return Group(strategies, tasks, models, devices, experiments)


def plain_table(title: str, *columns: str) -> Table:
    """Return an empty table in the house style."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
