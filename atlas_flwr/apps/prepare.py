"""From a config to a method's setting: what can be wrong is found before a client runs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from atlas_flwr.apps.facts import DataFacts, dealt_facts
from atlas_flwr.apps.grants import check_device_ranks, grants
from atlas_flwr.config.schema import Config
from atlas_flwr.errors import ConfigError
from atlas_flwr.models.backbone import load, longest_input
from atlas_flwr.results.trackers import check_trackers
from atlas_flwr.training.precision import choose_precision, resolve_device
from clients.site import model_spec, rank_of, starting_parts, task_specs
from strategies.base import Method, Setting
from strategies.registry import STRATEGIES, build, parse_options, widest_rank


@dataclass(frozen=True)
class Prepared:
    """A checked experiment.

    Attributes:
        method: Its method.
        label_names: Names of its tasks' classes.
        own_vaults: Partitions whose private parts lie on a disk that the server can't read.
    """

    method: Method
    label_names: dict[str, tuple[str, ...]]
    own_vaults: frozenset[int] = frozenset()


def check_names(config: Config) -> None:
    """Check what needs neither data nor weights: the strategy, its options and the tasks' names.

    Raises:
        ConfigError: A name or an option is wrong, or the pair can't work.
    """
    parse_options(config.strategy.name, config.strategy.options)
    task_specs(config)
    check_device_ranks(config)
    check_trackers(config.run.trackers)
    head = STRATEGIES[config.strategy.name].head
    if head and config.model.head not in ("auto", head):
        raise ConfigError(
            f"model.head: '{config.model.head}' with '{config.strategy.name}', whose heads are "
            f"always '{head}'; leave it out"
        )
    if config.engine.kind == "inline" and (config.engine.workers or 1) > 1:
        raise ConfigError(
            f"engine.workers: {config.engine.workers} with engine.kind = 'inline', which runs one "
            "client at a time; leave it out, or use engine.kind = 'ray'"
        )


def resolve(config: Config) -> Config:
    """Return the config with the strategy's options and heads spelled out: defaults may change.

    Raises:
        ConfigError: The strategy's name or an option is wrong.
    """
    options = parse_options(config.strategy.name, config.strategy.options)
    spelled = options.model_dump(by_alias=True)
    strategy = config.strategy.model_copy(update={"options": spelled})
    head = STRATEGIES[config.strategy.name].head or config.head_policy
    model = config.model.model_copy(update={"head": head})
    return config.model_copy(update={"strategy": strategy, "model": model})


def _check_share(config: Config) -> None:
    share = config.engine.gpus_per_client
    if share not in ("auto", 0) and not torch.cuda.is_available():
        raise ConfigError(
            f"engine.gpus-per-client: {share}, but no CUDA device is visible; leave it out"
        )


def _check_length(config: Config) -> None:
    longest = longest_input(model_spec(config))
    if longest is not None and config.model.max_length > longest:
        raise ConfigError(
            f"model.max-length: {config.model.max_length} is more than the {longest} positions of "
            f"'{config.model.name}'"
        )


def prepare(config: Config, facts: DataFacts | None = None) -> Prepared:
    """Open the data, deal the rows, read the model and build the method.

    Args:
        config: The experiment.
        facts: What is known of the rows, where clients have folders of their own.

    Raises:
        UserError: Anything that the user can mend, in one line.
    """
    check_names(config)
    choose_precision(config.train.precision, resolve_device(config.engine.device))
    _check_share(config)
    _check_length(config)
    tasks = tuple(config.task_of(p) for p in range(config.run.clients))
    facts = facts or dealt_facts(config)
    opened, rows = facts.tasks, facts.rows
    ranks = tuple(rank_of(config, p) for p in range(config.run.clients))
    spaces = {(opened[task].num_labels, rank) for task, rank in zip(tasks, ranks, strict=True)}
    lora = config.model.adaptation == "lora"
    widest = widest_rank(config.strategy.name, config.strategy.options) if lora else 0
    if widest:
        spaces |= {(task.num_labels, widest) for task in opened.values()}
    batches = (math.ceil(n.train / config.train.batch_size) for n in rows)
    model = load(model_spec(config), opened[tasks[0]].num_labels, config.run.seed).model
    setting = Setting(
        tasks=tasks,
        num_labels={name: task.num_labels for name, task in opened.items()},
        ranks=ranks if lora else (),
        steps=tuple(config.train.local_epochs * n for n in batches),
        head_policy=config.head_policy,
        seed=config.run.seed,
        initial={space: starting_parts(config, *space) for space in sorted(spaces)},
        scales={rank: config.scale_of(rank) for rank in range(1, widest + 1)},
        grants=grants(config, facts),
        fraction=config.run.fraction,
        rounds=config.run.rounds,
        adjusts=config.train.logit_adjustment > 0,
        rows=rows if facts.dealt else (),
        features=int(model.config.hidden_size),
    )
    method = build(config.strategy.name, config.strategy.options, setting)
    names = {name: task.label_names for name, task in opened.items()}
    return Prepared(method, names, facts.own_vaults)
