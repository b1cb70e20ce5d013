"""Whether a run's training was real: what it left, measured again without this code base.

The exported model is opened with plain transformers and PEFT, scored on the task's validation
rows, and set beside what the run recorded.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from peft import PeftConfig, PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.numpy import load_file
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from atlas_flwr.apps.resume import stored_config
from atlas_flwr.config.schema import Config
from atlas_flwr.data.load import Rows, load_rows
from atlas_flwr.data.tasks import resolve_tasks
from atlas_flwr.errors import ResultError
from atlas_flwr.models.backbone import quiet
from atlas_flwr.models.catalog import locate
from atlas_flwr.results.store import RunResult, read_run
from clients.site import deal
from experiments.guided import device_of

# How far a loss computed in float32 may lie from the recorded one: CPU runs are float32, and a
# GPU scores in half precision.
CLOSE = {"cpu": 2e-3, "cuda": 5e-2}
BATCH = 32
HEADER = 512  # bytes a tensor's name, shape and type may take in a message
Row = tuple[str, str, str, bool]


@dataclass(frozen=True)
class Exported:
    """One exported model and a client that holds it."""

    folder: Path
    partition: int
    task: str


def evidence(folder: str | Path, gpu: str = "") -> pd.DataFrame:
    """Measure again what a finished run claims.

    Args:
        folder: The run directory.
        gpu: What was seen of the GPU meanwhile (`GpuLog.summary`).

    Returns:
        A row for each check: ``check, measured, expected, ok``.

    Raises:
        ResultError: The run has not ended, or exported no model.
    """
    run = read_run(Path(folder))
    if run.summary["status"] != "completed":
        raise ResultError(f"{folder}: is {run.summary['status']}; run its cell again first")
    config = stored_config(Path(folder))
    one = _exported(run, config)
    model = _opened(one)
    rows = [
        _changed(one, model, config),
        *_losses(one, model, config, run),
        _bytes(one, run),
        _sum_of_bytes(run),
        _memory(run),
        ("GPU", gpu or _device(run), "", True),
    ]
    return pd.DataFrame(rows, columns=["check", "measured", "expected", "ok"])


def _exported(run: RunResult, config: Config) -> Exported:
    """Return the first exported model whose client is known, of the first task if possible."""
    found = [p for kind in ("adapters", "models") for p in sorted((run.path / kind).glob("*"))]
    for partition in range(config.run.clients):
        task = config.task_of(partition)
        rows = run.clients[run.clients["partition"] == partition]
        cluster = rows["cluster"].dropna()
        names = ["global", f"task-{task}", f"client-{partition}"]
        names += [f"cluster-{int(cluster.iloc[-1])}"] if len(cluster) else []
        names += [f"{name}-rank-{config.rank_of(partition)}" for name in names]
        for path in found:
            if path.name in names:
                return Exported(path, partition, task)
    raise ResultError(f"{run.path}: no exported model of a client was found")


def _opened(one: Exported) -> Any:
    """Open the folder as anybody would."""
    with quiet():  # the head of the base is new, and the adapter brings its own
        if not (one.folder / "adapter_config.json").exists():
            return AutoModelForSequenceClassification.from_pretrained(one.folder).eval()
        told = PeftConfig.from_pretrained(str(one.folder))
        plain = AutoModelForSequenceClassification.from_pretrained(
            told.base_model_name_or_path, config=AutoConfig.from_pretrained(one.folder)
        )
    with warnings.catch_warnings():  # PEFT asks transformers for a name that is going
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing.", FutureWarning)
        return PeftModel.from_pretrained(plain, str(one.folder)).eval()


# ------------------------------------------------------------------ the checks


def _changed(one: Exported, model: Any, config: Config) -> Row:
    """Norm of the change from the start, over the norm of what it changes."""
    change, start = 0.0, 0.0
    with torch.no_grad():
        if isinstance(model, PeftModel):
            what = "the adapter's product s B A, 0 at the start, against the weights it adapts"
            for module in model.modules():
                if isinstance(module, LoraLayer):
                    change += float(module.get_delta_weight("default").square().sum())
                    start += float(module.get_base_layer().weight.square().sum())
        else:
            what = "the backbone's weights against the pretrained ones"
            with quiet():
                before = AutoModel.from_pretrained(locate(config.model.name)).state_dict()
            now = model.base_model.state_dict()
            for name in before.keys() & now.keys():
                if before[name].is_floating_point() and before[name].shape == now[name].shape:
                    change += float((now[name] - before[name]).square().sum())
                    start += float(before[name].square().sum())
    share = (change / start) ** 0.5 if start else 0.0
    return (
        f"parameters changed ({one.folder.name})",
        f"{share:.2%} of their norm",
        what,
        share > 0,
    )


def _losses(one: Exported, model: Any, config: Config, run: RunResult) -> list[Row]:
    """The loss, computed again, against the recorded one; and accuracy."""
    spec = resolve_tasks(config.data.tasks, config.task)[one.task]
    read = load_rows(spec, config.data.root, config.run.seed)
    shard = deal(config, one.task)[one.partition]  # which of them the run scored
    table = read.train if shard.evaluation_table == "train" else read.validation
    rows = table.take(shard.full_evaluation)
    loss, accuracy = cross_entropy(model, rows, one.folder, config.model.max_length)
    final = run.clients[(run.clients["phase"] == "final")]
    (told,) = final[final["partition"] == one.partition].to_dict("records")
    close = CLOSE[device_of(config)]
    by_chance = np.log(len(set(rows.labels.tolist())))
    return [
        (
            f"loss is cross-entropy ({one.task}, {len(rows.labels)} rows)",
            f"{loss:.4f} by torch's cross_entropy on the opened model",
            f"{told['loss']:.4f} recorded; guessing evenly has {by_chance:.4f}",
            abs(loss - told["loss"]) <= close * max(1.0, told["loss"]),
        ),
        (
            "accuracy is counted",
            f"{accuracy:.4f} on the opened model",
            f"{told['accuracy']:.4f} recorded",
            abs(accuracy - told["accuracy"]) <= close,
        ),
    ]


def cross_entropy(model: Any, rows: Rows, folder: Path, max_length: int) -> tuple[float, float]:
    """Return mean loss and accuracy of a plain model over rows, as a notebook would compute them.

    Args:
        model: A transformers or PEFT model.
        rows: Texts and labels.
        folder: Where its tokenizer is.
        max_length: Tokens kept of a row.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    total, right = 0.0, 0
    with torch.no_grad():
        for at in range(0, len(rows.labels), BATCH):
            texts = rows.texts[at : at + BATCH]
            pairs = [list(column) for column in zip(*texts, strict=True)]
            batch = tokenizer(
                *pairs, truncation=True, max_length=max_length, padding=True, return_tensors="pt"
            )
            labels = torch.as_tensor(rows.labels[at : at + BATCH], device=device)
            logits = model(**batch.to(device)).logits.float()
            total += float(functional.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(-1) == labels).sum())
    return total / len(rows.labels), right / len(rows.labels)


