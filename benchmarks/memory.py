"""``python -m benchmarks.memory``: predicted against measured peak memory of training on a CPU.

Each setting trains for a few steps in a process of its own, which then says the most it ever had
resident. The two numbers that follow from no shape (``PROCESS_BYTES``, ``HEAP_SLACK``) are taken
again on the first setting, and shown beside those in use; nothing is fitted to the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

import clients.site  # noqa: F401 - what a client's process imports is part of what it holds
from atlas_flwr.models.adapter_io import initial_parts, write_parts
from atlas_flwr.models.backbone import ModelSpec, load, quiet
from atlas_flwr.models.footprint import predicted
from atlas_flwr.ranks.budget import cost, rank_costs
from atlas_flwr.ranks.memory import HEAP_SLACK, PROCESS_BYTES
from atlas_flwr.results.provenance import provenance
from atlas_flwr.training.local import TrainSpec, train
from atlas_flwr.training.memory import peak_bytes

MB = 10**6
TARGET = 0.15
# Every freed tensor of 128 kB or more goes back to the system at once.
NO_HEAP = {"MALLOC_MMAP_THRESHOLD_": "131072"}


@dataclass(frozen=True)
class Setting:
    """One training process: model, rows of a step, tokens of a row, rank, optimizer steps."""

    model: str
    batch: int
    length: int
    rank: int
    steps: int = 4


# The first one is where the two numbers come from; it proves nothing.
SETTINGS = (
    Setting("minilm", 16, 128, 8),
    Setting("minilm", 16, 32, 8),
    Setting("minilm", 16, 128, 32),
    Setting("minilm", 32, 128, 8),
    Setting("minilm", 64, 128, 8),
    Setting("distilbert", 16, 64, 8),
    Setting("distilbert", 8, 128, 32),
    Setting("gpt2", 16, 64, 8),
    Setting("gpt2", 8, 128, 32),
)
# Real widths, random weights: memory does not know what they say.
SHAPES: dict[str, tuple[Any, Any]] = {
    "distilbert": (DistilBertForSequenceClassification, DistilBertConfig(pad_token_id=0)),
    "gpt2": (
        GPT2ForSequenceClassification,
        GPT2Config(n_layer=6, vocab_size=8000, pad_token_id=0, bos_token_id=1, eos_token_id=2),
    ),
}


@dataclass(frozen=True)
class Peak:
    """What one process predicted and measured, in bytes."""

    setting: Setting
    parts: Mapping[str, int]
    measured: int

    @property
    def predicted(self) -> int:
        """The sum of the parts."""
        return sum(self.parts.values())

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured

    @property
    def tensors(self) -> int:
        """The prediction without what follows from no shape."""
        return self.predicted - self.parts["workspace"]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        facts = {"setting": asdict(self.setting), "parts": dict(self.parts)}
        return {**facts, "predicted": self.predicted, "measured": self.measured}


class Rows:
    """A table of full rows of random tokens."""

    def __init__(self, rows: int, length: int) -> None:
        rng = np.random.default_rng(0)
        self.labels: NDArray[np.int64] = np.arange(rows) % 2
        self.lengths: NDArray[np.int32] = np.full(rows, length, np.int32)
        self._tokens = rng.integers(5, 60, (rows, length))

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: NDArray[np.int64], pad_token_id: int) -> dict[str, NDArray[np.int64]]:
        """Return rows as training takes them; nothing is padded."""
        tokens = self._tokens[indices]
        ones = np.ones_like(tokens)
        return {"input_ids": tokens, "attention_mask": ones, "labels": self.labels[indices]}


def child(setting: Setting) -> Peak:
    """Train in this process, which must be a fresh one, and return its peak."""
    spec, cpu = ModelSpec(setting.model), torch.device("cpu")
    loaded = load(spec, 2, 0)
    write_parts(loaded, initial_parts(spec, 2, setting.rank, 2.0, 0))
    shapes = loaded.backbone.shapes
    ranks = dict.fromkeys(shapes, setting.rank)
    memory = predicted(
        loaded,
        setting.batch,
        setting.length,
        adapter=cost(ranks, rank_costs(shapes)),
        ranks=sum(ranks.values()),
    )
    table = Rows(2 * setting.batch, setting.length)
    train(
        loaded,
        table,
        np.arange(len(table)),
        TrainSpec(batch_size=setting.batch, precision="fp32", device="cpu"),
        np.random.default_rng(0),
        torch_seed=0,
        max_steps=setting.steps,
    )
    return Peak(setting, vars(memory), peak_bytes(cpu))


def measure(setting: Setting, folder: Path, env: Mapping[str, str] | None = None) -> Peak:
    """Train in a fresh process and return what it said.

    Args:
        setting: A model of ``SHAPES``, or any name or folder.
        folder: Where models of ``SHAPES`` are written.
        env: Environment beside this process's own.

    Raises:
        RuntimeError: The process failed; its error is in the message.
    """
    named = replace(setting, model=checkpoint(setting.model, folder))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--child", json.dumps(asdict(named))],
        cwd=Path(__file__).resolve().parents[1],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{setting}: the process failed: {done.stderr.strip()}")
    said = json.loads(done.stdout.splitlines()[-1])
    return Peak(setting, said["parts"], said["measured"])


def checkpoint(model: str, folder: Path) -> str:
    """Return the folder of a model of ``SHAPES``, written once; another name is itself."""
    if model not in SHAPES:
        return model
    made, (kind, config) = folder / model, SHAPES[model]
    if not made.is_dir():
        with quiet():
            kind(config).save_pretrained(made)
    return str(made)


def calibrated(left: Peak, given_back: Peak) -> tuple[int, float]:
    """Return the process's bytes and the heap's slack, from one setting under two allocators.

    Args:
        left: With the allocator left to itself.
        given_back: With freed tensors given back to the system.
    """
    process = given_back.measured - given_back.tensors
    return process, (left.measured - given_back.measured) / left.parts["activations"]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure all settings, print one table and write one JSON file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--only", type=int, help="measure that many settings, the first ones")
    args = parser.parse_args(argv)
    if args.child:
        print(json.dumps(child(Setting(**json.loads(args.child))).to_dict()))
        return 0
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        peaks = []
        for setting in SETTINGS[: args.only]:
            console.print(f"measuring: {setting} ...", style="dim")
            peaks.append(measure(setting, Path(name)))
        found = calibrated(peaks[0], measure(SETTINGS[0], Path(name), NO_HEAP))
    console.print(table(peaks))
    console.print(
        f"process {found[0] / MB:.0f} MB (in use: {PROCESS_BYTES / MB:.0f}), "
        f"slack {found[1]:.2f} (in use: {HEAP_SLACK})"
    )
    out = Path(__file__).parent / "out" / "memory.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    facts = provenance(sys.argv, seed=0)
    facts |= {"process_bytes": found[0], "slack": found[1], "peaks": [p.to_dict() for p in peaks]}
    out.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {out}")
    return 0


def table(peaks: Sequence[Peak]) -> Table:
    """Return the peaks as one table; the calibrating setting is marked."""
    shown = Table(title=f"Peak memory in MB, target within {TARGET:.0%}")
    for heading in ("model", "batch × length", "rank", "weights", "activations", "predicted"):
        shown.add_column(heading, justify="right" if heading != "model" else "left")
    shown.add_column("measured", justify="right")
    shown.add_column("ratio", justify="right")
    for place, peak in enumerate(peaks):
        setting = peak.setting
        style = "dim" if place == 0 else "green" if abs(peak.ratio - 1) <= TARGET else "red"
        parts = (peak.parts["weights"], peak.parts["activations"], peak.predicted, peak.measured)
        shown.add_row(
            setting.model + (" (calibrates)" if place == 0 else ""),
            f"{setting.batch} × {setting.length}",
            str(setting.rank),
            *(f"{part / MB:.0f}" for part in parts),
            f"[{style}]{peak.ratio:.3f}[/]",
        )
    return shown


if __name__ == "__main__":
    raise SystemExit(main())
