"""The client that says what its rows are like: the same of the same rows, but for noise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.types import FACTORS, Job, Scalar, Tensors
from clients.fingerprint import FingerprintClient
from homes import Home, home

PLAIN: dict[str, Scalar] = {"kind": "class_means", "clip": 0.0, "noise": 0.0}


@pytest.fixture
def place(folder_of: Callable[[str], str], tmp_path: Path) -> Home:
    return home(tmp_path, folder_of("gpt2"))


def told(place: Home, round_: int, **options: Scalar) -> Tensors:
    asked = {**PLAIN, **options}
    job = Job(0, "train.fingerprint", round_, seeded=FACTORS | {"head"}, options=asked)
    client = FingerprintClient(place.site, job, place.stores)
    client.fit([], asked)
    return client.fingerprint


def test_the_same_rows_have_the_same_answer_whenever_they_are_asked_for(place: Home) -> None:
    """Clusters found anew change because rows have, not because the halves were redrawn."""
    first, third = (told(place, round_, **{"importance-rank": 2}) for round_ in (1, 3))
    assert first.keys() == third.keys() == {"sketch", "facts", "importance"}
    for name, values in first.items():
        np.testing.assert_array_equal(values, third[name])


def test_noise_is_drawn_by_nothing_that_the_server_knows(place: Home) -> None:
    one, other = (told(place, 1, clip=1.0, noise=0.5) for _ in range(2))
    assert not np.array_equal(one["sketch"], other["sketch"])
