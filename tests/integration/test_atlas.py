"""ATLAS from the command line to its run directory: who is with whom, and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from atlas_flwr.models.backbone import LoadedModel
from clients import base
from runs import Run

MANY = {
    "run": {"clients": 6, "rounds": 2},
    "data": {"tasks": ["two", "three"], "samples-per-client": 24},
    "lora": {"rank": [2, 4]},
    "strategy": {"name": "atlas"},
}


def test_a_run_says_who_is_with_whom_and_why(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, int]] = []
    real = base.train

    def watched(loaded: LoadedModel, *given: Any, **named: Any) -> Any:
        """Train as ever, and look at the tensors of the model that is trained."""
        weights = dict(loaded.model.named_parameters())
        ends = {n.split(".lora_A")[0]: w.shape[0] for n, w in weights.items() if ".lora_A" in n}
        seen.append(ends)
        return real(loaded, *given, **named)

    monkeypatch.setattr(base, "train", watched)
    found = run(**MANY)
    _ranks(found, seen)
    _rows(found)
    _reasons(found)
    _bytes(found)
    _models(found)


def _ranks(found: Run, seen: list[dict[str, int]]) -> None:
    """The models that were built have the ranks that were given, client by client, both rounds."""
    told = json.loads((found.folder / "ranks.json").read_text())["clients"]
    assert len(seen) == 12
    for number, built in enumerate(seen):
        given = told[str(number % 6)]["ranks"]
        assert sorted(built.values()) == sorted(given.values())
        for module, rank in given.items():
            assert [r for name, r in built.items() if name.endswith(module)] == [rank], module
    assert len({rank for built in seen for rank in built.values()}) > 1


def _rows(found: Run) -> None:
    """Every row from the fingerprints on names its cluster."""
    rows = found.clients
    assert rows.iloc[:6].phase.tolist() == ["fingerprint"] * 6
    assert rows.cluster.notna().all()
    for _, own in rows.groupby("partition"):
        assert own.cluster.nunique() == 1
    told = json.loads((found.folder / "clusters.json").read_text())
    assert {str(p): c for p, c in zip(rows.partition, rows.cluster, strict=True)} == {
        p: float(c) for p, c in told["clusters"].items()
    }


def _reasons(found: Run) -> None:
    """Label spaces are apart, and reasons are written."""
    told = json.loads((found.folder / "clusters.json").read_text())
    spaces = {space["labels"]: set(space["partitions"]) for space in told["spaces"]}
    assert spaces == {2: {0, 1, 2}, 3: {3, 4, 5}}
    assert told["k"] == sum(space["k"] for space in told["spaces"])
    assert all(space["why"] and len(space["z"]) == 3 for space in told["spaces"])


def _bytes(found: Run) -> None:
    """Fingerprints are sent once and are small."""
    first, second = found.rounds
    assert 0 < first["by_kind_up"]["fingerprint"] <= 6 * 8192
    assert second["by_kind_up"]["fingerprint"] == 0
    asked = found.clients[found.clients.phase == "fingerprint"]
    assert (asked.bytes_up <= 8192 + 1024).all()  # and the report beside it


def _models(found: Run) -> None:
    """Models are personal, and what was cut is told."""
    assert {path.name for path in (found.folder / "adapters").iterdir()} == {
        f"client-{p}" for p in range(6)
    }
    assert found.rounds[0]["aggregation_error"] is None
    assert set(found.rounds[0]["step_loss"]) == {"2", "4"}


def test_noise_needs_a_clip_and_heads_are_personal(refused: Callable[..., None]) -> None:
    noisy = {"name": "atlas", "options": {"noise": 1.0}}
    refused("strategy.options", "clip", strategy=noisy)
    refused("model.head", "personal", strategy={"name": "atlas"}, model={"head": "shared"})
