"""Liars in a whole run: none reaches the model, none stops the run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from atlas_flwr.apps import run as runs_
from atlas_flwr.engine.inline import InlineGrid
from clients.fingerprint import FingerprintClient
from fakes import tiny_task, write_experiment
from hostile import (
    PASSES,
    REJECTED,
    ROWS,
    HostileGrid,
    Lie,
    Twice,
    lost,
    metric,
    record,
    tensor_in_an_evaluation,
)
from runs import Run

LIARS = (1, 3, 4)
CROWD: dict[str, Any] = {"on-failure": "skip", "clients": 7}
SMALL: dict[str, Any] = {
    "run": CROWD,
    "data": {"samples-per-client": ROWS},
    "train": {"batch-size": ROWS},
}

pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def lying(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put liars behind the inline grid of the runs to come."""

    def make(liars: dict[int, Sequence[Lie]], actions: Collection[str] = ("train",)) -> None:
        def grid(app: Any, clients: int) -> InlineGrid:
            return HostileGrid(app, clients, liars, actions)

        monkeypatch.setattr(runs_, "InlineGrid", grid)

    return make


def small(run: Callable[..., Run], out: str, /, code: int = 0, **sections: Any) -> Run:
    names = {*SMALL, *sections}
    return run(out, code, **{n: {**SMALL.get(n, {}), **sections.get(n, {})} for n in names})


def wrong(found: Run) -> Any:
    return found.clients[found.clients.status != "ok"]


