from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from atlas_flwr.errors import AtlasError
from atlas_flwr.models.adapter_io import initial_parts, read_parts, write_parts
from atlas_flwr.models.backbone import ModelSpec, load
from atlas_flwr.training.evaluate import classification_metrics, evaluate
from fakes import ARCHITECTURES, FakeTable

CLASSES = st.lists(st.integers(0, 2), min_size=1, max_size=30)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_evaluation_is_the_row_by_row_mean(architecture, batch_size, folder_of):
    loaded = load(ModelSpec(folder_of(architecture)), 3, 0)
    table, rows = FakeTable(30, 3), np.array([3, 29, 0, 11, 7, 20, 21, 22])
    losses, answers = [], []
    for row in rows:
        batch = table.batch(np.array([row]), loaded.pad_token_id)
        inputs = {k: torch.from_numpy(v) for k, v in batch.items()}
        labels = inputs.pop("labels")
        with torch.no_grad():
            logits = loaded.model(**inputs).logits
        losses.append(F.cross_entropy(logits, labels).item())
        answers.append(int(logits.argmax()))
    result = evaluate(loaded, table, rows, batch_size, precision="fp32", device="cpu")
    assert result.num_examples == 8
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.metrics == classification_metrics(table.labels[rows], np.array(answers), 3)


def test_no_rows_give_no_metrics(folder_of):
    loaded = load(ModelSpec(folder_of("bert")), 2, 0)
    result = evaluate(loaded, FakeTable(4), np.empty(0, np.int64), device="cpu")
    assert (result.num_examples, dict(result.metrics)) == (0, {})
    assert np.isnan(result.loss)


def test_evaluation_changes_nothing_and_repeats(folder_of):
    spec = ModelSpec(folder_of("bert"), dropout=0.5)
    loaded = load(spec, 2, 0)
    parts = initial_parts(spec, 2, 4, 2.0, 0)
    write_parts(loaded, parts)
    loaded.model.train()
    one = evaluate(loaded, FakeTable(30), np.arange(30), device="cpu")
    two = evaluate(loaded, FakeTable(30), np.arange(30), device="cpu")
    assert one == two
    for name, array in read_parts(loaded).body().items():
        assert np.array_equal(array, parts.body()[name])
    assert all(p.requires_grad for p in loaded.trainable())


def test_a_diverged_model_is_an_error(folder_of):
    loaded = load(ModelSpec(folder_of("bert")), 2, 0)
    loaded.head["classifier.bias"].data.fill_(float("inf"))
    with pytest.raises(AtlasError, match="not finite"):
        evaluate(loaded, FakeTable(8), np.arange(8), device="cpu")
    write_parts(loaded, initial_parts(loaded.spec, 2, 4, 2.0, 0))


@given(labels=CLASSES, seed=st.integers(0, 99))
def test_metrics_are_scikit_learns_and_never_warn(labels, seed):
    truth = np.array(labels)
    guess = np.random.default_rng(seed).integers(0, 3, len(truth))
    ours = classification_metrics(truth, guess, 3)
    assert ours["accuracy"] == pytest.approx(oracle.accuracy_score(truth, guess))
    macro = oracle.f1_score(truth, guess, average="macro", zero_division=0)
    assert ours["macro_f1"] == pytest.approx(macro)
    assert "f1" not in ours
    assert ("mcc" in ours) == (len(set(labels)) > 1)
    if "mcc" in ours:
        assert ours["mcc"] == pytest.approx(oracle.matthews_corrcoef(truth, guess))


@pytest.mark.parametrize(
    ("truth", "guess", "f1", "names"),
    [
        ([0, 1, 1, 0], [0, 1, 0, 1], 0.5, {"accuracy", "f1", "macro_f1", "mcc"}),
        ([0, 0, 0], [0, 0, 0], None, {"accuracy", "macro_f1"}),
        ([0, 0, 0], [0, 1, 0], 0.0, {"accuracy", "f1", "macro_f1"}),
        ([1, 1], [1, 1], 1.0, {"accuracy", "f1", "macro_f1"}),
        ([0, 1], [0, 0], 0.0, {"accuracy", "f1", "macro_f1", "mcc"}),
    ],
)
def test_metrics_that_do_not_exist_are_absent(truth, guess, f1, names):
    metrics = classification_metrics(np.array(truth), np.array(guess), 2)
    assert set(metrics) == names
    assert metrics.get("f1") == f1
