"""Messages that carry several models, in whole runs: IFCA's, and a phase that only scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from atlas_flwr.types import Job, ModelParts, Update
from runs import Run
from strategies.base import State
from strategies.fedavg import FedIt
from strategies.registry import STRATEGIES

pytestmark = pytest.mark.usefixtures("no_report")


class ScoresFirst(FedIt):
    """FedIT that asks, before it trains, how good the model is on rows held back."""

    summary = "a test's"

    def job_options(self, state: State) -> dict[str, Any]:
        return {"hold-back": 0.25}

    def plan(self, state: State, cohort: Sequence[int]) -> list[Job] | None:
        train = super().plan(replace(state, phase=0), cohort) or []
        if state.phase == 0:
            scored = {"action": "train.score", "parts": ModelParts(), "rows": "held", "expects": {}}
            return [replace(j, **scored, choices=(j.parts, j.parts)) for j in train]
        return train if state.phase == 1 else None

    def merge(self, state: State, updates: Iterator[Update]) -> State:
        if state.phase:
            return super().merge(state, updates)
        told = [update.fingerprint for update in updates]
        assert all(losses["losses"][0] == losses["losses"][1] for losses in told)
        assert [int(losses["rows"][0]) for losses in told] == [6, 6, 6]
        return replace(state, phase=1)


def test_a_phase_that_scores_has_rows_of_its_own_and_no_loss(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STRATEGIES, "scores_first", ScoresFirst)
    found = run("scored", strategy={"name": "scores_first"})
    assert found.summary["status"] == "completed"
    rows = found.clients.set_index(["phase", "round", "partition"])
    for key, row in rows.loc["score"].iterrows():
        train = rows.loc[("train", *key)]
        assert math.isnan(row.loss)
        assert (row.num_examples, train.num_examples) == (6, 18)
        assert row.bytes_down > 1.8 * train.bytes_down  # the model twice
        assert row.bytes_up < train.bytes_up / 2  # and nothing of it back
    assert len(rows.loc["score"]) == 2 * 3
    for line in found.rounds:
        # The rounds' numbers are those of training alone, but for the bytes.
        losses = [rows.loc[("train", line["round"], p)].loss for p in range(3)]
        assert line["train_loss"] == pytest.approx(np.mean(losses))
        assert sum(line["by_kind_up"].values()) == line["bytes_up"]


@pytest.mark.parametrize("models", [1, 3])
def test_ifca_downloads_every_model_and_tells_what_was_chosen(
    run: Callable[..., Run], models: int
) -> None:
    fedit = run("fedit", strategy={"name": "fedit"})
    found = run(f"ifca-{models}", strategy={"name": "ifca", "options": {"clusters": models}})
    down = [line["by_kind_down"]["adapter"] for line in (*found.rounds, *fedit.rounds)]
    # In a round of FedIT the model goes down to be trained and to be scored.
    assert down[0] == pytest.approx(down[2] * (models + 1) / 2, rel=0.01)
    chosen = found.clients[found.clients.phase == "evaluate"].cluster
    assert set(chosen) <= set(range(models))
    if models == 1:
        assert found.measured()["final"] == fedit.measured()["final"]
        mine, theirs = (list(each.tensors().values()) for each in (found, fedit))
        assert mine == theirs
