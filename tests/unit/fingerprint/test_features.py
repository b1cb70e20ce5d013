"""Fingerprints of real (tiny) models against the plain transformers model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForSequenceClassification

from atlas_flwr.errors import AtlasError
from atlas_flwr.fingerprint.features import KINDS, fingerprint, mean_hidden, subspace_of
from atlas_flwr.fingerprint.prints import read
from atlas_flwr.fingerprint.sketch import count_sketch
from atlas_flwr.fingerprint.subspace import apart, subspace
from atlas_flwr.fingerprint.summary import split, summarise, summarise_vectors
from atlas_flwr.models.adapter_io import initial_parts, read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.types import Tensors
from fakes import ARCHITECTURES, FakeTable, random_parts

TABLE = FakeTable(60)
ROWS = np.arange(3, 51)


def seeded(folder: str, adaptation: str = "lora", dropout: float = 0.0) -> LoadedModel:
    """Return the model as clients start from it."""
    loaded = load(ModelSpec(folder, adaptation, dropout=dropout), 2, 0)
    rank = 4 if adaptation == "lora" else 0
    ranks = dict.fromkeys(loaded.backbone.shapes, rank)
    write_parts(loaded, initial_parts(loaded.spec, 2, ranks, dict.fromkeys(ranks, 2.0), 0, 0))
    return loaded


def ask(loaded: LoadedModel, rows=ROWS, seed: int = 0, **options: object) -> Tensors:
    settings = {"batch_size": 16, "device": "cpu", "threads": 1} | options
    rng = np.random.default_rng(5)
    return fingerprint(loaded, TABLE, rows, 2, seed=seed, rng=rng, **settings)


def by_transformers(folder: str, pad: int) -> np.ndarray:
    """Return the mean over a row's own tokens of the plain model's last hidden state."""
    model = AutoModel.from_pretrained(folder).eval()
    found = []
    for row in ROWS:  # one by one: no padding, no mask
        ids = torch.from_numpy(TABLE.batch(np.array([row]), pad)["input_ids"])
        with torch.inference_mode():
            found.append(model(input_ids=ids).last_hidden_state[0].mean(dim=0).double().numpy())
    return np.stack(found)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_features_are_the_plain_models(architecture: str, folder_of: Callable[[str], str]) -> None:
    folder = folder_of(architecture)
    loaded = seeded(folder)
    want = by_transformers(folder, loaded.pad_token_id)
    got = mean_hidden(loaded, TABLE, ROWS, 7, torch.device("cpu"))
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())
    labels = TABLE.labels[ROWS]
    oracle = summarise(want, labels, 2, seed=0, rng=np.random.default_rng(5))
    own = ask(loaded)
    np.testing.assert_allclose(own["sketch"], oracle["sketch"], rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(own["facts"], oracle["facts"], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_order_of_rows_and_the_batch_size_change_nothing_but_rounding(
    architecture: str, kind: str, folder_of: Callable[[str], str]
) -> None:
    loaded = seeded(folder_of(architecture))
    one = ask(loaded, kind=kind)
    shuffled = ask(loaded, np.random.default_rng(1).permutation(ROWS), kind=kind)
    assert {n: a.tobytes() for n, a in one.items()} == {n: a.tobytes() for n, a in shuffled.items()}
    other = ask(loaded, kind=kind, batch_size=5)
    size = np.abs(one["sketch"]).max()
    np.testing.assert_allclose(other["sketch"], one["sketch"], atol=4e-3 * size)
    np.testing.assert_allclose(other["facts"], one["facts"], rtol=1e-3)
    assert sum(a.nbytes for a in one.values()) <= 8192 - 400
    assert read([one, other]).rows.sum() == 2 * len(ROWS)


@pytest.mark.parametrize("kind", ["mean_gradient", "rms_gradient"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_gradients_are_the_plain_models(
    architecture: str, kind: str, folder_of: Callable[[str], str]
) -> None:
    """Oracle: transformers and autograd, row by row, on weights without adapters."""
    loaded = seeded(folder_of(architecture))
    model = AutoModelForSequenceClassification.from_pretrained(loaded.backbone.path, num_labels=2)
    model.config.pad_token_id = loaded.pad_token_id
    named = dict(model.eval().named_parameters())
    with torch.no_grad():
        for name, parameter in loaded.head.items():
            named[name].copy_(parameter)
    half = split(TABLE.labels[ROWS], np.random.default_rng(5))
    deep = [m for m in loaded.backbone.layers if ".0." in m or ".1." in m]  # both blocks
    layers = {m: model.get_submodule(m).weight for m in deep}
    width = read([ask(loaded, kind=kind)]).means.shape[-1]
    halves = []
    for h in (0, 1):
        sums = {m: torch.zeros_like(w, dtype=torch.float64) for m, w in layers.items()}
        for row in ROWS[half == h]:
            batch = TABLE.batch(np.array([row]), loaded.pad_token_id)
            tensors = {k: torch.from_numpy(v) for k, v in batch.items()}
            labels = tensors.pop("labels")
            loss = F.cross_entropy(model(**tensors).logits, labels)
            for m, g in zip(layers, torch.autograd.grad(loss, list(layers.values())), strict=True):
                sums[m] += g.double() ** 2 if kind == "rms_gradient" else g.double()
        vector = np.zeros(width)
        for m, total in sums.items():
            mean = total.numpy() / np.count_nonzero(half == h)
            values = np.sqrt(mean) if kind == "rms_gradient" else mean
            vector += count_sketch(values, width, 0, m)
        halves.append(vector)
    counts = tuple(int(np.count_nonzero(half == h)) for h in (0, 1))
    want = summarise_vectors(np.stack(halves), counts)
    got = ask(loaded, kind=kind)
    np.testing.assert_allclose(got["sketch"], want["sketch"], rtol=5e-3, atol=5e-3)
    np.testing.assert_array_equal(got["facts"], want["facts"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_the_model_is_left_as_it_was(
    adaptation: str, kind: str, folder_of: Callable[[str], str]
) -> None:
    loaded = seeded(folder_of("distilbert"), adaptation)
    write_parts(loaded, random_parts(loaded, 0, rank=3, spread=0.1))
    before = read_parts(loaded).body()
    free = [p.requires_grad for p in loaded.model.parameters()]
    ask(loaded, kind=kind)
    assert [p.requires_grad for p in loaded.model.parameters()] == free
    assert all(p.grad is None for p in loaded.model.parameters())
    assert not loaded.model.training
    after = read_parts(loaded).body()
    assert {n: t.tobytes() for n, t in before.items()} == {n: t.tobytes() for n, t in after.items()}


@pytest.mark.parametrize("class_wise", [False, True])
def test_subspaces_are_the_plain_models(class_wise: bool, folder_of: Callable[[str], str]) -> None:
    """And neither the order of the rows nor the model's state afterwards depends on asking."""
    folder = folder_of("bert")
    loaded = seeded(folder, dropout=0.5)
    before = read_parts(loaded).body()

    def measured(rows=ROWS, batch_size: int = 16) -> Tensors:
        return subspace_of(
            *(loaded, TABLE, rows, 2), seed=0, class_wise=class_wise, batch_size=batch_size
        )

    got = measured()
    want = by_transformers(folder, loaded.pad_token_id)
    oracle = subspace(want, TABLE.labels[ROWS], 2 if class_wise else 1, seed=0)
    assert got["basis"].shape == oracle["basis"].shape
    for other in (oracle, measured(batch_size=5)):
        assert apart([got, other])[0, 1] < 0.5
    again = measured(np.random.default_rng(1).permutation(ROWS))
    assert again["basis"].tobytes() == got["basis"].tobytes()
    after = read_parts(loaded).body()
    assert {n: t.tobytes() for n, t in before.items()} == {n: t.tobytes() for n, t in after.items()}
    assert not loaded.model.training
    with pytest.raises(AtlasError, match="no rows"):
        measured(ROWS[:0])


