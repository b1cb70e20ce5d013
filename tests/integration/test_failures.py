"""Clients that fail, lie or stay silent: named, and never averaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_flwr.engine.inline import InlineGrid
from clients.base import FineTuneClient
from clients.fingerprint import FingerprintClient
from fakes import write_experiment
from runs import Run
from strategies.rounds import federation

pytestmark = pytest.mark.usefixtures("no_report")

SKIP = {"on-failure": "skip"}


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make the given partitions fail at a method, by raising or by an answer of NaN."""

    def make(*partitions: int, method: str = "fit", how: str = "raise") -> None:
        real = getattr(FineTuneClient, method)

        def odd(self: FineTuneClient, parameters: Any, config: Any) -> Any:
            if self.job.partition not in partitions:
                return real(self, parameters, config)
            if how == "raise":
                raise RuntimeError("the disk is\nfull")
            arrays, rows, metrics = real(self, parameters, config)
            if how == "nan":
                arrays[0] = np.full_like(arrays[0], np.nan)
            if how == "short":
                arrays[0] = arrays[0][:, :-1]
            if how == "no rows":
                rows = 0
            return arrays, rows, metrics

        monkeypatch.setattr(FineTuneClient, method, odd)

    return make


def test_a_lost_client_stops_the_run(
    atlas: Callable[..., Any],
    tree: dict[str, Any],
    tmp_path: Path,
    failing: Callable[..., None],
) -> None:
    failing(1)
    file = write_experiment(tmp_path / "e.toml", tree)
    said = atlas("run", file, "--out", tmp_path / "out")
    assert said.code == 1
    (line,) = said.err.splitlines()
    assert line.startswith("error: round 1, train: partition 1 lost: ")
    found = Run.read(tmp_path / "out")
    summary = found.summary
    assert (summary["status"], summary["rounds_completed"]) == ("failed", 0)
    assert found.rounds == summary["round_results"] == []
    assert summary["final"]["accuracy"] is None
    assert summary["final"]["by_task"] == {}
    assert found.lost() == {1}
    assert summary["bytes"]["up"] == found.clients.bytes_up.sum() > 0
    assert summary["bytes"]["down"] == found.clients.bytes_down.sum()
    # Everybody was asked, and what they said is kept.
    assert sorted(found.clients.partition) == [0, 1, 2]
    assert not (found.folder / "adapters").exists()
    events = [json.loads(line) for line in (found.folder / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "error"
    assert "partition 1" in events[-1]["text"]


@pytest.mark.parametrize(
    ("how", "status", "word"),
    [
        ("raise", "lost", "RuntimeError: the disk is full"),
        ("nan", "rejected", "not finite"),
        ("short", "rejected", "expected (2, 16)"),
        ("no rows", "rejected", "num-examples"),
    ],
)
def test_skip_goes_on_without_the_client(
    run: Callable[..., Run], failing: Callable[..., None], how: str, status: str, word: str
) -> None:
    failing(1, how=how)
    found = run(run=SKIP)
    assert found.summary["status"] == "completed"
    rows = found.clients
    bad = rows[rows.status != "ok"]
    assert set(bad.partition) == {1}
    assert set(bad.phase) == {"train"}
    assert set(bad.status) == {status}
    assert all(word in error for error in bad.error)
    assert [line["lost"] for line in found.rounds] == [[1], [1]]
    assert [line["participants"] for line in found.rounds] == [[0, 2], [0, 2]]
    assert all(np.isfinite(line["accuracy"]) for line in found.rounds)


def test_a_skipped_client_changes_nothing_but_the_mean(
    run: Callable[..., Run], failing: Callable[..., None]
) -> None:
    whole = run("whole")
    failing(1)
    without = run("without", run=SKIP)
    assert without.tensors() != whole.tensors()
    again = run("again", run=SKIP)
    assert again.tensors() == without.tensors()


@pytest.mark.parametrize("policy", ["raise", "skip"])
def test_a_federation_without_clients_fails(
    run: Callable[..., Run], failing: Callable[..., None], policy: str
) -> None:
    failing(0, 1, 2)
    found = run(code=1, run={"on-failure": policy})
    assert found.summary["status"] == "failed"
    assert found.lost() == {0, 1, 2}


def test_too_few_replies_fail(run: Callable[..., Run], failing: Callable[..., None]) -> None:
    failing(1)
    enough = run("enough", run={**SKIP, "min-results": 2})
    assert enough.summary["status"] == "completed"
    few = run("few", code=1, run={**SKIP, "min-results": 3})
    assert few.summary["status"] == "failed"


def test_a_client_that_cannot_score(run: Callable[..., Run], failing: Callable[..., None]) -> None:
    """Training is whole, its own scores are absent, and the next client scores the final model."""
    whole = run("whole")
    failing(0, method="evaluate")
    found = run(run=SKIP)
    rows = found.clients
    assert found.lost() == {0}
    assert set(rows[rows.phase == "train"].status) == {"ok"}
    assert rows[rows.status != "ok"].accuracy.isna().all()
    assert found.tensors() == whole.tensors()
    assert found.summary["final"]["by_task"] == whole.summary["final"]["by_task"]
    final = rows[rows.phase == "final"].sort_values("partition")
    assert list(final.partition) == [0, 1, 2]
    assert list(final.status) == ["lost", "ok", "ok"]
    run("strict", code=1)


def test_a_local_model_nobody_else_can_score(
    run: Callable[..., Run], failing: Callable[..., None]
) -> None:
    failing(0, method="evaluate")
    found = run(run=SKIP, strategy={"name": "local_only"})
    final = found.summary["final"]
    rows = found.clients[found.clients.phase == "final"]
    assert list(rows.sort_values("partition").status) == ["lost", "ok", "ok"]
    there = rows[rows.status == "ok"].accuracy
    assert final["by_task"]["two"]["accuracy"] == pytest.approx(there.mean())


def test_a_model_that_diverges_is_refused(run: Callable[..., Run]) -> None:
    found = run(code=1, train={"learning-rate": 1e30})
    assert found.summary["status"] == "failed"
    assert set(found.clients.status) == {"lost"}
    assert all("train.learning-rate" in error for error in found.clients.error)
    json.loads((found.folder / "summary.json").read_text(), parse_constant=pytest.fail)


def test_a_silent_client_is_named(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    pull = InlineGrid.pull_messages

    def deaf(self: InlineGrid, message_ids: Any) -> list[Any]:
        waiting = [i for i in message_ids if i in self._pending]
        train = [i for i in waiting if self._pending[i].metadata.message_type == "train"]
        silent = {i for i in train if self._pending[i].metadata.dst_node_id % 3 == 0}
        return list(pull(self, [i for i in waiting if i not in silent]))

    monkeypatch.setattr(InlineGrid, "pull_messages", deaf)
    found = run(run={**SKIP, "rounds": 1, "client-timeout": 0.7})
    rows = found.clients
    (silent,) = found.lost()
    (error,) = set(rows[rows.partition == silent].error.dropna())
    assert "run.client-timeout" in error


def test_an_answer_for_another_partition_is_refused(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    pack = federation.pack_job

    def swapped(job: Any, config: str) -> Any:
        return pack(replace(job, partition=2) if job.partition == 1 else job, config)

    monkeypatch.setattr(federation, "pack_job", swapped)
    found = run(code=1)
    assert found.lost() == {1}
    assert "partition 2's job" in set(found.clients.error.dropna()).pop()


def test_ctrl_c_leaves_what_was_measured(
    atlas: Callable[..., Any],
    tree: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = FineTuneClient.fit

    def stop(self: FineTuneClient, parameters: Any, config: Any) -> Any:
        if self.job.round == 2:
            raise KeyboardInterrupt
        return real(self, parameters, config)

    monkeypatch.setattr(FineTuneClient, "fit", stop)
    said = atlas("run", write_experiment(tmp_path / "e.toml", tree), "--out", tmp_path / "out")
    assert said.code == 3
    assert "Ctrl-C" in said.err
    found = Run.read(tmp_path / "out")
    assert (found.summary["status"], found.summary["rounds_completed"]) == ("stopped", 1)
    assert len(found.rounds) == 1


def test_who_never_tells_its_fingerprint_stops_nobody(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FingerprintClient.fit

    def silent(self: FingerprintClient, parameters: Any, config: Any) -> Any:
        if self.job.partition == 1:
            raise RuntimeError("not telling")
        return real(self, parameters, config)

    monkeypatch.setattr(FingerprintClient, "fit", silent)
    found = run(run=SKIP, strategy={"name": "atlas"})
    assert found.summary["status"] == "completed"
    rows = found.clients
    assert {(r.partition, r.phase) for r in rows[rows.status != "ok"].itertuples()} == {
        (1, "fingerprint")
    }
    assert [line["participants"] for line in found.rounds] == [[0, 2], [0, 2]]
    assert sorted(json.loads((found.folder / "clusters.json").read_text())["clusters"]) == [
        "0",
        "2",
    ]