def _bytes(one: Exported, run: RunResult) -> Row:
    """The bytes that a client sent in its last round against its tensors on disk."""
    files = sorted(one.folder.glob("*.safetensors"))
    sizes = [tensor.nbytes for path in files for tensor in load_file(path).values()]
    payload = sum(sizes)
    rows = run.clients
    sent = rows[(rows["phase"] == "train") & (rows["partition"] == one.partition)]
    up = int(sent["bytes_up"].iloc[-1])
    return (
        f"bytes of one update (client {one.partition})",
        f"{up:,} sent up in its last round",
        f"{payload:,} in its {len(sizes)} tensors on disk, and headers",
        payload <= up <= payload + HEADER * (len(sizes) + 4),
    )


def _sum_of_bytes(run: RunResult) -> Row:
    """The kinds' bytes against the total."""
    told = run.summary["bytes"]
    kinds, total = sum(told["by_kind"].values()), told["up"] + told["down"]
    return "bytes of all messages", f"{total:,}", f"{kinds:,} summed over kinds", kinds == total


def _memory(run: RunResult) -> Row:
    """The highest peak a client measured; a loaded model can't take less than its own bytes."""
    peak = run.summary["peak_memory_mb"]
    seconds = run.clients.loc[run.clients["phase"] == "train", "seconds"].sum()
    return (
        "peak memory of a client",
        "not measured" if peak is None else f"{peak:,.0f} MB",
        f"clients trained for {seconds:,.1f} s in all",
        bool(peak),
    )


def _device(run: RunResult) -> str:
    gpus = run.provenance.get("machine", {}).get("gpus")
    return f"on this machine: {', '.join(map(str, gpus))}" if gpus else "none: trained on the CPU"