def test_no_refused_reply_reaches_the_model_or_stops_the_run(
    run: Callable[..., Run], lying: Callable[..., None]
) -> None:
    """To the bit: the run is the one in which the liars are lost; another lie in each round."""
    kinds = list(REJECTED)
    rounds = -(-len(kinds) // len(LIARS))
    told = {p: kinds[i * rounds :][:rounds] or kinds[:1] for i, p in enumerate(LIARS)}
    length = {"run": {"rounds": rounds}}
    lying({p: [lost] for p in LIARS})
    clean = small(run, "clean", **length)
    lying({p: [REJECTED[kind] for kind in each] for p, each in told.items()})
    found = small(run, "found", **length)
    assert found.summary["status"] == "completed"
    bad = wrong(found)
    assert set(bad.phase) == {"train"}
    said = {(row.partition, row.round): row for row in bad.itertuples()}
    for partition, each in told.items():
        for at in range(rounds):
            row = said.pop((partition, at + 1), None)
            assert row is not None, each[at % len(each)]
            assert row.status == "rejected", (each[at % len(each)], row.error)
            assert row.error.isprintable()
            assert len(row.error) < 600
    assert not said
    assert found.tensors() == clean.tensors() != {}
    assert found.measured() == clean.measured()
    events = (found.folder / "events.jsonl").read_text()
    assert "rejected in train: norm of train/adapter" in events
    assert "\\u001b" not in events


def test_what_looks_honest_passes(run: Callable[..., Run], lying: Callable[..., None]) -> None:
    lying({LIARS[0]: [PASSES["reordered keys"]]})
    same = small(run, "same")
    lying({LIARS[0]: [lambda content, before: content]})
    whole = small(run, "whole")
    assert same.tensors() == whole.tensors() != {}
    lying({LIARS[0]: list(PASSES.values())})
    found = small(run, "found", run={"rounds": len(PASSES)})
    assert found.lost() == set()


def test_lies_about_scores_are_refused_too(
    run: Callable[..., Run], lying: Callable[..., None]
) -> None:
    """A count would weigh in the mean accuracy, a tensor has no place in an evaluation."""
    names = ("accuracy of 7", "huge count", "empty reply", "negative memory", "deep JSON")
    lies = [REJECTED[name] for name in names]
    whole = small(run, "whole")
    lying({1: [*lies[:2], lies[4]], 3: lies[2:], 4: [tensor_in_an_evaluation]}, ("evaluate",))
    found = small(run, "found")
    bad = wrong(found)
    assert set(bad.status) == {"rejected"}
    assert set(bad.phase) == {"evaluate"}
    assert {(row.partition, row.round) for row in bad.itertuples()} == {
        (partition, at) for partition in LIARS for at in (1, 2)
    }
    assert found.tensors() == whole.tensors() != {}


def test_a_diverged_model_is_no_attack(run: Callable[..., Run], lying: Callable[..., None]) -> None:
    lying({1: [REJECTED["loss of NaN"]]}, ("evaluate",))
    found = small(run, "found", run={"rounds": 1})
    assert found.lost() == set()
    assert found.rounds[0]["loss"] is None


def test_what_a_client_notes_is_told_without_control_characters(
    run: Callable[..., Run], lying: Callable[..., None]
) -> None:
    notes = "\x1b]0;owned\x07\u202e[/]\nplain"
    lying({1: [record("said", {"device": "\x1b[2J", "notes": notes})]})
    found = small(run, "found", run={"rounds": 1})
    assert found.lost() == set()
    events = (found.folder / "events.jsonl").read_text()
    assert "?]0;owned??[/]" in events
    assert "plain" in events
    assert "\\u001b" not in events


def test_scores_that_no_model_has_are_refused(
    run: Callable[..., Run], lying: Callable[..., None]
) -> None:
    lying(
        {1: [metric(loss=-50.0)], 3: [metric(loss=1e308)], 4: [metric(loss=-1e999)]}, ("evaluate",)
    )
    found = small(run, "found", run={"rounds": 1})
    assert found.lost() == set(LIARS)
    assert set(wrong(found).phase) == {"evaluate"}
    assert found.rounds[0]["loss"] > 0


def test_second_and_unasked_replies_are_dropped(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = small(run, "whole")
    monkeypatch.setattr(runs_, "InlineGrid", Twice)
    found = small(run, "found")
    assert found.lost() == set()
    assert found.tensors() == whole.tensors() != {}
    assert found.measured() == whole.measured()


def test_a_refused_client_counts_as_lost(
    run: Callable[..., Run], lying: Callable[..., None]
) -> None:
    lying({1: [REJECTED["nan"]]})
    found = small(run, "strict", code=1, run={"on-failure": "raise", "rounds": 1})
    assert found.summary["status"] == "failed"
    assert found.lost() == {1}
    few = small(run, "few", code=1, run={"min-results": 7, "rounds": 1})
    assert few.summary["status"] == "failed"
    enough = small(run, "enough", run={"min-results": 6, "rounds": 1})
    assert enough.summary["status"] == "completed"


def test_the_first_client_is_held_against_those_after_it(
    run: Callable[..., Run], lying: Callable[..., None]
) -> None:
    """Nothing is known in round 1 but the cohort itself, and partition 0 is folded first."""
    lying({p: [REJECTED["x1000"]] for p in (0, 1, 2)})
    found = small(run, "found", run={"rounds": 1})
    assert found.lost() == {0, 1, 2}
    off = small(run, "off", run={"rounds": 1}, firewall={"norm-ratio": 0.0})
    assert off.lost() == set()


# ------------------------------------------------------------------ fingerprints


def _print(changes: Sequence[Callable[[dict[str, Any]], None]]) -> Callable[..., Any]:
    """Change what the first clients tell, each in another way."""
    real = FingerprintClient.fit

    def fit(self: FingerprintClient, parameters: Any, config: Any) -> Any:
        told = real(self, parameters, config)
        if self.job.partition < len(changes):
            own = {name: tensor.copy() for name, tensor in self.fingerprint.items()}
            changes[self.job.partition](own)
            self.fingerprint = own
        return told

    return fit


def _set(name: str, value: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def change(own: dict[str, Any]) -> None:
        own[name] = value(own[name])

    return change


def _first_to(value: float) -> Callable[[Any], Any]:
    def change(tensor: Any) -> Any:
        bad = tensor.copy()
        bad.flat[0] = value
        return bad

    return change


PRINTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "no sketch": lambda own: own.pop("sketch"),
    "no facts": lambda own: own.pop("facts"),
    "other width": _set("sketch", lambda t: t[:, :-1]),
    "other cells": _set("sketch", lambda t: t[:-2]),
    "flat": _set("sketch", lambda t: t.ravel()),
    "double precision": _set("sketch", lambda t: t.astype("float64")),
    "not a number": _set("sketch", _first_to(float("nan"))),
    "without end": _set("facts", _first_to(float("inf"))),
    "more rows than there are": _set("facts", lambda t: t * 1000),
    "fewer rows than there are": _set("facts", lambda t: t / 2),
    "negative rows": _set("facts", lambda t: -t),
    "negative spread": _set("sketch", lambda t: -t),
    "huge": _set("sketch", lambda t: (t.astype("float32") * 100).clip(-6e4, 6e4).astype("float16")),
    "importances above one": _set("importance", lambda t: t + 1),
    "negative importances": _set("importance", lambda t: t - 1),
    "importances of other modules": _set("importance", lambda t: t[:-1]),
    "one array too many": lambda own: own.update(more=own["facts"]),
}


def test_malformed_fingerprints_are_their_clients_fault(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = list(PRINTS)
    for number in range(0, len(kinds), 4):
        told = kinds[number : number + 4]
        with monkeypatch.context() as patched:
            patched.setattr(FingerprintClient, "fit", _print([PRINTS[kind] for kind in told]))
            how = {"rounds": 1, "clients": 10}
            found = small(run, f"out{number}", run=how, strategy={"name": "atlas"})
        bad = wrong(found)
        assert [told[p] for p in sorted(bad.partition)] == told
        assert set(zip(bad.phase, bad.status, strict=True)) == {("fingerprint", "rejected")}
        assert found.summary["status"] == "completed"
        assert [line["participants"] for line in found.rounds] == [[*range(len(told), 10)]]


# ------------------------------------------------------------------ what it costs


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fedavg", "flexlora"])
def test_refused_liars_cost_no_accuracy(
    atlas: Callable[..., Any],
    tree: dict[str, Any],
    tmp_path: Path,
    lying: Callable[..., None],
    strategy: str,
) -> None:
    """One and three of twelve, another lie in each round, against the run without a liar."""
    file = write_experiment(
        tmp_path / "e.toml",
        tree | {"task": [tiny_task(tmp_path / "two", train=700, seed=1)]},
        run={"clients": 12, "rounds": 6, "on-failure": "skip"},
        data={"samples-per-client": 40},
        train={"batch-size": 8, "local-epochs": 3},
        lora={"rank": 4},
        strategy={"name": strategy},
    )
    scores = {}
    lies = [lie for kind, lie in REJECTED.items() if kind != "one row too many"]
    for liars in ((), (4,), (1, 4, 7)):
        lying({p: lies[i::3] for i, p in enumerate(liars)})
        out = tmp_path / f"{len(liars)} liars"
        assert atlas("run", file, "--out", out).code == 0
        found = Run.read(out)
        assert set(wrong(found).status) == ({"rejected"} if liars else set())
        assert len(wrong(found)) == 6 * len(liars)
        scores[len(liars)] = found.summary["final"]["accuracy"]
    assert scores[0] > 0.9
    assert min(scores.values()) >= scores[0] - 0.02
