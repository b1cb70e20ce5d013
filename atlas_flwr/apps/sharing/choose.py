"""Which models a run directory holds, whom they serve, and the one that a command line names."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.parquet as pq
from pyarrow import ArrowException

from atlas_flwr.config.load import load_config
from atlas_flwr.config.schema import Config
from atlas_flwr.data.tasks import mapped_names, resolve_tasks
from atlas_flwr.errors import ResultError, did_you_mean
from atlas_flwr.models.catalog import locate
from atlas_flwr.models.export import SERVES
from atlas_flwr.results.watch import runs_below

_WHICH = "name one with --client, --cluster, --task or --global"


@dataclass(frozen=True)
class Asked:
    """Which model a command line asks for; at most one of them is given.

    Attributes:
        client: The model of a client.
        cluster: The model of a cluster.
        task: The model of a task.
        everybody: The one model of all clients.
    """

    client: int | None = None
    cluster: int | None = None
    task: str | None = None
    everybody: bool = False

    def words(self) -> list[str]:
        """Return what was asked as it is typed."""
        pairs = (("client", self.client), ("cluster", self.cluster), ("task", self.task))
        said = [f"--{name} {value}" for name, value in pairs if value is not None]
        return [*said, *(["--global"] if self.everybody else [])]


@dataclass(frozen=True)
class Model:
    """One distinct model of a run.

    Attributes:
        key: Its name: ``global``, ``task-…``, ``cluster-…`` or ``client-…``.
        folder: Where it lies.
        clients: Partitions it serves.
        labels: Class names by task, of those clients' tasks.
        task: The task whose class names it is to have.
    """

    key: str
    folder: Path
    clients: tuple[int, ...]
    labels: Mapping[str, tuple[str, ...]]
    task: str


@dataclass(frozen=True)
class Held:
    """A run's models.

    Attributes:
        run: The run directory.
        config: Its experiment.
        models: Its distinct models by name.
        clusters: Each client's cluster; empty without clusters.
        round: The round they are of, where the run hasn't ended.
    """

    run: Path
    config: Config
    models: Mapping[str, Model]
    clusters: Mapping[int, int]
    round: int | None = None


@contextmanager
def held_models(run: Path) -> Iterator[Held]:
    """Give the models of a run: those it exported, or of one that hasn't ended, its last commit's.

    Raises:
        ResultError: There is no run, or nothing of it can be exported.
    """
    if not (run / "config.toml").is_file():
        what = "holds no run (no config.toml) and no model (no config.json)"
        raise ResultError(f"{run}: {what}{runs_below(run)}")
    config = load_config(run / "config.toml")
    if _status(run) == "completed":
        yield _held(run, run, config)
        return
    with tempfile.TemporaryDirectory(prefix="atlas-export-") as name:
        # Imported here: torch and Flower load for seconds, and finished runs need neither.
        from atlas_flwr.apps.sharing.commit import export_last_commit  # noqa: PLC0415

        number = export_last_commit(run, Path(name))
        yield replace(_held(run, Path(name), config), round=number)


def choose(held: Held, asked: Asked) -> Model:
    """Return the one model that serves whom the command line names.

    Raises:
        ResultError: Nobody like that is there, or they have several models.
    """
    words = asked.words()
    if len(words) > 1:
        raise ResultError(f"{' '.join(words)}: name one of them")
    clients = _clients_asked(held, asked)
    keys = {key for key, m in held.models.items() if clients & set(m.clients)}
    lost = sorted(clients - {p for m in held.models.values() for p in m.clients})
    said = words[0] if words else str(held.run)
    if lost and len(lost) == len(clients):
        raise ResultError(
            f"{said}: the model of client {lost[0]} is not in {held.run}: it keeps parts of it on "
            "its own disk"
        )
    if len(keys) > 1:
        each = ", ".join(sorted(keys, key=_natural))
        raise ResultError(f"{said}: has {len(keys)} models ({each}); {_mend(asked)}")
    model = held.models[keys.pop()]
    task = asked.task or held.config.task_of(min(clients & set(model.clients)))
    return replace(model, task=task)


def _clients_asked(held: Held, asked: Asked) -> set[int]:
    """Return the partitions that the words mean."""
    config = held.config
    everybody = set(range(config.run.clients))
    if asked.client is not None:
        if asked.client not in everybody:
            raise ResultError(
                f"--client {asked.client}: the run has clients 0 to {config.run.clients - 1}"
            )
        return {asked.client}
    if asked.cluster is not None:
        found = sorted(set(held.clusters.values()))
        if asked.cluster not in found:
            there = f"clusters {', '.join(map(str, found))}" if found else "no clusters"
            raise ResultError(f"--cluster {asked.cluster}: the run has {there}")
        return {p for p, cluster in held.clusters.items() if cluster == asked.cluster}
    if asked.task is not None:
        if asked.task not in config.data.tasks:
            near = did_you_mean(asked.task, config.data.tasks)
            raise ResultError(
                f"--task {asked.task}: no such task{near}; the run has "
                f"{', '.join(config.data.tasks)}"
            )
        return set(config.partitions_of(asked.task))
    return everybody


def _mend(asked: Asked) -> str:
    if asked.words():
        return "name one with --client"
    return _WHICH


def base_folder(held: Held) -> str:
    """Return where this machine has the run's base model: a folder or a hub id."""
    return locate(held.config.model.name)


