"""What is private never travels; who is absent keeps what it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.numpy import load_file

from atlas_flwr.apps.record import Recorder
from runs import Run
from strategies.rounds.rules import draw_cohort

pytestmark = pytest.mark.usefixtures("no_report")

HALF = {"run": {"clients": 4, "rounds": 5, "fraction": 0.5}}
LOCAL = {"strategy": {"name": "local_only"}}


def drawn(round_: int) -> list[int]:
    """Return who trains in a round of ``HALF``."""
    return draw_cohort(7, round_, 4, 0.5)


def vault(found: Run, partition: int) -> list[int]:
    """Return the rounds a client's vault holds."""
    files = (found.folder / "vault" / f"client-{partition}").glob("*")
    return sorted(int(file.stem.removeprefix("round-")) for file in files)


def kinds(found: Run) -> dict[str, int]:
    return dict(found.summary["bytes"]["by_kind"])


@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_local_only_moves_no_tensor(run: Callable[..., Run], adaptation: str) -> None:
    found = run(**LOCAL, model={"adaptation": adaptation})
    moved = kinds(found)
    assert moved.pop("other") > 0
    assert set(moved.values()) == {0}
    assert found.summary["final"]["accuracy"] is not None
    assert [vault(found, p) for p in range(3)] == [[1, 2]] * 3
    folder = "adapters" if adaptation == "lora" else "models"
    assert {p.name for p in (found.folder / folder).iterdir()} == {f"client-{p}" for p in range(3)}


@pytest.mark.parametrize(("adaptation", "body"), [("lora", "adapter"), ("full", "weights")])
def test_a_local_head_never_travels(run: Callable[..., Run], adaptation: str, body: str) -> None:
    found = run(
        model={"adaptation": adaptation, "head": "local"},
        data={"tasks": ["two", "three"]},
        run={"clients": 4},
    )
    moved = kinds(found)
    assert moved["head"] == 0 < moved[body]
    assert [vault(found, p) for p in range(4)] == [[1, 2]] * 4
    held = load_file(found.folder / "vault" / "client-0" / "round-2.safetensors")
    assert {name.partition("/")[0] for name in held} == {"head"}
    # What the client keeps is what its exported model has on top.
    file = "adapters/client-0/adapter_model" if adaptation == "lora" else "models/client-0/model"
    exported = load_file(found.folder / f"{file}.safetensors")
    prefix = "base_model.model." if adaptation == "lora" else ""
    for name, tensor in held.items():
        assert exported[prefix + name.removeprefix("head/")].tobytes() == tensor.tobytes()


def test_the_cohort_is_drawn_by_the_seed(run: Callable[..., Run]) -> None:
    found = run(**HALF)
    rows = found.clients
    for line in found.rounds:
        now = rows[rows["round"] == line["round"]]
        assert list(now[now.phase == "train"].partition) == drawn(line["round"])
        assert list(now[now.phase == "evaluate"].partition) == [0, 1, 2, 3]
        assert line["participants"] == drawn(line["round"])
    assert len({tuple(drawn(r)) for r in range(1, 6)}) > 1
    # One global model: everybody is served it, drawn or not.
    assert set(found.tensors()) == {"adapters/global/adapter_model.safetensors"}


def test_an_absent_client_keeps_its_model(run: Callable[..., Run]) -> None:
    found = run(**HALF, **LOCAL)
    loss = scores(found.clients)
    for partition in range(4):
        rounds = [r for r in range(1, 6) if partition in drawn(r)]
        counted = {max(r for r in [0, *rounds] if r <= commit) for commit in (3, 4, 5)} - {0}
        assert counted <= set(vault(found, partition)) <= set(rounds)
        for r in range(2, 6):
            same = loss[r, partition] == loss[r - 1, partition]
            assert same == (r not in rounds), (r, partition)


def scores(rows: pd.DataFrame) -> dict[tuple[int, int], Any]:
    """Return the loss of each round and partition on its own slice."""
    own = rows[rows.phase == "evaluate"]
    return dict(zip(zip(own["round"], own.partition, strict=True), own.loss, strict=True))


def test_who_was_never_drawn_has_the_seeded_start(run: Callable[..., Run]) -> None:
    found = run(run={"clients": 4, "rounds": 1, "fraction": 0.5}, **LOCAL)
    trained = drawn(1)
    for partition in range(4):
        folder = found.folder / "adapters" / f"client-{partition}"
        tensors = load_file(folder / "adapter_model.safetensors")
        zero = all(not t.any() for name, t in tensors.items() if "lora_B" in name)
        assert zero == (partition not in trained)
        assert bool(vault(found, partition)) == (partition in trained)


def test_an_absent_group_stays(run: Callable[..., Run]) -> None:
    """One client a task, half of them drawn: the other task's head is as it was."""
    found = run(
        data={"tasks": ["two", "deux"]},
        run={"clients": 2, "rounds": 1, "fraction": 0.5},
    )
    (trained,) = draw_cohort(7, 1, 2, 0.5)
    absent = ("two", "deux")[1 - trained]
    whole = run("two-rounds", data={"tasks": ["two", "deux"]}, run={"clients": 2, "rounds": 1})

    def tensors(source: Run, task: str) -> dict[str, bytes]:
        file = source.folder / "adapters" / f"task-{task}" / "adapter_model.safetensors"
        return {name: tensor.tobytes() for name, tensor in load_file(file).items()}

    here, there = tensors(found, absent), tensors(whole, absent)
    heads = [name for name in here if "lora_" not in name]
    bodies = [name for name in here if "lora_B" in name]
    assert all(here[name] != there[name] for name in heads)
    # Its body is the global one, which the client that trained has moved.
    other = tensors(found, ("two", "deux")[trained])
    assert all(here[name] == other[name] for name in bodies)


def test_a_lost_vault_is_named(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = tmp_path / "out"

    def forget(record: Any) -> None:
        if record.round == 1:
            (out / "vault" / "client-1" / "round-1.safetensors").unlink()

    told = Recorder.round

    def then(self: Recorder, record: Any) -> None:
        told(self, record)
        forget(record)

    monkeypatch.setattr(Recorder, "round", then)
    found = run(code=1, **LOCAL)
    assert found.summary["status"] == "failed"
    assert found.lost() == {1}
    (error,) = set(found.clients.error.dropna())
    assert "partition 1" in error
    assert "round 1" in error
