"""A client's private parts: kept by round, never mixed up, missing loudly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.engine.vault import Vault
from atlas_flwr.errors import AtlasError
from atlas_flwr.flat import flatten
from atlas_flwr.types import LoraFactors, ModelParts


def parts(value: float) -> ModelParts:
    factors = LoraFactors(np.full((2, 3), value, np.float32), np.ones((4, 2), np.float32), 0.5)
    return ModelParts(adapter={"m.q": factors}, head={"w": np.full(2, value, np.float32)})


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    vault = Vault(tmp_path, 3)
    vault.save(1, parts(7.0))
    back = vault.load(1)
    np.testing.assert_array_equal(back.adapter["m.q"].a, parts(7.0).adapter["m.q"].a)
    assert back.adapter["m.q"].scale == 0.5
    np.testing.assert_array_equal(back.head["w"], [7.0, 7.0])
    assert not back.weights


def test_every_part_is_kept_as_it_is(tmp_path: Path) -> None:
    """Single factors, deltas and cores too: what a server merged, and what comes by halves."""
    whole = parts(7.0)
    delta = {"m.q": replace(whole.adapter["m.q"], scale=1.0)}
    sent = replace(
        whole.only("lora_B", "head"),
        delta=delta,
        core={"m.q": np.eye(2, dtype=np.float32)},
        weights={"w.norm": np.full(3, -0.0, np.float32)},
    )
    vault = Vault(tmp_path, 3)
    vault.save(1, sent)
    back = vault.load(1)
    assert back.adapter["m.q"].a.shape == (2, 0)
    assert (back.adapter["m.q"].scale, back.delta["m.q"].scale) == (0.5, 1.0)
    flat, again = flatten(sent), flatten(back)
    assert {kind: set(named) for kind, named in flat.items()} == {
        kind: set(named) for kind, named in again.items()
    }
    for kind, named in flat.items():
        for name, tensor in named.items():
            assert tensor.tobytes() == again[kind][name].tobytes(), name


def test_tensors_of_any_layout_are_kept_as_they_read(tmp_path: Path) -> None:
    """An SVD's factors are often stored column by column, which safetensors writes scrambled."""
    tensor = np.arange(12, dtype=np.float32).reshape(3, 4)
    layouts = {
        "columns": np.asfortranarray(tensor),
        "turned": np.ascontiguousarray(tensor.T).T,
        "strided": np.repeat(tensor, 2, axis=1)[:, ::2],
        "backwards": tensor[::-1][::-1],
        "scalar": np.float32(7).reshape(()),
    }
    vault = Vault(tmp_path, 0)
    factors = LoraFactors(layouts["columns"], np.asfortranarray(np.ones((5, 3), np.float32)), 1.0)
    vault.save(1, ModelParts(head=layouts, delta={"m": factors}))
    back = vault.load(1)
    for name, held in layouts.items():
        np.testing.assert_array_equal(back.head[name], held, strict=True)
    np.testing.assert_array_equal(back.delta["m"].a, tensor)


def test_what_was_sent_lies_apart_from_what_is_private(tmp_path: Path) -> None:
    private, carried = Vault(tmp_path, 0), Vault(tmp_path, 0, "carried")
    private.save(2, parts(1.0))
    carried.save(5, parts(2.0))
    private.save(9, parts(3.0))
    private.save(13, parts(3.0))  # drops round 2, and nothing of the other's
    assert carried.load(5).head["w"][0] == 2.0
    for vault, round_ in ((private, 5), (carried, 3), (private, 2)):
        with pytest.raises(AtlasError, match=f"round {round_}"):
            vault.load(round_)


def test_what_the_last_commits_count_on_stays(tmp_path: Path) -> None:
    """Commits 6, 7 and 8 may be gone on from while round 9 is in progress."""
    vault = Vault(tmp_path, 0)
    for round_ in (2, 4, 7, 9):
        vault.save(round_, parts(round_))
    assert [vault.load(r).head["w"][0] for r in (4, 7, 9)] == [4, 7, 9]  # commit 6 counts on 4
    with pytest.raises(AtlasError, match=r"partition 0.*round 2"):
        vault.load(2)


def test_the_round_it_started_from_stays_until_the_server_moves_on(tmp_path: Path) -> None:
    vault = Vault(tmp_path, 0)
    vault.save(4, parts(4))
    for round_ in range(5, 15):  # the answers are lost: the server still counts on round 4
        vault.save(round_, parts(round_), since=4)
    assert vault.load(4).head["w"][0] == 4
    vault.save(15, parts(15), since=14)
    with pytest.raises(AtlasError, match=r"partition 0.*round 4"):
        vault.load(4)


def test_a_missing_vault_names_its_partition(tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match="partition 9"):
        Vault(tmp_path, 9).load(1)
    assert not list(tmp_path.iterdir())


def test_a_drives_own_copies_are_left_alone(tmp_path: Path) -> None:
    vault = Vault(tmp_path, 3)
    copy = tmp_path / "client-3" / "round-1 (1).safetensors"
    copy.parent.mkdir()
    copy.write_text("a conflict that a cloud drive met")
    for round_ in range(1, 9):
        vault.save(round_, parts(float(round_)))
    assert copy.exists()
