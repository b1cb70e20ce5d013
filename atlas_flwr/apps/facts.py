"""What the server must know of the clients' rows: from the data it deals, or from their greetings.

Numbers of rows and names of classes, never rows. In a deployment whose clients read folders of
their own, nothing else of the data reaches the server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from atlas_flwr.config.schema import Config
from atlas_flwr.data.tasks import mapped_names
from atlas_flwr.errors import ConfigError
from atlas_flwr.holding import Holding
from clients.site import deal, open_task, task_specs
from strategies.state import Rows


@dataclass(frozen=True)
class TaskFacts:
    """A task's classes: how many, and their names."""

    num_labels: int
    label_names: tuple[str, ...]


@dataclass(frozen=True)
class DataFacts:
    """The clients' data as the server knows them.

    Attributes:
        tasks: The tasks' classes.
        rows: Each partition's rows; the whole set counts as 0 where only clients can know.
        longest: Tokens of each partition's longest training row, or a bound on them.
        dealt: Whether the server dealt the rows itself.
        own_vaults: Partitions whose private parts lie on a disk that the server can't read.
    """

    tasks: Mapping[str, TaskFacts]
    rows: tuple[Rows, ...]
    longest: tuple[int, ...]
    dealt: bool = True
    own_vaults: frozenset[int] = frozenset()


def dealt_facts(config: Config, own_vaults: frozenset[int] = frozenset()) -> DataFacts:
    """Open the data and deal the rows.

    Raises:
        UserError: The data can't be had, or have too few rows.
    """
    names = [config.task_of(p) for p in range(config.run.clients)]
    opened = {name: open_task(config, name) for name in config.data.tasks}
    shards = [deal(config, name)[p] for p, name in enumerate(names)]
    return DataFacts(
        tasks={n: TaskFacts(task.num_labels, task.label_names) for n, task in opened.items()},
        rows=tuple(Rows(*map(len, (s.train, s.evaluation, s.full_evaluation))) for s in shards),
        longest=tuple(
            int(opened[name].train.lengths[s.train].max(initial=0))
            for name, s in zip(names, shards, strict=True)
        ),
        own_vaults=own_vaults,
    )


def facts_of(config: Config, held: Mapping[int, Holding]) -> DataFacts:
    """Return what the server knows once all clients have been greeted.

    Args:
        config: The experiment.
        held: What each partition says it holds.

    Raises:
        ConfigError: Some clients have rows of their own and others none, two disagree on a task's
            classes, nobody names them, or the strategy pools what can't be pooled.
        UserError: The rows are dealt, and the data can't be had.
    """
    vaults = frozenset(p for p, holding in held.items() if holding.own_vault)
    own = [p for p, holding in sorted(held.items()) if holding.own_rows]
    if not own:
        return dealt_facts(config, vaults)
    if without := sorted(held.keys() - own):
        raise ConfigError(
            f"data-path: partitions {own} read folders of their own, partitions {without} have "
            "none; give every SuperNode a data-path, or none"
        )
    if config.strategy.name == "centralised":
        raise ConfigError(
            "strategy.name: 'centralised' pools the clients' rows, which stay in their folders "
            "here; run it with atlas run"
        )
    return DataFacts(
        tasks={name: _classes(config, name, held) for name in config.data.tasks},
        rows=tuple(Rows(held[p].train_rows, held[p].score_rows, 0) for p in sorted(held)),
        longest=(config.model.max_length,) * len(held),  # their rows are cut there
        dealt=False,
        own_vaults=vaults,
    )


def _classes(config: Config, name: str, held: Mapping[int, Holding]) -> TaskFacts:
    """Return a task's classes, on which its clients and the config must agree."""
    spec = task_specs(config)[name]
    known = spec.label_names
    if known is not None and spec.label_map is not None:
        known = mapped_names(known, spec.label_map)
    says = "the task" if known is not None else ""
    for partition in config.partitions_of(name):
        holding = held[partition]
        if holding.task not in ("", name):
            raise ConfigError(
                f"data-path: partition {partition} holds rows of task '{holding.task}', the "
                f"experiment gives it '{name}'"
            )
        if not holding.labels:
            continue
        if known is not None and holding.labels != known:
            raise ConfigError(
                f"data-path: partition {partition} has the labels {list(holding.labels)} of task "
                f"'{name}', {says} has {list(known)}"
            )
        known, says = holding.labels, says or f"partition {partition}"
    if known is None:
        raise ConfigError(
            f"data-path: no client of task '{name}' names its classes; write them into the "
            "folder's shard.json"
        )
    return TaskFacts(len(known), known)
