"""What the guide's functions share: a config from plain arguments, a run that goes on, its lines.

Nothing is trained here: `run_or_go_on` is what ``atlas run --resume auto`` does.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from atlas_flwr.apps.going import mend
from atlas_flwr.apps.prepare import check_names, resolve
from atlas_flwr.apps.resume import check_engine, check_same, find_run, status_of, stored_config
from atlas_flwr.apps.run import run_experiment
from atlas_flwr.config.load import build_config, with_out
from atlas_flwr.config.schema import Config
from atlas_flwr.errors import ConfigError, ResultError, RunStopped, did_you_mean
from atlas_flwr.results.record import MB
from atlas_flwr.results.store import RunResult, read_run

Names = str | Sequence[str]
Ranks = int | Sequence[int]

ATLAS_SET = "ATLAS_SET"
ROUND_KEYS = (
    *("round", "accuracy", "loss", "train_loss", "time_seconds", "memory_mb"),
    "communication_mb",
)


@dataclass(frozen=True)
class Size:
    """How much one experiment does.

    Attributes:
        rounds: Rounds.
        clients: Clients.
        samples: Training rows of each client.
        batch: Rows of a batch; None: 8 for full fine-tuning, 16 for LoRA.
    """

    rounds: int
    clients: int
    samples: int
    batch: int | None = None


SIZES: Mapping[str, Size] = {
    "default": Size(5, 5, 300),
    "fast": Size(3, 3, 200, 16),
    "very fast": Size(2, 3, 100),
}


def size_named(name: str) -> Size:
    """Return a size by its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in SIZES:
        near = did_you_mean(name, SIZES)
        raise ConfigError(f"size: unknown size '{name}'{near}; known: {', '.join(SIZES)}")
    return SIZES[name]


def sections_of(
    name: str, model: str, tasks: Names, clients: int, ranks: Ranks | None
) -> dict[str, dict[str, Any]]:
    """Return the sections of an experiment file that all functions here fill alike."""
    full = ranks is None
    several = not (full or isinstance(ranks, int))
    sections: dict[str, dict[str, Any]] = {
        "run": {"name": name, "clients": clients},
        "model": {"name": str(model), "adaptation": "full" if full else "lora"},
        "data": {"tasks": [tasks] if isinstance(tasks, str) else list(tasks)},
        "strategy": {"name": "fedavg" if full else "flexlora" if several else "fedit"},
        "train": {},
        "engine": {},
    }
    if ranks is not None:
        sections["lora"] = {"rank": ranks if isinstance(ranks, int) else list(ranks)}
    return sections


def fill(
    sections: dict[str, dict[str, Any]],
    batch: int,
    epochs: int,
    engine: str | None,
    device: str | None,
    strategy: str | None,
    options: Mapping[str, Any] | None,
) -> None:
    """Put how clients train, where, and the method over the sections' own; None keeps those."""
    sections["train"] = {"batch-size": batch, "local-epochs": epochs}
    # A torch.device is a device's name too.
    sections["engine"] = {"kind": engine, "device": None if device is None else str(device)}
    if strategy is not None:
        sections["strategy"]["name"] = strategy
    sections["strategy"]["options"] = dict(options or {})


def experiment(
    tree: dict[str, Any], out: str | None = None, overrides: Sequence[str] = ()
) -> Config:
    """Return the checked config of an experiment written as plain sections.

    The environment variable ``ATLAS_SET`` (``a.b=value;c.d=value``) lies on top of everything: it
    takes a whole notebook offline, or makes it small.

    Args:
        tree: Sections as in an experiment file; entries that are ``None`` are left out.
        out: The run directory; by default a new one, ``runs/<name>-<UTC time>``.
        overrides: ``a.b=value`` items.

    Raises:
        ConfigError: A key, a value or a name is wrong.
    """
    told = [item for item in os.environ.get(ATLAS_SET, "").split(";") if item.strip()]
    there = {
        name: {key: value for key, value in section.items() if value is not None}
        for name, section in tree.items()
    }
    config = build_config(there, Path.cwd(), [*overrides, *told])
    check_names(config)
    return with_out(config, out) if out else _with_new_out(config)


def _with_new_out(config: Config) -> Config:
    """Return the config with a directory of its own: two runs may begin in one second."""
    named = first = with_out(config, None)
    number = 1
    while (Path(str(named.run.out)) / "config.toml").exists():
        number += 1
        named = with_out(config, f"{first.run.out}-{number}")
    return named


