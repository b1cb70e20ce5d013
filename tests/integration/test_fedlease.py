"""FedLEASE from the command line to its run directory: experts, mixtures, and what is exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from atlas_flwr.config.load import load_config
from atlas_flwr.models.adapter_io import write_parts
from atlas_flwr.models.backbone import ModelSpec, load
from atlas_flwr.models.experts import load_experts, mixed
from atlas_flwr.types import LoraFactors, ModelParts
from runs import Run

pytestmark = pytest.mark.usefixtures("no_report")
MANY: dict[str, Any] = {
    "run": {"clients": 6, "rounds": 2},
    "data": {"tasks": ["two", "three"], "samples-per-client": 24},
    "strategy": {"name": "fedlease"},
}


def test_a_run_says_its_experts_counts_them_and_exports_what_it_can(
    run: Callable[..., Run],
) -> None:
    found = run(**MANY)
    _experts(found)
    _exports(found)


def _experts(found: Run) -> None:
    """The warm-up has no clusters and no experts; afterwards each client is sent all."""
    told = json.loads((found.folder / "clusters.json").read_text())
    assert told["k"] in {2, 3, 4}
    rows = found.clients
    warm, later = rows[rows["round"] == 1], rows[rows["round"] > 1]
    assert warm[warm.phase == "train"].cluster.isna().all()
    assert {str(p): c for p, c in zip(later.partition, later.cluster, strict=True)} == {
        p: float(c) for p, c in told["clusters"].items()
    }
    ups = [line["by_kind_up"] for line in found.rounds]
    assert [up["weights"] > 0 for up in ups] == [False, True]
    assert len({up["adapter"] for up in ups}) == 1
    assert found.rounds[1]["by_kind_down"]["weights"] > found.rounds[1]["by_kind_down"]["adapter"]


def _opened(folder: Path, base: str) -> tuple[Any, dict[str, Any]]:
    """Load an exported own expert into the bare model; return it, and its mixture."""
    tensors = load_file(folder / "adapter_model.safetensors")
    plain = {name.removeprefix("base_model.model."): t for name, t in tensors.items()}
    labels = json.loads((folder / "config.json").read_text())["id2label"]
    loaded = load(ModelSpec(base), len(labels), 7)
    scale = json.loads((folder / "adapter_config.json").read_text())
    adapter = {
        m: LoraFactors(
            plain.pop(f"{m}.lora_A.weight"),
            plain.pop(f"{m}.lora_B.weight"),
            scale["lora_alpha"] / scale["r"],
        )
        for m in loaded.backbone.layers
    }
    write_parts(loaded, ModelParts(adapter=adapter, head=plain))
    return loaded, load_experts(folder)


def _exports(found: Run) -> None:
    """The adapter alone is one expert; with the file beside it, it is the mixture of the table."""
    config = load_config(found.folder / "config.toml")
    paths = {task.name: Path(str(task.path)) for task in config.task}
    files = {"two": "two/validation.csv", "three": "three/validation.parquet"}
    final = found.clients[found.clients.phase == "final"]
    seen = 0
    for _, row in final.iterrows():
        folder = found.folder / "adapters" / f"cluster-{int(row.cluster)}-task-{row.task}"
        assert "scores differently" in (folder / "README.md").read_text()
        file = paths[row.task].parent / files[row.task]
        rows = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
        loaded, mixture = _opened(folder, config.model.name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        batch = tokenizer(
            list(rows["text"]), padding=True, truncation=True, max_length=16, return_tensors="pt"
        )
        with mixed(loaded.backbone.layers, mixture), torch.inference_mode():
            logits = loaded.model(**batch).logits
        loss = F.cross_entropy(logits, torch.tensor(list(rows["label"]))).item()
        assert loss == pytest.approx(row.loss, abs=2e-4)
        seen += 1
    assert seen == 6
