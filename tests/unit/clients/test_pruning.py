"""HetLoRA's client: ranks that shrink by themselves are given up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atlas_flwr.models.adapter_io import write_parts
from atlas_flwr.models.lora import factor_parameters
from atlas_flwr.types import Job, ModelParts, Stage
from clients.pruning import PruningClient, kept_rank, tail
from homes import RANK, Answer, Home, home, same_bits


@pytest.fixture
def place(folder_of: Callable[[str], str], tmp_path: Path) -> Home:
    return home(tmp_path, folder_of("bert"))


def job_of(parts: ModelParts, keep: float, penalty: float, **more: object) -> Job:
    options = {"prune-keep": keep, "prune-penalty": penalty}
    return replace(Job(0, "train.prune", 1, parts, options=options), **more)


def ask(place: Home, parts: ModelParts, keep: float, penalty: float) -> Answer:
    return place.fit(job_of(parts, keep, penalty), PruningClient)


def tails(parts: ModelParts, keep: float) -> float:
    """Oracle: NumPy's own norms."""
    cut = {m: int(np.ceil(keep * f.rank)) for m, f in parts.adapter.items()}
    norm = np.linalg.norm
    return float(
        sum(
            norm(f.b[:, cut[m] :].astype(float)) * norm(f.a[cut[m] :].astype(float))
            for m, f in parts.adapter.items()
        )
    )


def test_without_a_penalty_training_is_plain_and_no_rank_goes_that_grew(place: Home) -> None:
    sent = place.site.initial(0)  # B = 0: tails can only grow
    plain = place.fit(Job(0, "train", 1, sent))
    assert same_bits(ask(place, sent, 0.5, 0.0).parts, plain.parts)


def test_tails_that_shrink_are_cut_off(place: Home) -> None:
    sent = place.random(0)
    answer = ask(place, sent, 0.5, 5.0)
    assert set(answer.parts.ranks().values()) == {RANK // 2}
    trained = place.loaded()
    assert tails(trained, 0.5) < tails(sent, 0.5)
    for module, factors in answer.parts.adapter.items():
        whole = trained.adapter[module]
        np.testing.assert_array_equal(factors.a, whole.a[:2])
        np.testing.assert_array_equal(factors.b, whole.b[:, :2])
        assert factors.scale == whole.scale
    assert answer.parts.head.keys() == sent.head.keys()


def test_a_larger_penalty_leaves_smaller_tails_and_the_kept_ranks_alone(place: Home) -> None:
    sent, left = place.random(0), []
    for penalty in (0.0, 1.0, 10.0):
        ask(place, sent, 0.5, penalty)
        left.append(tails(place.loaded(), 0.5))
    assert left[0] > left[1] > left[2]


@pytest.mark.parametrize("keep", [0.5, 0.3, 1.0])
def test_the_penalty_is_the_sum_of_the_tails_norm_products(place: Home, keep: float) -> None:
    sent = place.random(0)
    client = PruningClient(place.site, job_of(sent, keep, 0.7), place.stores)
    write_parts(place.site.model, sent)
    goal = client._goal(Stage(), {"prune-penalty": 0.7})
    assert goal.penalty is not None
    assert goal.penalty().item() == pytest.approx(0.7 * tails(sent, keep), rel=1e-5, abs=1e-8)
    ours = sum(tail(factors, keep) for factors in sent.adapter.values())
    assert ours == pytest.approx(tails(sent, keep), rel=1e-12)


def test_the_penalty_has_a_gradient_where_b_is_zero(place: Home) -> None:
    """At the seeded start the norm of B's tail has none: training must not turn to NaN."""
    sent = place.site.initial(0)
    client = PruningClient(place.site, job_of(sent, 0.5, 1.0), place.stores)
    write_parts(place.site.model, sent)
    goal = client._goal(Stage(), {"prune-penalty": 1.0})
    assert goal.penalty is not None
    goal.penalty().backward()
    for layer in place.site.model.backbone.layers.values():
        for parameter in factor_parameters(layer):
            assert np.isfinite(parameter.grad.numpy()).all()
            parameter.grad = None
    answer = ask(place, sent, 0.5, 1.0)
    assert all(np.isfinite(tensor).all() for tensor in answer.parts.body().values())


@pytest.mark.parametrize(
    ("rank", "keep", "kept"), [(16, 0.5, 8), (5, 0.5, 3), (1, 0.01, 1), (20, 0.55, 11), (4, 1.0, 4)]
)
def test_ranks_are_rounded_up_and_one_stays(rank: int, keep: float, kept: int) -> None:
    assert kept_rank(rank, keep) == kept
