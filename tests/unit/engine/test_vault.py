"""A client's private parts: kept by round, never mixed up, missing loudly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.engine.vault import Vault
from atlas_flwr.errors import AtlasError
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


def test_the_round_it_started_from_stays_until_the_server_moves_on(tmp_path: Path) -> None:
    vault = Vault(tmp_path, 0)
    vault.save(4, parts(4), since=0)
    vault.save(5, parts(5), since=4)  # the answer is lost: the server still counts on round 4
    vault.save(6, parts(6), since=4)
    assert vault.load(4).head["w"][0] == 4
    vault.save(7, parts(7), since=6)
    with pytest.raises(AtlasError, match=r"partition 0.*round 4"):
        vault.load(4)


def test_a_missing_vault_names_its_partition(tmp_path: Path) -> None:
    with pytest.raises(AtlasError, match="partition 9"):
        Vault(tmp_path, 9).load(1)
    assert not list(tmp_path.iterdir())
