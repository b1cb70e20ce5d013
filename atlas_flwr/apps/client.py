"""The ClientApp: Message-API handlers that hand typed jobs to NumPyClient subclasses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from atlas_flwr.apps import guard  # noqa: F401 - checks, before the next lines import
from atlas_flwr.config.schema import Config
from atlas_flwr.engine.vault import Vault
from atlas_flwr.errors import WireError
from atlas_flwr.flat import from_arrays, to_arrays
from atlas_flwr.training.memory import peak_bytes, reset_peak
from atlas_flwr.training.precision import device_name, resolve_device
from atlas_flwr.types import Job, ModelParts, Report, Scalar, Update
from atlas_flwr.wire import PARTITION_ID, pack_hello, pack_update, read_job
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

app = ClientApp()

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


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say which partition this node is."""
    return Message(pack_hello(_partition(context)), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Train what is sent on the client's own rows and send it back."""
    visit = _Visit(message, context)
    job, client = visit.job, visit.client
    arrays, rows, metrics = client.fit(to_arrays(job.parts)[0], dict(job.options))
    notes = str(metrics.pop("notes", ""))
    report = visit.report(rows, metrics, tuple(notes.splitlines()))
    parts = from_arrays(arrays, client.layout)
    update = Update(job.partition, report, parts, job.sparse, client.fingerprint)
    return Message(pack_update(update), reply_to=message)


app.train()(train)
for _action in ACTIONS:
    if _action.startswith("train."):
        app.train(_action.removeprefix("train."))(train)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Score what is sent on the client's own slice, or on the task's full set."""
    visit = _Visit(message, context)
    job = visit.job
    loss, rows, metrics = visit.client.evaluate(to_arrays(job.parts)[0], {})
    report = visit.report(rows, {"loss": loss, **metrics} if rows else {})
    return Message(pack_update(Update(job.partition, report, ModelParts())), reply_to=message)


app.evaluate("experts")(evaluate)


class _Visit:
    """One job at a client: what is asked, who does it, and what it took."""

    def __init__(self, message: Message, context: Context) -> None:
        self._began = time.monotonic()
        self.job, config = _read(message, context)
        self._device = resolve_device(config.engine.device)
        reset_peak(self._device)
        site = open_site(config, self.job.partition, self.job.pool)
        root = Path(config.run.out or ".") / "vault"
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
            notes=notes,
        )


def _partition(context: Context) -> int:
    partition = context.node_config.get(PARTITION_ID)
    if not isinstance(partition, int):
        raise WireError(f"node config: {PARTITION_ID} must be an integer, got {partition!r}")
    return partition


def _read(message: Message, context: Context) -> tuple[Job, Config]:
    """Return the job and its experiment; a job for another partition is refused."""
    job, config = read_job(message.content)
    if job.partition != _partition(context):
        raise WireError(f"partition {_partition(context)} was sent partition {job.partition}'s job")
    return job, _parse(config)


@lru_cache(maxsize=4)
def _parse(config: str) -> Config:
    return Config.model_validate_json(config)
