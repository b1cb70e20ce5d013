"""A run shown in TensorBoard, W&B, MLflow or trackio: each told, in a process of its own.

Everything lies in ``trackers/<name>/`` of the run directory: no network, no account, no home
folder. A tracker that fails is one note, and the run goes on without it.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import atlas_flwr
from atlas_flwr.errors import ConfigError
from atlas_flwr.results.record import ClientRow

FOLDER = "trackers"
LOG = "output.log"
MOST_CLIENTS = 32  # beyond that, curves of single clients say nothing to anybody
PATIENCE = 60.0
_PLAIN = (
    *("accuracy", "loss", "train_loss", "worst_client_accuracy", "time_seconds", "memory_mb"),
    *("communication_mb", "bytes_up", "bytes_down", "aggregation_error", "effective_rank"),
)


def check_trackers(names: Iterable[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        ConfigError: Names the first that is not, and what installs it.
    """
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # a mere folder of that name, say
            raise ConfigError(
                f"run.trackers: '{name}' is not installed; pip install 'atlas-flwr[{name}]', or "
                "leave it out"
            )


def round_metrics(record: Mapping[str, Any], rows: Iterable[ClientRow]) -> dict[str, float]:
    """Return a round's numbers by the names trackers show; those that don't exist are left out.

    Args:
        record: The round's record.
        rows: Its clients' rows; of more than `MOST_CLIENTS` clients none is shown alone.
    """
    found = {name: record.get(name) for name in _PLAIN}
    for task, scores in record["by_task"].items():
        found |= {f"task/{task}/{name}": scores.get(name) for name in ("accuracy", "loss", "mcc")}
    for kind in record["by_kind_up"]:
        moved = record["by_kind_up"][kind] + record["by_kind_down"].get(kind, 0)
        found |= {f"bytes/{kind}": moved or None}
    scored = [row for row in rows if row.phase == "evaluate" and row.status == "ok"]
    if len(scored) <= MOST_CLIENTS:
        found |= {f"client/{row.partition}/accuracy": row.accuracy for row in scored}
    return {name: float(value) for name, value in found.items() if value is not None}


def final_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a run's end, from ``summary.json``."""
    final = summary["final"]
    names = ("accuracy", "loss", "worst_client_accuracy")
    found = {f"final/{name}": final[name] for name in names}
    for task, scores in final["by_task"].items():
        found |= {f"final/{task}/{name}": scores[name] for name in ("accuracy", "loss")}
    found |= {"final/seconds": summary["seconds"], "final/memory_mb": summary["peak_memory_mb"]}
    return {name: float(value) for name, value in found.items() if value is not None}


class Trackers:
    """The trackers of one run.

    Args:
        names: Their names; none does nothing.
        out: The run directory.
        config: The configuration, dotted keys and plain values.
        note: Told in one line of a tracker that is lost.
    """

    def __init__(
        self,
        names: Sequence[str],
        out: Path,
        config: Mapping[str, Any],
        note: Callable[[str], None],
    ) -> None:
        self._note, self._steps = note, 0
        self._children: dict[str, _Child] = {}
        self._card = {"experiment": str(config.get("run.name", out.name)), "run": out.name}
        self._config, self._folder = dict(config), out.resolve() / FOLDER
        self._names = tuple(names)

    def start(self, rounds: Sequence[Mapping[str, Any]], rows: Sequence[ClientRow]) -> None:
        """Start all of them, and tell them of the rounds that went before: some may lack them.

        Args:
            rounds: Records of the rounds that had ended.
            rows: Their clients' rows.
        """
        for name in self._names:
            folder = self._folder / name
            card = {**self._card, "folder": str(folder), "config": self._config}
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._children[name] = _Child(name, folder)
            except OSError as error:
                self._lost(name, str(error))
                continue
            self._children[name].send({"start": {**card, "kept": len(rounds)}})
        for record in rounds:
            self._log(record, rows, again=True)

    def round(self, record: Mapping[str, Any], rows: Sequence[ClientRow]) -> None:
        """A round has ended."""
        self._log(record, rows, again=False)
        for name, child in list(self._children.items()):
            if child.gone:
                self._lost(name, child.end())

    def end(self, summary: Mapping[str, Any]) -> None:
        """The run has ended: wait until everything is written, so long as that is short."""
        final = final_metrics(summary) if summary["status"] == "completed" else {}
        for child in self._children.values():
            if final:
                child.send({"log": self._steps, "metrics": final, "again": False})
            child.send({"end": summary["status"]})
            child.close()
        for name, child in list(self._children.items()):
            if why := child.end():
                self._lost(name, why)
        self._children.clear()

    def _log(self, record: Mapping[str, Any], rows: Sequence[ClientRow], again: bool) -> None:
        self._steps = int(record["round"])
        if not self._children:
            return
        metrics = round_metrics(record, (row for row in rows if row.round == self._steps))
        for child in self._children.values():
            child.send({"log": self._steps, "metrics": metrics, "again": again})

    def _lost(self, name: str, why: str) -> None:
        self._children.pop(name, None)
        self._note(f"tracker {name} is switched off, the run goes on without it: {why}")


class _Child:
    """One tracker's process; a thread feeds it, so that a slow one holds nobody up."""

    def __init__(self, name: str, folder: Path) -> None:
        self._log = folder / LOG
        home = str(Path(atlas_flwr.__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "atlas_flwr.results.tracking", name],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,  # Ctrl-C is the run's, which then tells it to end
            )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._feeder = threading.Thread(target=self._feed, name=f"tracker {name}", daemon=True)
        self._feeder.start()

    @property
    def gone(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def send(self, told: Mapping[str, Any]) -> None:
        """Tell it something."""
        self._lines.put(json.dumps(told, allow_nan=False) + "\n")

    def close(self) -> None:
        """Tell it that nothing more comes."""
        self._lines.put(None)

    def end(self) -> str:
        """Wait until it has gone; return why it failed in one line, empty where it did not."""
        self.close()
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return f"it did not end within {PATIENCE:g} s ({self._log})"
        finally:
            self._feeder.join(1.0)
        if code == 0:
            return ""
        if code < 0:
            return f"its process was ended by signal {-code} ({self._log})"
        try:
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError as error:  # the folder is gone, say; that ends no run either
            said = [str(error)]
        return f"{said[-1] if said else f'exit code {code}'} ({self._log})"

    def _feed(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            while (line := self._lines.get()) is not None:
                pipe.write(line.encode())
                pipe.flush()
        except OSError:  # it has gone; its exit code and its log say why
            return
        finally:
            with suppress(OSError):  # what could not be written is tried once more
                pipe.close()