def device_of(config: Config) -> str:
    """Return ``"cuda"`` or ``"cpu"``: where the clients will train.

    Raises:
        ConfigError: CUDA was asked for and is not there.
    """
    there = torch.cuda.is_available()
    if config.engine.device == "cuda" and not there:
        raise ConfigError(
            "device: 'cuda' was asked for, but there is no CUDA device here; in Colab choose "
            "Runtime > Change runtime type > T4 GPU, else leave device out or say 'cpu'"
        )
    return "cuda" if there and config.engine.device != "cpu" else "cpu"


def say_device(device: str) -> None:
    """Print where the clients will train."""
    print(f"[INIT] Using device: {device}", flush=True)
    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
        print(f"GPU Memory: {memory / 1000 / MB:.1f} GB", flush=True)


def run_or_go_on(config: Config, *, resume: bool = True) -> RunResult:
    """Run an experiment, go on with it, or read it if it is finished.

    With ``run.mirror`` a run directory that was lost is fetched from its mirror first.

    Args:
        config: The experiment; ``run.out`` is set.
        resume: Whether a run that is there may be gone on with; else it is refused.

    Raises:
        UserError: The input is wrong, or the directory holds another experiment.
        RunFailed: The run failed; the same call goes on from its last commit.
        RunStopped: It was stopped; the same call goes on.
    """
    out, tell = Path(str(config.run.out)), RoundLines()
    if resume:
        _fetch(config, out)
    try:
        if not (resume and (out / "config.toml").exists()):
            run_experiment(config, tell.handle)
        elif status_of(out) == "completed":
            _check_same(config, out)
            mend(out)
            print(f"[DONE] {out} is finished: its results are read", flush=True)
        else:
            check_engine(out, False)
            found = find_run(out)
            _check_same(config, out)
            run_experiment(config, tell.handle, replace(found, config=config))
    except RunStopped as error:
        raise RunStopped(f"{error} (or run the same cell again)") from error
    return read_run(out)


def _check_same(config: Config, out: Path) -> None:
    try:
        check_same(resolve(config), stored_config(out))
    except ResultError as error:
        raise ResultError(f"{error} (here: another experiment_name, or another out)") from error


def _fetch(config: Config, out: Path) -> None:
    """Copy a run directory back from its mirror if it is gone; a half copy is none."""
    if config.run.mirror is None or (out / "config.toml").exists():
        return
    mirrored = Path(config.run.mirror).expanduser() / out.name
    if not (mirrored / "config.toml").exists():
        return
    made = out.with_name(f".{out.name}.fetched")
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(mirrored, made)
    if out.exists():
        out.rmdir()
    made.rename(out)
    print(f"[INIT] Fetched from its mirror: {mirrored}", flush=True)


class RoundLines:
    """Prints the guide's lines from a run's events, while it goes on."""

    def __init__(self) -> None:
        self._rounds = 0
        self._shown = 0

    def handle(self, event: Mapping[str, Any]) -> None:
        """Take one event in and print what belongs to it."""
        match event["event"]:
            case "start":
                self._rounds = event["rounds"]
                self._shown = len(event.get("resumed", ()))
                if self._shown:
                    print(f"[INIT] Going on after round {self._shown}", flush=True)
            case "phase" if event["phase"] != "final" and event["round"] > self._shown:
                self._shown = event["round"]
                print(f"[ROUND {event['round']}/{self._rounds}]", flush=True)
            case "round":
                print(round_line(event), flush=True)
            case "note":
                who = "" if event["partition"] is None else f"client {event['partition']}: "
                print(f"  {who}{event['text']}", flush=True)
            case "final":
                scores = f"Accuracy: {_number(event['accuracy'])}, Loss: {_number(event['loss'])}"
                print(f"[DONE] Whole evaluation sets: {scores}", flush=True)


def round_line(record: Mapping[str, Any]) -> str:
    """Return a round's line.

    >>> round_line({"accuracy": 0.72341, "loss": 0.5642, "time_seconds": 287.31})
    '  Accuracy: 0.7234, Loss: 0.5642, Time: 287.3s'
    """
    accuracy, loss = _number(record["accuracy"]), _number(record["loss"])
    return f"  Accuracy: {accuracy}, Loss: {loss}, Time: {record['time_seconds']:.1f}s"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def per_round(run: RunResult) -> list[dict[str, Any]]:
    """Return one dict a round with exactly ``ROUND_KEYS``; what was not measured is ``None``."""
    return [{key: record[key] for key in ROUND_KEYS} for record in run.rounds]
