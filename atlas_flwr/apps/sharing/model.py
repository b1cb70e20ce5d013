"""`atlas export`: one model of a run as a folder of its own, with a card."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from atlas_flwr.apps.sharing.choose import Asked, Held, Model, base_folder, choose
from atlas_flwr.data.tasks import resolve_tasks
from atlas_flwr.errors import ResultError
from atlas_flwr.models.card import METRIC_NAMES, CardFacts, Score, base_name, model_card
from atlas_flwr.models.catalog import MODELS
from atlas_flwr.models.experts import EXPERTS_FILE
from atlas_flwr.models.export import SERVES
from atlas_flwr.models.reopen import (
    ADAPTER_CONFIG,
    base_of,
    module_ranks,
    open_model,
    open_tokenizer,
    rename_classes,
    save_merged,
)
from atlas_flwr.results.record import MB
from atlas_flwr.results.store import read_extra, to_json
from atlas_flwr.results.writing import atomic_write

CARD = "README.md"
_ALL = "all validation rows"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        model: Which of the run's models.
        kind: ``"adapter"``, ``"merged"`` or ``"full"``.
        base: The base model that an adapter needs, as its folder names it; else empty.
        round: The round it is of, where the run hasn't ended.
    """

    folder: Path
    model: Model
    kind: str
    base: str
    round: int | None

    @property
    def moves(self) -> bool:
        """Whether another machine can open it: its base model, if any, is the hub's."""
        return not Path(self.base).is_absolute() if self.base else True

    def told(self) -> str:
        """Return what to print of it."""
        of = f" after round {self.round}" if self.round is not None else ""
        clients = ", ".join(map(str, self.model.clients))
        what = {
            "adapter": "PEFT adapter with its head",
            "merged": "whole model, adapter merged",
            "full": "whole model",
        }[self.kind]
        line = f"{self.model.key}{of} (clients {clients}): {what}; README.md says how to load it"
        if not self.moves:
            line += (
                f"\nIt needs the base model in {self.base}, a folder of this machine; to take it "
                "elsewhere export it with --merge"
            )
        return line


def export_model(held: Held, asked: Asked, merge: bool, out: Path | None = None) -> Exported:
    """Write one model of a run as a folder that plain transformers or PEFT opens.

    Args:
        held: The run's models.
        asked: Which one.
        merge: Merge the adapter into the base model's weights.
        out: The folder; by default ``<experiment>-<model>`` in the current one, with ``-merged``.

    Raises:
        ResultError: There is no such model, it can't be exported, or the folder isn't empty.
        ModelError: The base model can't be had.
    """
    model = choose(held, asked)
    if (model.folder / EXPERTS_FILE).exists():
        raise ResultError(
            f"{model.folder.name}: is a mixture of experts ({held.config.strategy.name}), which "
            "neither PEFT nor transformers has a layer for; atlas predict uses it where it is"
        )
    adapter = (model.folder / ADAPTER_CONFIG).exists()
    kind = "full" if not adapter else "merged" if merge else "adapter"
    name = f"{held.config.run.name}-{model.key}{'-merged' if kind == 'merged' else ''}"
    folder = (out or Path(name)).expanduser()
    ranks = module_ranks(model.folder) if adapter else {}
    labels = model.labels[model.task]
    with _new(folder) as made:
        if kind == "merged":
            opened = open_model(model.folder, base_folder(held))
            save_merged(opened, open_tokenizer(model.folder), made, labels)
        else:
            shutil.copytree(model.folder, made, dirs_exist_ok=True)
            rename_classes(made, labels)
        facts = _facts(held, model, kind, ranks, folder.name)
        atomic_write(made / CARD, model_card(facts))
        atomic_write(made / SERVES, to_json(_told(held, model), indent=2) + "\n")
    base = base_of(folder) if kind == "adapter" else ""
    return Exported(folder, model, kind, base, held.round)


