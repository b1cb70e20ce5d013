"""Fed-SB's first exchange: the leading gradient goes up, and nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from atlas_flwr.training.gradient import Passes, leading_gradient
from atlas_flwr.types import FACTORS, Job, Part
from clients.gradient import GradientClient
from homes import TABLE, Home, home, same_bits


@pytest.fixture
def place(folder_of: Callable[[str], str], tmp_path: Path) -> Home:
    return home(tmp_path, folder_of("gpt2"))


@pytest.mark.parametrize("private", [frozenset(), frozenset({"head"})])
def test_it_answers_with_the_gradient_at_the_checkpoint(
    place: Home, private: frozenset[Part], tmp_path: Path
) -> None:
    start = place.site.initial(0)
    job = Job(
        0, "train.gradient", 1, start.only("head").without(*private),
        private=private, seeded=FACTORS, options={"gradient-rank": 3},
    )  # fmt: skip
    answer = place.fit(job, GradientClient)
    assert (answer.rows, answer.told) == (40, {})
    assert not answer.parts.head
    assert set(answer.parts.ranks().values()) == {3}
    # Nothing moved, and nothing was kept.
    assert same_bits(place.loaded(), start)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    want = leading_gradient(place.site.model, TABLE, place.site.train_rows, 3, Passes(8, "cpu", 1))
    for module, factors in answer.parts.adapter.items():
        assert factors.a.tobytes() == want[module].a.tobytes()
        assert factors.b.tobytes() == want[module].b.tobytes()
        assert factors.scale == 1.0


def test_a_lora_job_after_it_is_as_before(place: Home) -> None:
    lora = Job(0, "train", 2, place.random(5))
    before = place.fit(lora)
    head = place.random(1).only("head")
    job = Job(0, "train.gradient", 1, head, seeded=FACTORS, options={"gradient-rank": 2})
    place.fit(job, GradientClient)
    assert same_bits(place.fit(lora).parts, before.parts)
