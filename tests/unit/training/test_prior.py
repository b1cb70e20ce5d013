"""Logit adjustment: what it adds, and that training and scoring add it where they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize

from atlas_flwr.errors import AtlasError
from atlas_flwr.models.adapter_io import initial_parts, read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.training.evaluate import evaluate
from atlas_flwr.training.local import Goal, TrainSpec, train
from atlas_flwr.training.prior import fitted_offset, log_prior
from atlas_flwr.types import Array, ModelParts
from fakes import FakeTable

SPEC = TrainSpec(epochs=2, batch_size=8, learning_rate=5e-3, precision="fp32", device="cpu")
TABLE = FakeTable(60, 3)
EVEN = np.concatenate([np.flatnonzero(TABLE.labels == c)[:12] for c in range(3)])
SKEWED = np.concatenate([np.flatnonzero(TABLE.labels == c)[:n] for c, n in enumerate((14, 5, 0))])
BIAS = "classifier.bias"

Folder = Callable[[str], str | Path]


def fresh(spec: ModelSpec, shift: Array | None = None) -> LoadedModel:
    """The seeded model, its head's bias moved."""
    loaded = load(spec, 3, 0)
    parts = initial_parts(spec, 3, 4, 2.0, 0)
    head = dict(parts.head)
    if shift is not None:
        head[BIAS] = head[BIAS] + shift
    write_parts(loaded, replace(parts, head=head))
    return loaded


def trained(
    spec: ModelSpec, rows: Array, strength: float, shift: Array | None = None
) -> ModelParts:
    loaded, prior = fresh(spec, shift), log_prior(TABLE.labels[rows], 3, strength)
    train(loaded, TABLE, rows, SPEC, np.random.default_rng(0), 7, Goal(prior=prior))
    return read_parts(loaded)


def far(one: ModelParts, other: ModelParts) -> float:
    """The largest difference between two models' numbers."""
    a, b = one.body() | dict(one.head), other.body() | dict(other.head)
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


def test_it_is_the_log_of_each_class_share_with_half_a_row_more() -> None:
    found = log_prior(np.array([0, 0, 1]), 3, 2.0)
    assert found is not None
    np.testing.assert_allclose(found, 2 * np.log(np.array([2.5, 1.5, 0.5]) / 4.5), rtol=1e-6)
    assert found.dtype == np.float32
    assert log_prior(np.array([0, 0, 1]), 3, 0.0) is None


def test_a_pooled_mix_is_taken_off_again() -> None:
    labels = np.array([0, 0, 1])
    own, other = log_prior(labels, 3, 2.0, (2, 1, 0)), log_prior(labels, 3, 2.0, (5, 0, 1))
    np.testing.assert_array_equal(own, 0)  # to the bit: who is like its cluster adds nothing
    shares = np.array([2.5, 1.5, 0.5]) / 4.5, np.array([5.5, 0.5, 1.5]) / 7.5
    np.testing.assert_allclose(other, 2 * np.log(shares[0] / shares[1]), rtol=1e-6)
    even, plain = log_prior(labels, 3, 1.0, (7, 7, 7)), log_prior(labels, 3, 1.0)
    np.testing.assert_allclose(even - plain, np.log(3), rtol=1e-6)  # the same to a softmax
    with pytest.raises(AtlasError, match="mix of 2 classes, the task has 3"):
        log_prior(labels, 3, 1.0, (1, 1))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_model_trains_as_if_its_bias_held_the_prior(strength: float, folder_of: Folder) -> None:
    spec = ModelSpec(str(folder_of("bert")))
    prior = log_prior(TABLE.labels[SKEWED], 3, strength)
    held = trained(spec, SKEWED, 0.0, prior)
    bare = replace(held, head={**held.head, BIAS: held.head[BIAS] - prior})
    assert far(trained(spec, SKEWED, strength), bare) < 1e-5
    assert far(trained(spec, SKEWED, strength), trained(spec, SKEWED, 0.0)) > 1e-3


def test_even_classes_need_none(folder_of: Folder) -> None:
    spec = ModelSpec(str(folder_of("bert")))
    assert far(trained(spec, EVEN, 1.0), trained(spec, EVEN, 0.0)) < 1e-5


def test_scores_are_those_of_logits_with_the_prior(folder_of: Folder) -> None:
    spec = ModelSpec(str(folder_of("bert")))
    prior = np.array([0.0, -3.0, 1.0], np.float32)
    added = evaluate(fresh(spec), TABLE, EVEN, precision="fp32", device="cpu", prior=prior)
    held = evaluate(fresh(spec, prior), TABLE, EVEN, precision="fp32", device="cpu")
    assert added.loss == pytest.approx(held.loss, rel=1e-6)
    assert added.metrics == held.metrics
    plain = evaluate(fresh(spec), TABLE, EVEN, precision="fp32", device="cpu")
    assert added.loss != pytest.approx(plain.loss, rel=1e-3)


# ------------------------------------------------------------------ fitted offsets


def drawn(rows: int, bias: Array, seed: int = 0) -> tuple[Array, Array]:
    """Logits, and labels drawn as the logits plus a bias say."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (rows, len(bias)))
    moved = np.exp(logits + bias)
    chances = moved / moved.sum(axis=1, keepdims=True)
    return logits, np.array([rng.choice(len(bias), p=p) for p in chances])


def test_an_offset_of_many_rows_is_the_planted_one_up_to_a_constant() -> None:
    bias = np.array([0.5, -1.5, 1.0])
    found = fitted_offset(*drawn(20_000, bias), None)
    np.testing.assert_allclose(found - found.mean(), bias - bias.mean(), atol=0.06)
    assert found.dtype == np.float32


def test_it_is_the_minimum_that_scipy_finds_without_gradients() -> None:
    logits, labels = drawn(40, np.array([1.0, -1.0]))
    around = np.array([-0.5, 0.5])

    def loss(offset: Array) -> float:
        scores = logits + offset
        likely = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(40), labels]
        return float(likely.sum() + ((offset - around) ** 2).sum() / 2)

    want = minimize(loss, around, method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-10})
    np.testing.assert_allclose(fitted_offset(logits, labels, around), want.x, atol=1e-3)


def test_logits_that_say_nothing_leave_the_log_shares_and_few_rows_the_prior() -> None:
    labels = np.repeat([0, 1], [900, 100])
    found = fitted_offset(np.zeros((1000, 2)), labels, None)
    assert found[0] - found[1] == pytest.approx(np.log(9), abs=0.05)
    prior = log_prior(labels, 2, 1.0)
    np.testing.assert_allclose(fitted_offset(np.zeros((1000, 2)), labels, prior), prior, atol=5e-3)
    one = fitted_offset(np.array([[4.0, -4.0]]), np.array([1]), np.array([0.0, 0.0]))
    assert np.abs(one).max() < 1.0  # one row that was missed by far does not turn the model
    assert fitted_offset(np.zeros((1, 2)), np.array([1]), None)[1] > 0
