"""The distinct models of a finished run, as folders that plain PEFT and transformers open."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from atlas_flwr.aggregation.delta import as_one
from atlas_flwr.apps.prepare import Prepared
from atlas_flwr.config.schema import Config
from atlas_flwr.engine.vault import Vault
from atlas_flwr.models.backbone import load
from atlas_flwr.models.experts import save_experts
from atlas_flwr.models.export import SERVES, save_adapter, save_full
from atlas_flwr.results.store import to_json
from atlas_flwr.results.writing import atomic_write
from atlas_flwr.types import ModelParts
from clients.base import folded
from clients.site import model_spec
from strategies.base import Served, State


def export_models(
    config: Config, prepared: Prepared, state: State, out: Path, run: Path | None = None
) -> list[Path]:
    """Write each distinct model once, under ``adapters/<key>`` or ``models/<key>``.

    A key that serves tasks of several label spaces can't exist; one head over tasks of the same
    size takes the label names of the first. Parts that only a client holds are read from its
    vault in the run directory; in a deployment they stay with the client, and so does its model.
    ``atlas.json`` in each folder says which clients it serves, and the label names of their tasks.

    Args:
        config: The experiment.
        prepared: Its method and label names.
        state: The last state.
        out: Where the folders are written.
        run: The run directory, where it isn't ``out``.

    Returns:
        The folders written.
    """
    setting = prepared.method.setting
    folders: dict[str, Path] = {}
    clients: dict[str, list[int]] = {}
    for partition, task in enumerate(setting.tasks):
        served = prepared.method.model_for(state, partition)
        clients.setdefault(served.key, []).append(partition)
        if served.key in folders or (served.private and partition in prepared.own_vaults):
            continue
        parts = _whole(served, run or out, partition, setting.initial_for(partition))
        loaded = load(model_spec(config), setting.num_labels[task], config.run.seed)
        labels = prepared.label_names[task]
        if parts.adapter:
            folder = out / "adapters" / served.key
            save_adapter(folder, loaded, parts, labels)
            if parts.weights:  # a mixture of experts: the folder says what PEFT can't open
                save_experts(folder, parts.weights)
        else:
            folder = out / "models" / served.key
            save_full(folder, loaded, parts, labels)
        folders[served.key] = folder
    for key, folder in folders.items():
        tasks = dict.fromkeys(setting.tasks[partition] for partition in clients[key])
        names = {task: list(prepared.label_names[task]) for task in tasks}
        served_by = {"model": key, "clients": clients[key], "labels": names}
        atomic_write(folder / SERVES, to_json(served_by, indent=2) + "\n")
    return list(folders.values())


def _whole(served: Served, out: Path, partition: int, initial: ModelParts) -> ModelParts:
    """Return a model with the parts its client keeps put in."""
    parts = served.parts
    if served.private:
        kept = Vault(out / "vault", partition).load(served.since) if served.since else initial
        parts = parts.filled(kept.only(*served.private))
    parts = folded(parts)
    adapter = {m: f.astype(np.float32) for m, f in as_one(parts.adapter, parts.delta).items()}
    return replace(parts, adapter=adapter, delta={})
