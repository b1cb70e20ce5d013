"""Fed-SB's client: only the square matrix moves, and the layers are plain again afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from atlas_flwr.errors import AtlasError, WireError
from atlas_flwr.models.adapter_io import write_parts
from atlas_flwr.models.lora import factor_parameters
from atlas_flwr.seeding import rng_for, seed_for
from atlas_flwr.training.batches import bucketed
from atlas_flwr.types import Job, ModelParts
from clients.base import FineTuneClient, folded
from clients.core import CoreClient
from clients.full import FullClient
from homes import RANK, SCALE, TABLE, Home, home, same_bits

ARCHITECTURES = ("bert", "gpt2")  # Linear and Conv1D, d_in != d_out


@pytest.fixture(params=ARCHITECTURES)
def place(request: pytest.FixtureRequest, folder_of: Callable[[str], str], tmp_path: Path) -> Home:
    return home(tmp_path, folder_of(request.param))


def sent_to(place: Home, seed: int = 0) -> ModelParts:
    """Return frozen factors, B of orthonormal columns, and small cores, none of them zero."""
    rng = np.random.default_rng(seed)
    parts = place.random(seed)
    up = {m: np.linalg.qr(f.b)[0].astype(np.float32) for m, f in parts.adapter.items()}
    adapter = {m: replace(f, b=up[m]) for m, f in parts.adapter.items()}
    core = {m: (0.1 * rng.normal(size=(RANK, RANK))).astype(np.float32) for m in adapter}
    return replace(parts, adapter=adapter, core=core)


def job_of(parts: ModelParts, **more: object) -> Job:
    returns = frozenset({"core", "head"})
    return replace(Job(0, "train.core", 1, parts, returns=returns), **more)


def assert_plain(place: Home) -> None:
    for layer in place.site.model.backbone.layers.values():
        up = layer.lora_B["default"]
        assert not parametrize.is_parametrized(up)
        assert type(up) is nn.Linear
        assert type(up.weight) is nn.Parameter
        assert [p.requires_grad for p in factor_parameters(layer)] == [True, True]
        assert all(p.grad is None for p in layer.parameters())
    trained = {id(p) for p in place.site.model.trainable()}
    free = {id(p) for p in place.site.model.model.parameters() if p.requires_grad}
    assert free == trained


def test_the_core_is_what_the_layers_computed_with(place: Home) -> None:
    sent = sent_to(place)
    answer = place.fit(job_of(sent), CoreClient)
    assert list(answer.parts.core) == list(sent.core)
    assert not answer.parts.adapter
    assert answer.parts.head.keys() == sent.head.keys()
    left = place.loaded()
    for module, core in answer.parts.core.items():
        assert core.dtype == np.float32
        assert not np.array_equal(core, sent.core[module])
        factors, frozen = left.adapter[module], sent.adapter[module]
        # A is untouched, and the layer's own B is B0 R: the product is B0 R A0.
        assert factors.a.tobytes() == frozen.a.tobytes()
        want = SCALE * (frozen.b.astype(float) @ core.astype(float) @ frozen.a.astype(float))
        np.testing.assert_allclose(factors.product(), want, atol=1e-6)
    assert_plain(place)


def test_nothing_that_was_sent_is_changed_in_place(place: Home) -> None:
    sent, twin = sent_to(place), sent_to(place)
    place.fit(job_of(sent), CoreClient)
    assert same_bits(sent, twin)


def test_training_is_adamw_on_the_core_alone(place: Home) -> None:
    """Oracle: plain LoRA layers whose B is set to B0 R by hand, with dL/dR = B0' dL/dB."""
    sent, spec, model = sent_to(place), place.site.spec, place.site.model
    ours = place.fit(job_of(sent), CoreClient)
    rng = rng_for(place.site.seed, "batches", 1, 0)
    batches = bucketed(TABLE.lengths[place.site.train_rows], spec.batch_size, rng)
    write_parts(model, folded(sent))
    ups = {m: torch.from_numpy(f.b) for m, f in sent.adapter.items()}
    cores = {m: nn.Parameter(torch.from_numpy(c.copy())) for m, c in sent.core.items()}
    chosen = [*cores.values(), *model.head.values()]
    optimizer = torch.optim.AdamW(chosen, lr=spec.learning_rate, weight_decay=0.0)
    losses = []
    model.model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(place.site.seed, "dropout", 1, 0))
        for batch in batches:
            arrays = TABLE.batch(place.site.train_rows[batch], model.pad_token_id)
            inputs = {k: torch.from_numpy(v) for k, v in arrays.items()}
            labels = inputs.pop("labels")
            loss = F.cross_entropy(model.model(**inputs).logits, labels)
            losses += [loss.item()] * len(batch)
            model.model.zero_grad(set_to_none=True)
            loss.backward()
            for module, core in cores.items():
                up = factor_parameters(model.backbone.layers[module])[1]
                core.grad = ups[module].T @ up.grad
            nn.utils.clip_grad_norm_(chosen, spec.max_grad_norm)
            optimizer.step()
            for module, core in cores.items():
                up = factor_parameters(model.backbone.layers[module])[1]
                up.data.copy_(ups[module] @ core.detach())
    model.model.zero_grad(set_to_none=True)
    model.model.eval()
    assert ours.told["loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    for module, core in cores.items():
        got = ours.parts.core[module]
        np.testing.assert_allclose(got, core.detach().numpy(), rtol=1e-3, atol=1e-4)


def test_scoring_folds_the_core_into_b(place: Home) -> None:
    sent = sent_to(place)
    scored = place.evaluate(job_of(sent, action="evaluate"))
    dense = {
        m: replace(f, b=(f.b.astype(float) @ sent.core[m]).astype(np.float32))
        for m, f in sent.adapter.items()
    }
    assert scored == pytest.approx(place.loss_of(replace(sent, adapter=dense, core={})), abs=1e-6)
    assert scored != place.loss_of(replace(sent, core={}))


def test_a_core_of_zero_learns(place: Home) -> None:
    """Fed-SB starts at R = 0, where A0 and B0 still pass the gradient on."""
    sent = sent_to(place)
    zero = replace(sent, core={m: np.zeros_like(c) for m, c in sent.core.items()})
    answer = place.fit(job_of(zero), CoreClient)
    assert all(core.any() for core in answer.parts.core.values())


def test_a_lora_job_right_after_it_is_as_if_it_had_not_been(place: Home) -> None:
    lora = Job(0, "train", 2, place.random(5))
    before = place.fit(lora)
    place.fit(job_of(sent_to(place)), CoreClient)
    assert same_bits(place.fit(lora).parts, before.parts)
    again = place.fit(job_of(sent_to(place)), CoreClient)
    place.fit(lora)
    assert same_bits(place.fit(job_of(sent_to(place)), CoreClient).parts, again.parts)


def test_layers_are_plain_again_after_a_failure(
    place: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = Job(0, "train", 2, place.random(5))
    before = place.fit(lora)
    real = FineTuneClient._train

    def breaks(*words: object, **more: object) -> object:
        real(*words, **more)  # type: ignore[arg-type]
        raise AtlasError("a test")

    with monkeypatch.context() as patch:
        patch.setattr(FineTuneClient, "_train", breaks)
        with pytest.raises(AtlasError, match="a test"):
            place.fit(job_of(sent_to(place)), CoreClient)
    assert_plain(place)
    broken = sent_to(place)
    broken = replace(broken, core={**broken.core, "zz": np.eye(RANK, dtype=np.float32)})
    with pytest.raises(KeyError, match="zz"):
        place.fit(job_of(broken), CoreClient)
    assert_plain(place)
    assert same_bits(place.fit(lora).parts, before.parts)


def test_frozen_factors_are_carried_and_sent_once(place: Home) -> None:
    sent = sent_to(place)
    whole = place.fit(job_of(sent), CoreClient)
    first = place.fit(job_of(sent, carried=(0, 1)), CoreClient)
    later = place.fit(job_of(sent.without("lora_A", "lora_B"), carried=(1, 1)), CoreClient)
    assert same_bits(first.parts, whole.parts)
    assert same_bits(later.parts, whole.parts)


def test_clients_refuse_parts_they_do_not_have(place: Home) -> None:
    sent = sent_to(place)
    weights = replace(sent, weights={"w": np.ones(2, np.float32)})
    with pytest.raises(WireError, match="CoreClient was sent"):
        place.fit(job_of(weights), CoreClient)
    assert_plain(place)
    with pytest.raises(WireError, match="FullClient was sent"):
        place.fit(job_of(sent), FullClient)
