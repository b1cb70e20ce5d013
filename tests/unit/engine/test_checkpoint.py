"""Commits: whole or not there, checked to the bit, and only the last three."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_flwr.engine.checkpoint import (
    MANIFEST,
    Commit,
    commits,
    read_commit,
    settled,
    write_commit,
)
from atlas_flwr.engine.files import digest
from atlas_flwr.errors import ResultError
from atlas_flwr.results.record import Bytes
from atlas_flwr.types import Tensors


@dataclass(frozen=True)
class Toy:
    """A server's state."""

    round: int
    heads: Tensors = field(default_factory=dict)


def commit(round_: int = 1, **more: Any) -> Commit:
    state = Toy(round_, {"global": np.full((2, 2), round_ / 3)})
    moved = Bytes({"adapter": 5 * round_}, {"head": 7})
    return Commit(round_, state, moved, 1.5, "run-a", records={"rounds.jsonl": b"{}\n"}, **more)


def test_a_commit_is_read_back(tmp_path: Path) -> None:
    vault = {"client-0/round-1.safetensors": digest(b"x")}
    write_commit(tmp_path, commit(vault=vault))
    back = read_commit(tmp_path, 1, (Toy,))
    assert back.state.heads["global"].tobytes() == np.full((2, 2), 1 / 3).tobytes()
    assert (back.moved, back.seconds, back.run) == (commit().moved, 1.5, "run-a")
    assert (back.vault, back.records) == (vault, {"rounds.jsonl": b"{}\n"})


def test_a_settled_state_is_the_one_that_is_read_back(tmp_path: Path) -> None:
    state = Toy(2, {"w": np.asfortranarray(np.arange(6.0).reshape(2, 3))})
    kept = settled(state, (Toy,))
    write_commit(tmp_path, Commit(2, kept, Bytes(), 0.0, "run-a"))
    back = read_commit(tmp_path, 2, (Toy,)).state.heads["w"]
    assert back.tobytes() == kept.heads["w"].tobytes()
    assert back.strides == kept.heads["w"].strides


def test_the_last_three_stay_and_nothing_unfinished(tmp_path: Path) -> None:
    for round_ in range(1, 6):
        write_commit(tmp_path, commit(round_))
    litter = tmp_path / "checkpoints" / ".round-6.tmp"
    litter.mkdir()
    assert commits(tmp_path) == [3, 4, 5]
    write_commit(tmp_path, commit(6))
    assert sorted(p.name for p in litter.parent.iterdir()) == ["round-4", "round-5", "round-6"]


def test_going_on_from_an_older_one_drops_those_after_it(tmp_path: Path) -> None:
    for round_ in (1, 2, 3):
        write_commit(tmp_path, commit(round_))
    write_commit(tmp_path, commit(2))
    assert commits(tmp_path) == [1, 2]


def resealed(path: Path, **changes: Any) -> None:
    """Change the manifest as somebody would who knows its form."""
    manifest = json.loads(path.read_text())["commit"] | changes
    text = json.dumps(manifest, ensure_ascii=False, separators=(",", ":"))
    path.write_text(f'{{"digest":"{digest(text.encode())}","commit":{text}}}\n')


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def edited(path: Path) -> None:
    path.write_text(path.read_text().replace('"round":1', '"round":9', 1))


# What disks, editors and later versions do to a file, and what is said of it.
DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated tensors": ("state.safetensors", lambda path: cut(path, 3), "is damaged"),
    "one bit": ("state.safetensors", flipped, "is damaged"),
    "no tensors": ("state.safetensors", Path.unlink, "can't be read"),
    "record gone": ("rounds.jsonl", Path.unlink, "can't be read"),
    "truncated manifest": (MANIFEST, lambda path: cut(path, 9), "is damaged"),
    "empty manifest": (MANIFEST, lambda path: path.write_text(""), "is damaged"),
    "edited manifest": (MANIFEST, edited, "is damaged"),
    "no manifest": (MANIFEST, Path.unlink, "can't be read"),
    "later version": (MANIFEST, lambda path: resealed(path, version=99), "later version"),
    "odd state": (
        MANIFEST,
        lambda path: resealed(path, state={"of": "Popen", "fields": {}}),
        "not a commit of this version",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_not_whole_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder = write_commit(tmp_path, commit())
    name, change, said = DAMAGE[kind]
    change(folder / name)
    with pytest.raises(ResultError, match=said) as refused:
        read_commit(tmp_path, 1, (Toy,))
    assert "round-1" in str(refused.value)
    assert "\n" not in str(refused.value)
