"""From an experiment to what one client finds at home; opened once per process and experiment."""

from __future__ import annotations

from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from atlas_flwr.config.schema import Config
from atlas_flwr.data.folder import open_folder
from atlas_flwr.data.shards import Shard, deal_task
from atlas_flwr.data.tasks import TaskSpec, resolve_tasks
from atlas_flwr.data.tokenised import TokenisedTask, open_tokenised
from atlas_flwr.errors import DataError
from atlas_flwr.models.adapter_io import initial_parts
from atlas_flwr.models.backbone import ModelSpec, load, load_tokenizer, tokenizer_digest
from atlas_flwr.training.local import TrainSpec
from atlas_flwr.types import ModelParts
from clients.base import Site

# No gradients are kept, so more rows fit than in training; on a CPU larger batches are slower.
_EVAL_BATCH_FACTOR = 2


def model_spec(config: Config) -> ModelSpec:
    """Return which model the experiment adapts, and how."""
    return ModelSpec(
        config.model.name, config.model.adaptation, config.lora.targets, config.lora.dropout
    )


def train_spec(config: Config) -> TrainSpec:
    """Return how the experiment's clients train."""
    return TrainSpec(
        epochs=config.train.local_epochs,
        batch_size=config.train.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.train.weight_decay,
        max_grad_norm=config.train.max_grad_norm,
        precision=config.train.precision,
        device=config.engine.device,
        threads=config.engine.threads,
        micro_batch=config.engine.micro_batch,
        logit_adjustment=config.train.logit_adjustment,
        own_offset=config.train.own_offset,
    )


def task_specs(config: Config) -> dict[str, TaskSpec]:
    """Return the experiment's tasks by name, in its order.

    Raises:
        ConfigError: A task is unknown or wrongly described.
    """
    return resolve_tasks(config.data.tasks, config.task)


def open_task(config: Config, name: str) -> TokenisedTask:
    """Return a task's tokenised rows, from the cache on disk after the first time.

    Raises:
        DataError: The rows can't be had or are wrong.
    """
    return open_tokenised(
        task_specs(config)[name],
        load_tokenizer(model_spec(config)),
        tokenizer_digest(config.model.name),
        config.model.max_length,
        config.data.root,
        config.run.seed,
    )


def deal(config: Config, name: str) -> dict[int, Shard]:
    """Return the rows of each client of a task.

    Raises:
        DataError: The task has too few rows for its clients.
    """
    partitions = config.partitions_of(name)
    return deal_task(open_task(config, name), partitions, config.data, config.run.seed, name)


def starting_parts(config: Config, num_labels: int, rank: int, draw: int = 0) -> ModelParts:
    """Return the seeded model that clients of one label space and base rank start from.

    Args:
        config: The experiment.
        num_labels: Labels of the task.
        rank: The client's base rank, 0 under full fine-tuning.
        draw: Which draw of the factors, for methods that start them afresh.

    Raises:
        ConfigError: An ending of ``lora.rank-pattern`` matches no adapted module.
        ModelError: The model can't be had.
    """
    spec, seed = model_spec(config), config.run.seed
    modules = load(spec, num_labels, seed).backbone.shapes if rank else ()
    ranks = config.module_ranks(rank, modules)
    scales = {module: config.scale_of(r) for module, r in ranks.items()}
    by_module = tuple(ranks.items()), tuple(scales.items())
    return _initial_parts(spec, num_labels, *by_module, seed, draw)


def rank_of(config: Config, partition: int) -> int:
    """Return a client's LoRA rank, 0 under full fine-tuning."""
    return config.rank_of(partition) if config.model.adaptation == "lora" else 0


@lru_cache(maxsize=16)
def _initial_parts(
    spec: ModelSpec,
    num_labels: int,
    ranks: tuple[tuple[str, int], ...],
    scales: tuple[tuple[str, float], ...],
    seed: int,
    draw: int,
) -> ModelParts:
    """Keep what was drawn: `initial_parts` of ranks and scales by module."""
    return initial_parts(spec, num_labels, dict(ranks), dict(scales), seed, draw)


def open_own(config: Config, partition: int, folder: Path) -> tuple[TokenisedTask, Shard]:
    """Return the rows of a client that reads a folder of its own, and what each is for.

    Raises:
        DataError: The folder is missing, of another task or partition, or its rows are wrong.
    """
    return open_folder(
        folder,
        task_specs(config)[config.task_of(partition)],
        partition,
        load_tokenizer(model_spec(config)),
        tokenizer_digest(config.model.name),
        config.model.max_length,
    )


def open_site(
    config: Config, partition: int, pool: tuple[int, ...] = (), folder: Path | None = None
) -> Site:
    """Return what the partition finds at home.

    Args:
        config: The experiment.
        partition: Who.
        pool: Partitions whose training rows are used together; empty means its own.
        folder: The client's own rows; None where the run's data are dealt.

    Raises:
        UserError: The model or the rows can't be had, or the pool's are in others' folders.
    """
    if folder is not None and pool:
        raise DataError(
            f"data-path: partition {partition} can't read the rows of partitions {list(pool)}; "
            f"'{config.strategy.name}' pools them, which only a simulation can"
        )
    if folder is not None:
        task, own = open_own(config, partition, folder)
        rows = own.train
    else:
        name = config.task_of(partition)
        task, shards = open_task(config, name), deal(config, name)
        own = shards[partition]
        rows = np.concatenate([shards[p].train for p in pool]) if pool else own.train
    return Site(
        model=load(model_spec(config), task.num_labels, config.run.seed),
        initial=partial(starting_parts, config, task.num_labels, rank_of(config, partition)),
        train_table=task.train,
        train_rows=rows,
        score_table=task.train if own.evaluation_table == "train" else task.validation,
        own_rows=own.evaluation,
        full_rows=own.full_evaluation,
        spec=train_spec(config),
        eval_batch_size=_EVAL_BATCH_FACTOR * config.train.batch_size,
        seed=config.run.seed,
    )
