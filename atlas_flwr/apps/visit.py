"""What a job needs at a client: its model, rows and disk; torch loads here, not at a greeting."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from flwr.app import Message

from atlas_flwr.apps.home import Home
from atlas_flwr.config.schema import Config
from atlas_flwr.data.folder import holds_full
from atlas_flwr.engine.vault import Vault
from atlas_flwr.errors import WireError
from atlas_flwr.flat import from_arrays, to_arrays
from atlas_flwr.training.memory import memory_given_back, peak_bytes, reset_peak
from atlas_flwr.training.precision import choose_precision, device_name, resolve_device
from atlas_flwr.types import Job, Report, Scalar, Update
from atlas_flwr.wire import pack_update, read_job
from clients.base import FineTuneClient, Stores
from clients.choosing import ChoosingClient, ScoringClient
from clients.core import CoreClient
from clients.ditto import DittoClient
from clients.experts import ExpertsClient
from clients.fingerprint import FingerprintClient
from clients.full import FullClient
from clients.gradient import GradientClient
from clients.lora import LoraClient
from clients.pruning import PruningClient
from clients.site import open_site
from clients.sparse import SparseClient

CLIENTS: dict[str, type[FineTuneClient]] = {"lora": LoraClient, "full": FullClient}
# Named actions of methods whose clients do more than train what they are sent.
ACTIONS: dict[str, type[FineTuneClient]] = {
    "evaluate.experts": ExpertsClient,
    "train.choose": ChoosingClient,
    "train.core": CoreClient,
    "train.ditto": DittoClient,
    "train.experts": ExpertsClient,
    "train.fingerprint": FingerprintClient,
    "train.gradient": GradientClient,
    "train.prune": PruningClient,
    "train.score": ScoringClient,
    "train.sparse": SparseClient,
}


@memory_given_back()
def train(message: Message, home: Home) -> Message:
    """Train what is sent on the client's own rows and send it back."""
    visit = _Visit(message, home)
    job, client = visit.job, visit.client
    arrays, rows, metrics = client.fit(to_arrays(job.parts)[0], dict(job.options))
    notes = str(metrics.pop("notes", ""))
    report = visit.report(rows, metrics, tuple(notes.splitlines()))
    parts = from_arrays(arrays, client.layout)
    update = Update(job.partition, report, parts, job.sparse, client.fingerprint)
    return Message(pack_update(update, job), reply_to=message)


@memory_given_back()
def evaluate(message: Message, home: Home) -> Message:
    """Score what is sent on the client's own slice, or on the task's whole evaluation set."""
    visit = _Visit(message, home)
    job = visit.job
    loss, rows, metrics = visit.client.evaluate(to_arrays(job.parts)[0], {})
    notes: tuple[str, ...] = ()
    if job.rows == "full" and home.data is not None and not holds_full(home.data):
        notes = ("holds no full evaluation set: the model is scored on the client's own rows",)
    report = visit.report(rows, {"loss": loss, **metrics} if rows else {}, notes)
    return Message(pack_update(Update(job.partition, report), job), reply_to=message)


class _Visit:
    """One job at a client: what is asked, who does it, and what it took."""

    def __init__(self, message: Message, home: Home) -> None:
        self._began = time.monotonic()
        self.job, config = _read(message, home.partition)
        self._device = resolve_device(config.engine.device)
        self._precision = choose_precision(config.train.precision, self._device)
        reset_peak(self._device)
        site = open_site(config, self.job.partition, self.job.pool, home.data)
        root = vault_root(config, home)
        private, carried = (Vault(root, self.job.partition, shelf) for shelf in ("", "carried"))
        client = ACTIONS.get(self.job.action, CLIENTS[config.model.adaptation])
        self.client = client(site, self.job, Stores(private, carried))

    def report(
        self, rows: int, metrics: Mapping[str, Scalar], notes: tuple[str, ...] = ()
    ) -> Report:
        """Return what the client says of the job, timed and measured until now."""
        return Report(
            num_examples=rows,
            metrics={name: float(value) for name, value in metrics.items()},
            seconds=time.monotonic() - self._began,
            peak_memory_bytes=peak_bytes(self._device),
            device=device_name(self._device),
            precision=self._precision,
            notes=notes,
        )


def vault_root(config: Config, home: Home) -> Path:
    """Return the folder of a run's vaults: in the run directory, or on the client's own disk.

    One's own disk serves many runs, so each has a folder there. Its name follows from the run's
    name, directory and seed, and not from Flower's number of it: a run that is resumed has a new
    one.
    """
    if home.vault is None:
        return Path(config.run.out or ".") / "vault"
    told = json.dumps([config.run.name, config.run.out, config.run.seed])
    digest = hashlib.sha256(told.encode()).hexdigest()[:12]
    return home.vault / f"{config.run.name}-{digest}"


def _read(message: Message, partition: int) -> tuple[Job, Config]:
    """Return the job and its experiment; a job for another partition is refused."""
    job, config = read_job(message.content)
    if job.partition != partition:
        raise WireError(f"partition {partition} was sent partition {job.partition}'s job")
    return job, _parse(config)


@lru_cache(maxsize=4)
def _parse(config: str) -> Config:
    return Config.model_validate_json(config)