def _held(run: Path, exported: Path, config: Config) -> Held:
    """Read which models lie below a folder."""
    clusters = _clusters(run)
    folders = [*exported.glob("adapters/*/config.json"), *exported.glob("models/*/config.json")]
    models = {}
    for folder in sorted((path.parent for path in folders), key=lambda path: _natural(path.name)):
        clients, labels = _serves(folder, config, clusters)
        if clients:
            task = config.task_of(clients[0])
            models[folder.name] = Model(folder.name, folder, clients, labels, task)
    if not models:
        # Only a finished run, or a commit's folder that was written whole, comes here.
        raise ResultError(
            f"{run}: its models are gone (no adapters/ and no models/); run it again with: atlas "
            f"run {run / 'config.toml'} --out FOLDER"
        )
    return Held(run, config, models, clusters)


def _serves(
    folder: Path, config: Config, clusters: Mapping[int, int]
) -> tuple[tuple[int, ...], dict[str, tuple[str, ...]]]:
    """Return whom a model serves, and their tasks' class names: as it says, or by its name."""
    told = folder / SERVES
    if told.exists():
        try:
            found = json.loads(told.read_text(encoding="utf-8"))
            labels = {str(t): tuple(map(str, names)) for t, names in found["labels"].items()}
            return tuple(int(p) for p in found["clients"]), labels
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ResultError(f"{told}: can't be read ({error})") from error
    everybody = range(config.run.clients)
    clients = tuple(p for p in everybody if _is_named(folder.name, p, config, clusters))
    specs = resolve_tasks(config.data.tasks, config.task)
    own = _class_names(folder)
    labels = {}
    for task in dict.fromkeys(config.task_of(p) for p in clients):
        known, spec = specs[task].label_names, specs[task]
        if known is not None and spec.label_map is not None:
            known = mapped_names(known, spec.label_map)
        labels[task] = known if known is not None and len(known) == len(own) else own
    return clients, labels


def _is_named(key: str, partition: int, config: Config, clusters: Mapping[int, int]) -> bool:
    """Tell whether a model's name is that of a partition's (runs that have no ``atlas.json``)."""
    stem, _, rank = key.partition("-rank-")
    if rank and str(config.rank_of(partition)) != rank:
        return False
    cluster = re.fullmatch(r"cluster-(\d+)(-labels-\d+)?", stem)
    if cluster:
        return clusters.get(partition) == int(cluster[1])
    return stem in ("global", f"task-{config.task_of(partition)}", f"client-{partition}")


def _class_names(folder: Path) -> tuple[str, ...]:
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{folder / 'config.json'}: can't be read ({error})") from error
    names = told.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(names[str(i)] for i in range(len(names)))


def _clusters(run: Path) -> dict[int, int]:
    """Return each client's last cluster."""
    path = run / "clients.parquet"
    if not path.exists():
        return {}
    try:
        rows = pq.read_table(path, columns=["partition", "cluster"]).to_pylist()
    except (OSError, ArrowException) as error:
        raise ResultError(f"{path}: can't be read ({str(error).splitlines()[0]})") from error
    return {row["partition"]: row["cluster"] for row in rows if row["cluster"] is not None}


def _status(run: Path) -> str | None:
    try:
        return str(json.loads((run / "summary.json").read_text(encoding="utf-8"))["status"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ResultError(f"{run / 'summary.json'}: can't be read ({error})") from error


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort names with numbers as people do."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
