"""`engine.gpus-per-client = "auto"`: one client is measured, and a plan made for all."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import atlas_flwr
from atlas_flwr import host
from atlas_flwr.config.load import dump_config
from atlas_flwr.config.schema import Config
from atlas_flwr.engine.autopilot import Need, Plan, Room, plan
from atlas_flwr.errors import ConfigError, ModelError, RunFailed
from atlas_flwr.models.backbone import load
from atlas_flwr.models.footprint import predicted
from atlas_flwr.results.store import to_json
from atlas_flwr.results.writing import atomic_write
from atlas_flwr.training.memory import CONTEXT_BYTES
from clients.site import model_spec
from strategies.base import Setting

AUTOPILOT = "autopilot.json"
MB = 10**6
_SECONDS = 600.0
_T4_MB = 15_000.0  # a T4's 16 GB less what its driver keeps


@dataclass(frozen=True)
class Shares:
    """How a run's clients share the machine.

    Attributes:
        workers: Clients at a time.
        fraction: Each one's share of a GPU; 0: none.
        micro_batch: Rows passed at once; None: as the config says.
        told: What to say at the start, a line each.
    """

    workers: int
    fraction: float
    micro_batch: int | None = None
    told: tuple[str, ...] = ()


def workers_of(config: Config) -> int:
    """Return how many clients the processor has room for at a time."""
    fit = max(1, host.cores() // config.engine.threads)
    return min(config.run.clients, config.engine.workers or fit)


def shares(config: Config, out: Path) -> Shares:
    """Return how the clients share the GPUs, measured where ``gpus-per-client`` is "auto".

    On a CPU, and where the share is given, nothing is measured. What was measured and chosen is
    written to ``autopilot.json`` in the run directory.

    Args:
        config: The experiment, for Flower's Ray engine.
        out: The run directory.

    Raises:
        ConfigError: One client doesn't fit with a single row.
        RunFailed: The measurement broke.
    """
    workers, share = workers_of(config), config.engine.gpus_per_client
    (out / AUTOPILOT).unlink(missing_ok=True)  # of an earlier session, on another machine perhaps
    if share != "auto":
        return Shares(workers, float(share))
    if config.engine.device == "cpu" or not torch.cuda.is_available():
        return Shares(workers, 0.0)
    measured = measured_apart(config)
    chosen = plan_of(measured, config)
    told = {"measured": measured, "chosen": asdict(chosen)}
    atomic_write(out / AUTOPILOT, to_json(told, indent=2) + "\n")
    smaller = chosen.micro_batch < measured["batch"]
    micro = chosen.micro_batch if smaller else None
    return Shares(chosen.workers, chosen.fraction, micro, chosen.reasons)


def plan_of(measured: Mapping[str, Any], config: Config) -> Plan:
    """Return the plan for what the probe measured.

    Raises:
        ConfigError: One client doesn't fit with a single row.
    """
    need = Need(
        peak_mb=measured["peak_mb"],
        base_mb=measured["base_mb"],
        batch=measured["measured_batch"],
        host_mb=measured["host_mb"],
        wanted=measured["batch"],
    )
    room = Room(
        free_mb=measured["free_mb"],
        total_mb=measured["total_mb"],
        gpus=max(1, measured["gpus"]),
        cpus=workers_of(config),
        host_mb=measured["host_free_mb"],
    )
    return plan(need, room, config.run.clients)


def measured_apart(config: Config) -> dict[str, Any]:
    """Measure the largest client in a process of its own, which gives everything back at its end.

    Raises:
        RunFailed: It broke; the message has its last line.
    """
    here = str(Path(atlas_flwr.__file__).resolve().parent.parent)
    with tempfile.TemporaryDirectory(prefix="atlas-") as folder:
        file = Path(folder) / "config.toml"
        file.write_text(dump_config(config), encoding="utf-8")
        threads = {"OMP_NUM_THREADS": str(config.engine.threads)}
        # Not the current folder first on the path, which may have a `clients` of its own.
        code = (
            f"import sys, runpy; sys.path.append({here!r}); "
            f"sys.argv = ['probe', {str(file)!r}]; "
            "runpy.run_module('atlas_flwr.apps.autopilot_probe', run_name='__main__')"
        )
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-c", code],
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
                env={**os.environ, **threads},
            )
        except subprocess.TimeoutExpired as error:
            raise RunFailed(_broke(f"no end after {_SECONDS:.0f} s")) from error
    if done.returncode:
        said = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise RunFailed(_broke(said))
    for line in reversed(done.stdout.splitlines()):  # libraries print at their end, too
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                measured: dict[str, Any] = json.loads(line)
                return measured
    raise RunFailed(_broke("it told nothing"))


def _broke(why: str) -> str:
    return (
        f"engine.gpus-per-client: measuring one client failed ({why}); set a share such as 0.5 "
        "instead of 'auto'"
    )


# ------------------------------------------------------------------ before anything is measured


def foreseen(config: Config, setting: Setting) -> str:
    """Return a line on where clients would run, and how they would share a GPU.

    Predicted by the memory model at ``model.max-length`` tokens, for a run measures one client
    itself. Where there is no GPU it tells of one of 15 GB.

    Args:
        config: The experiment.
        setting: Its clients, with what each may train.
    """
    workers, share = workers_of(config), config.engine.gpus_per_client
    if config.engine.kind == "inline":
        return "one client at a time"
    here = config.engine.device != "cpu" and torch.cuda.is_available()
    if share != "auto":
        return f"{share:g} of a GPU for each client, {workers} at a time"
    on_cpu = f"{_count(workers)} at a time on the CPU"
    if config.engine.device == "cpu":
        return on_cpu
    try:
        need = _predicted(config, setting)
    except ModelError:
        return f"{on_cpu}; what a GPU would hold can't be predicted" if not here else "measured"
    free, total = torch.cuda.mem_get_info() if here else (_T4_MB * MB, _T4_MB * MB)
    gpus = torch.cuda.device_count() if here else 1
    room = Room(free / MB, total / MB, gpus, workers, host.memory().available / MB)
    try:
        text = "; ".join(plan(need, room, config.run.clients).reasons)
    except ConfigError as error:
        text = str(error)
    if here:
        return f"predicted, before the run measures one client: {text}"
    return f"{on_cpu}; on a GPU of 15 GB, predicted: {text}"


def _predicted(config: Config, setting: Setting) -> Need:
    """Return what the memory model says of the largest client on a GPU.

    Raises:
        ModelError: The model's shape is not known.
    """
    labels = max(setting.num_labels.values())
    loaded = load(model_spec(config), labels, config.run.seed)
    grants = setting.grants
    weights = sum(parameter.numel() for parameter in loaded.weights.values())
    memory = predicted(
        loaded,
        config.train.batch_size,
        config.model.max_length,
        adapter=max((grant.params for grant in grants), default=weights),
        ranks=max((grant.ranks for grant in grants), default=0),
        device="cuda",
    )
    peak = (memory.total + CONTEXT_BYTES) / MB
    return Need(peak, peak - memory.activations / MB, config.train.batch_size)


def _count(clients: int) -> str:
    return "one client" if clients == 1 else f"{clients} clients"