def test_full_models_have_fingerprints_too(folder_of: Callable[[str], str]) -> None:
    folder = folder_of("bert")
    lora, full = seeded(folder), seeded(folder, "full")
    for kind in KINDS:
        one, other = ask(lora, kind=kind), ask(full, kind=kind)
        if kind == "class_means":
            np.testing.assert_allclose(one["sketch"], other["sketch"], rtol=2e-3, atol=2e-3)
        assert one["sketch"].shape == other["sketch"].shape


def test_dropout_plays_no_part_and_adapters_do(folder_of: Callable[[str], str]) -> None:
    folder = folder_of("bert")
    plain, dropping = seeded(folder), seeded(folder, dropout=0.5)
    first = ask(plain)
    np.testing.assert_allclose(ask(dropping)["sketch"], first["sketch"], rtol=2e-3, atol=2e-3)
    write_parts(plain, random_parts(plain, 3, rank=4, spread=0.3))
    moved = ask(plain)
    assert not np.allclose(moved["sketch"], first["sketch"], rtol=1e-2)


def test_what_cannot_be_asked_is_refused(folder_of: Callable[[str], str]) -> None:
    loaded = seeded(folder_of("distilbert"))
    for options, match in (
        ({"kind": "gradients"}, "known: class_means"),
        ({"rows": ROWS[:0]}, "no rows"),
        ({"noise": 1.0}, "without a clip"),
        ({"limit": 430}, "hold no sketch"),
        ({"kind": "rms_gradient", "clip": 1.0}, "not for"),
        ({"rows": ROWS[:1], "kind": "mean_gradient"}, "two rows"),
    ):
        with pytest.raises(AtlasError, match=match):
            ask(loaded, **options)
