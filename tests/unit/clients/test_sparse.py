"""FLASC's client: dense training, and the largest movements back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.types import Job, ModelParts
from clients.sparse import SparseClient
from homes import Answer, Home, home


@pytest.fixture
def place(folder_of: Callable[[str], str], tmp_path: Path) -> Home:
    return home(tmp_path, folder_of("bert"))


def ask(place: Home, parts: ModelParts, density: float, **more: object) -> Answer:
    options = {"up-density": density}
    job = Job(0, "train.sparse", 1, parts, options=options, sparse=True)
    return place.fit(replace(job, **more), SparseClient)


def movement(place: Home, sent: ModelParts) -> dict[str, np.ndarray]:
    """Return how far plain training moves the adapter."""
    trained = place.fit(Job(0, "train", 1, sent)).parts.body()
    return {name: trained[name] - tensor for name, tensor in sent.body().items()}


def test_at_density_one_all_the_movement_comes_back(place: Home) -> None:
    sent = place.random(0)
    moved, plain = movement(place, sent), place.fit(Job(0, "train", 1, sent))
    answer = ask(place, sent, 1.0)
    for name, tensor in answer.parts.body().items():
        np.testing.assert_array_equal(tensor, moved[name])
    # The head is no movement, and all of it.
    for name, tensor in answer.parts.head.items():
        np.testing.assert_array_equal(tensor, plain.parts.head[name])
    assert answer.told["compression_error"] == 0.0
    assert answer.told["loss"] == plain.told["loss"]
    assert {f.scale for f in answer.parts.adapter.values()} == {2.0}


@pytest.mark.parametrize("density", [0.25, 0.01])
def test_the_largest_entries_of_all_tensors_together_come_back(place: Home, density: float) -> None:
    sent = place.random(0)
    moved, got = movement(place, sent), ask(place, sent, density)
    body = got.parts.body()
    flat = np.concatenate([moved[name].ravel() for name in moved])
    ours = np.concatenate([body[name].ravel() for name in moved])
    count = int(np.ceil(density * flat.size))
    assert np.count_nonzero(ours) == count
    np.testing.assert_array_equal(ours[ours != 0], flat[ours != 0])
    assert np.abs(ours[ours != 0]).min() >= np.abs(flat[ours == 0]).max()
    missed = np.linalg.norm((flat - ours).astype(float)) / np.linalg.norm(flat.astype(float))
    assert got.told["compression_error"] == pytest.approx(missed, rel=1e-6)


def test_training_itself_is_dense_though_what_came_was_sparse(place: Home) -> None:
    sent = place.random(0)
    holes = {n: np.where(np.abs(t) > 0.1, t, np.float32(0)) for n, t in sent.body().items()}
    thin = sent.with_body(holes)
    moved = ask(place, thin, 1.0).parts.body()
    for name, tensor in thin.body().items():
        assert (moved[name][tensor == 0] != 0).mean() > 0.9, name


def test_a_client_that_does_not_move_tells_no_error(place: Home) -> None:
    still = replace(place.site, spec=replace(place.site.spec, learning_rate=0.0))
    answer = ask(replace(place, site=still), place.random(0), 0.5)
    assert "compression_error" not in answer.told
    assert not any(tensor.any() for tensor in answer.parts.body().values())


def test_a_local_head_stays(place: Home) -> None:
    sent = place.random(0)
    answer = ask(place, sent.without("head"), 0.5, private=frozenset({"head"}))
    assert not answer.parts.head
    plain = place.fit(Job(0, "train", 1, replace(sent, head=place.site.initial(0).head)))
    for name, tensor in place.stores.private.load(1).head.items():
        np.testing.assert_array_equal(tensor, plain.parts.head[name])
