"""Subspaces of a real (tiny) model's embeddings, from the command line to the run directory."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from runs import Run

MANY = {
    "run": {"clients": 6, "rounds": 2},
    "data": {"tasks": ["two", "three"], "samples-per-client": 24},
    "lora": {"rank": [2, 4]},
}


@pytest.mark.parametrize("options", [{}, {"rows": "class_wise", "threshold": 90.0}], ids=str)
def test_a_run_says_who_is_with_whom_and_why(
    run: Callable[..., Run], options: dict[str, object]
) -> None:
    found = run(**MANY, strategy={"name": "embedding_cluster", "options": options})
    rows = found.clients
    told = json.loads((found.folder / "clusters.json").read_text())
    assert rows.iloc[:6].phase.tolist() == ["fingerprint"] * 6
    assert {str(p): c for p, c in zip(rows.partition, rows.cluster, strict=True)} == {
        p: float(c) for p, c in told["clusters"].items()
    }
    assert {space["labels"]: space["partitions"] for space in told["spaces"]} == {
        2: [0, 1, 2],
        3: [3, 4, 5],
    }
    for space in told["spaces"]:
        angles = np.array(space["angles"])
        assert angles.shape == (3, 3)
        assert ((angles >= 0) & (angles <= 270)).all()
        assert angles.any()
    first, second = found.rounds
    assert 0 < first["by_kind_up"]["fingerprint"] <= 6 * 8192
    assert second["by_kind_up"]["fingerprint"] == 0
    assert {path.name for path in (found.folder / "adapters").iterdir()} == {
        f"client-{p}" for p in range(6)
    }


def test_what_it_has_no_use_for_is_refused(refused: Callable[..., None]) -> None:
    refused(
        "strategy.options.noise",
        "no such option",
        strategy={"name": "embedding_cluster", "options": {"noise": 1.0, "clip": 1.0}},
    )