@contextmanager
def _new(folder: Path) -> Iterator[Path]:
    """Give a folder beside the one asked for, which takes its place when the block is done.

    Raises:
        ResultError: Something is there already, or nothing can be written there.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        what = "is not empty" if folder.is_dir() else "is a file"
        raise ResultError(f"{folder}: {what}; name another --out")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".atlas-export-", dir=folder.parent) as name:
            made = Path(name) / "model"
            made.mkdir()
            yield made
            if folder.exists():
                folder.rmdir()
            os.replace(made, folder)
    except OSError as error:
        raise ResultError(f"{folder}: can't be written ({error.strerror or error})") from error


def _told(held: Held, model: Model) -> dict[str, Any]:
    """Return what ``atlas predict`` must know of the folder."""
    config = held.config
    specs = resolve_tasks(config.data.tasks, config.task)
    return {
        "model": model.key,
        "clients": list(model.clients),
        "labels": {task: list(names) for task, names in model.labels.items()},
        "task": model.task,
        "text": {task: list(specs[task].text) for task in model.labels},
        "max_length": config.model.max_length,
    }


def _facts(held: Held, model: Model, kind: str, ranks: Mapping[str, int], name: str) -> CardFacts:
    config, run = held.config, held.run
    specs = resolve_tasks(config.data.tasks, config.task)
    told = read_extra(run / "provenance.json")
    summary = read_extra(run / "summary.json")
    moved = summary.get("bytes", {})
    found = MODELS.get(config.model.name)
    hub = found.hub_id if found else config.model.name
    # Also a folder that this machine hasn't: the run may have been made on another.
    place = Path(hub).expanduser()
    local = hub != base_name(hub) or place.is_absolute() or place.is_dir()
    options = ", ".join(f"{k} = {json.dumps(v)}" for k, v in config.strategy.options.items())
    version = (told.get("versions") or {}).get("atlas-flwr") or "of an unknown version"
    hubs = [spec.hub[0] for task in model.labels if (spec := specs[task]).hub is not None]
    rounds = held.round if held.round is not None else summary["rounds_completed"]
    return CardFacts(
        name=name,
        base=config.model.name,
        hub_base="" if local else hub,
        kind=kind,
        labels=model.labels[model.task],
        label_task=model.task,
        tasks={task: specs[task].text for task in model.labels},
        datasets=list(dict.fromkeys(hubs)),
        clients=model.clients,
        of=config.run.clients,
        strategy=config.strategy.name,
        options=options,
        rounds=rounds,
        rounds_asked=config.run.rounds,
        seed=config.run.seed,
        ranks=ranks,
        scores=_scores(held, model),
        mb_up=moved.get("up", 0) / MB,
        mb_down=moved.get("down", 0) / MB,
        max_length=config.model.max_length,
        version=str(version),
        commit=told.get("commit"),
        notes=_notes(held, model, kind),
    )


def _notes(held: Held, model: Model, kind: str) -> list[str]:
    notes = []
    if held.round is not None:
        notes.append(f"The run had not ended: this is its model after round {held.round}.")
    if kind == "adapter" and Path(base_of(model.folder)).is_absolute():
        notes.append(
            "`adapter_config.json` names the base model by a folder of the machine that exported "
            "it. Elsewhere pass your own copy of the base model, or export with `--merge`."
        )
    if held.config.strategy.name in ("flora", "fedex"):
        notes.append(
            "The strategy merges updates into the frozen weights; this adapter is all of them as "
            "one, of their exact rank."
        )
    return notes


def _scores(held: Held, model: Model) -> list[Score]:
    """Return what the model scored at the run's end, a line a task; else on its clients' slices."""
    path = held.run / "clients.parquet"
    if not path.exists():
        return []
    columns = ["round", "partition", "task", "phase", "num_examples", "status"]
    metrics = (*METRIC_NAMES, "loss")
    rows = [
        row
        for row in pq.read_table(path, columns=[*columns, *metrics]).to_pylist()
        if row["partition"] in model.clients and row["status"] == "ok" and row["num_examples"]
    ]
    if held.round is None and (final := [row for row in rows if row["phase"] == "final"]):
        whole = "held-out training rows" if held.config.data.holdout else _ALL
        once = {row["task"]: row for row in reversed(final)}
        chosen = [(once[task], whole) for task in model.labels if task in once]
    else:
        last = held.round or max((row["round"] for row in rows), default=0)
        own = [r for r in rows if r["phase"] == "evaluate" and r["round"] == last]
        chosen = [(row, f"validation slice of client {row['partition']}") for row in own]
    return [
        Score(
            row["task"],
            row["num_examples"],
            where,
            where == _ALL,
            {name: row[name] for name in metrics if row[name] is not None},
        )
        for row, where in chosen
    ]
