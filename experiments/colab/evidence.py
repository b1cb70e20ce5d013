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
from atlas_flwr.apps.sharing.choose import held_models
from atlas_flwr.config.schema import Config
from atlas_flwr.data.load import Rows, load_rows
from atlas_flwr.data.tasks import resolve_tasks
from atlas_flwr.errors import ResultError
from atlas_flwr.models.backbone import quiet
from atlas_flwr.models.catalog import locate
from atlas_flwr.models.experts import EXPERTS_FILE
from atlas_flwr.results.store import RunResult, read_run
from atlas_flwr.training.precision import cpu_has_bf16
from clients.site import deal
from strategies.facts import FACTS
from strategies.registry import STRATEGIES

# How far a loss computed in float32 may lie from the recorded one.
CLOSE = {"fp32": 2e-3, "half": 5e-2}
# They fold what was sent into the weights: the exported adapter is wider than any message.
FOLDED = ("flora", "fedex")
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
    model = _opened(one, config)
    rows = [
        _changed(one, model, config),
        *_losses(one, model, config, run),
        _bytes(one, run, config),
        _sum_of_bytes(run),
        _memory(run),
        ("GPU", gpu or _device(run), "", True),
    ]
    return pd.DataFrame(rows, columns=["check", "measured", "expected", "ok"])


def _exported(run: RunResult, config: Config) -> Exported:
    """Return the first model of a client that plain PEFT opens; of one that trained, if possible.

    Raises:
        ResultError: There is none.
    """
    good = run.clients[run.clients["status"] == "ok"]
    trained = set(good.loc[good["phase"] == "train", "partition"])
    scored = set(good.loc[good["phase"] == "final", "partition"])
    with held_models(run.path) as held:
        models = [m for m in held.models.values() if not (m.folder / EXPERTS_FILE).exists()]
    for partition in sorted(scored, key=lambda each: (each not in trained, each)):
        for model in models:
            if partition in model.clients:
                return Exported(model.folder, int(partition), config.task_of(int(partition)))
    raise ResultError(
        f"{run.path}: no exported model of a client that was scored can be opened by plain PEFT or "
        f"transformers ({config.strategy.name}); atlas predict asks mixtures of experts"
    )


def _opened(one: Exported, config: Config) -> Any:
    """Open the folder as anybody would; on another machine with that one's base model."""
    with quiet():  # the head of the base is new, and the adapter brings its own
        if not (one.folder / "adapter_config.json").exists():
            return AutoModelForSequenceClassification.from_pretrained(one.folder).eval()
        told = PeftConfig.from_pretrained(str(one.folder))
        base = Path(told.base_model_name_or_path)
        moved = base.is_absolute() and not base.is_dir()
        plain = AutoModelForSequenceClassification.from_pretrained(
            locate(config.model.name) if moved else str(base),
            config=AutoConfig.from_pretrained(one.folder),
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
    close = _close(run, config)
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


def _close(run: RunResult, config: Config) -> float:
    """Return the tolerance for where the run trained, which need not be this machine."""
    gpu = config.engine.device != "cpu" and run.provenance.get("machine", {}).get("gpus")
    half = config.train.precision != "fp32" and (gpu or cpu_has_bf16())
    return CLOSE["half" if half else "fp32"]


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


def _bytes(one: Exported, run: RunResult, config: Config) -> Row:
    """The bytes that a client sent in its last round against its tensors on disk.

    No method sends more than the model. Some send less (one factor, a sparse or a folded change,
    no head), and then that is all there is to check.
    """
    check = f"bytes of one update (client {one.partition})"
    files = sorted(one.folder.glob("*.safetensors"))
    sizes = {n: tensor.nbytes for path in files for n, tensor in load_file(path).items()}
    payload, name = sum(sizes.values()), config.strategy.name
    rows = run.clients[(run.clients["phase"] == "train") & (run.clients["status"] == "ok")]
    sent = rows[rows["partition"] == one.partition]["bytes_up"]
    if sent.empty:
        return check, "none: it was never drawn for training", "", True
    up, most = int(sent.iloc[-1]), payload + HEADER * (len(sizes) + 4)
    own_head = "local" in (config.head_policy, STRATEGIES[name].head)
    if name not in FACTS or FACTS[name].up != "C" or name in FOLDED or own_head:
        told = f"{payload:,} in its {len(sizes)} tensors on disk at most, and headers: {name} sends"
        return check, f"{up:,} sent up in its last round", f"{told} less than a model", up <= most
    return (
        check,
        f"{up:,} sent up in its last round",
        f"{payload:,} in its {len(sizes)} tensors on disk, and headers",
        payload <= up <= most,
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
