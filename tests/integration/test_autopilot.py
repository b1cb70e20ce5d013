"""What the autopilot chose is in the run's own records, and its micro-batch reaches the clients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from runs import Run

pytestmark = pytest.mark.usefixtures("no_report")


def test_what_was_chosen_is_in_the_provenance(run: Callable[..., Run], tmp_path: Path) -> None:
    chosen = {"measured": {"peak_mb": 1.0}, "chosen": {"workers": 2}}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "autopilot.json").write_text(json.dumps(chosen))
    folder = run(run={"rounds": 1}).folder
    told = json.loads((folder / "provenance.json").read_text())
    assert told["autopilot"] == chosen


def test_a_run_in_micro_batches_learns_the_same(run: Callable[..., Run]) -> None:
    """DistilBERT's dropout draws other masks, so near and not equal; batch and steps stay."""
    whole = run(out="whole")
    parts = run(out="parts", engine={"micro-batch": 3})
    again = run(out="again", engine={"micro-batch": 3})
    assert parts.measured() == again.measured()
    kinds = [r.summary["bytes"]["by_kind"] for r in (whole, parts)]
    assert kinds[0]["adapter"] == kinds[1]["adapter"]
    loss, other = (r.rounds[0]["train_loss"] for r in (whole, parts))
    assert other == pytest.approx(loss, rel=0.2)
    assert other != loss
