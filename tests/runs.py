"""What tests of whole runs share: how a command ended, and a run directory read back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Run:
    """A run directory with its parsed files."""

    folder: Path
    summary: dict[str, Any]
    rounds: list[dict[str, Any]]
    clients: pd.DataFrame

    @classmethod
    def read(cls, folder: Path) -> Run:
        lines = (folder / "rounds.jsonl").read_text().splitlines()
        return cls(
            folder,
            json.loads((folder / "summary.json").read_text()),
            [json.loads(line) for line in lines],
            pd.read_parquet(folder / "clients.parquet"),
        )

    def tensors(self) -> dict[str, bytes]:
        """Return the exported tensor files' bytes by their path."""
        return self.read_tensors(self.folder)

    @staticmethod
    def read_tensors(folder: Path) -> dict[str, bytes]:
        """Return the exported tensor files' bytes of a folder, be it a run's that has ended."""
        found = [*folder.glob("adapters/*/*.safetensors"), *folder.glob("models/*/*.safetensors")]
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(found)}

    def measured(self) -> dict[str, Any]:
        """Return every number of the run that is not a time, a memory peak or a total of bytes."""
        clocks = {"time_seconds", "memory_mb", "communication_mb"}
        drop = {*clocks, *(key for key in self.rounds[0] if "bytes" in key or "kind" in key)}
        return {
            "final": self.summary["final"],
            "rounds": [{k: v for k, v in line.items() if k not in drop} for line in self.rounds],
        }

    def rows(self) -> pd.DataFrame:
        """Return the clients' rows in one order, without clocks, memory and totals of bytes."""
        ordered = self.clients.sort_values(["round", "phase", "partition"]).reset_index(drop=True)
        return ordered.drop(columns=["seconds", "bytes_up", "bytes_down", "peak_memory_mb"])

    def lost(self) -> set[int]:
        """Return the partitions that a row calls lost or rejected."""
        return set(self.clients[self.clients.status != "ok"].partition)


def assert_refused(said: Said, *words: str) -> None:
    """Check the exit code and the one line of bad input."""
    assert said.code == 2, said
    lines = said.err.splitlines()
    assert len(lines) == 1, said.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in said.out + said.err
    for word in words:
        assert word in lines[0]
