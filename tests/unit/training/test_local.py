from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atlas_flwr.errors import AtlasError, UserError
from atlas_flwr.models import backbone
from atlas_flwr.models.adapter_io import initial_parts, read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.training.batches import bucketed
from atlas_flwr.training.evaluate import evaluate
from atlas_flwr.training.local import Goal, TrainSpec, train
from atlas_flwr.types import ModelParts
from fakes import ARCHITECTURES, FakeTable

SPEC = TrainSpec(batch_size=8, learning_rate=5e-3, precision="fp32", device="cpu")
TABLE = FakeTable(48)
ROWS = np.arange(2, 42)


def fresh(spec: ModelSpec, rank: int = 4) -> LoadedModel:
    loaded = load(spec, 2, 0)
    write_parts(loaded, initial_parts(spec, 2, rank, 2.0, 0))
    return loaded


def trained(spec: ModelSpec, how: TrainSpec = SPEC, **options) -> ModelParts:
    loaded = fresh(spec)
    train(loaded, TABLE, ROWS, how, np.random.default_rng(0), 7, **options)
    return read_parts(loaded)


def tensors(parts: ModelParts) -> dict[str, np.ndarray]:
    return parts.body() | dict(parts.head)


def same_bits(one: ModelParts, two: ModelParts) -> bool:
    a, b = tensors(one), tensors(two)
    return a.keys() == b.keys() and all(a[n].tobytes() == b[n].tobytes() for n in a)


@pytest.mark.parametrize("adaptation", ["lora", "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_learns(architecture, adaptation, folder_of):
    loaded = fresh(ModelSpec(folder_of(architecture), adaptation=adaptation))
    before = evaluate(loaded, TABLE, ROWS, device="cpu", precision="fp32")
    result = train(loaded, TABLE, ROWS, replace(SPEC, epochs=6), np.random.default_rng(0), 7)
    after = evaluate(loaded, TABLE, ROWS, device="cpu", precision="fp32")
    assert (result.num_examples, result.steps, result.micro_batch) == (40, 30, 8)
    assert result.notes == ()
    assert after.loss < 0.7 * before.loss
    assert not loaded.model.training
    assert all(p.grad is None for p in loaded.model.parameters())


@pytest.mark.parametrize("adaptation", ["lora", "full"])
def test_same_arguments_same_bits_whatever_came_before(adaptation, folder_of):
    spec = ModelSpec(folder_of("roberta"), adaptation=adaptation, dropout=0.2)
    first = trained(spec)
    torch.rand(5)
    trained(spec, replace(SPEC, learning_rate=0.5), goal=Goal(prox_mu=1.0))
    other = load(spec, 5, 3)
    train(other, FakeTable(16, 5), np.arange(16), SPEC, np.random.default_rng(1), 1)
    second = trained(spec)
    backbone.forget()
    third = trained(spec)
    assert same_bits(first, second)
    assert same_bits(first, third)


def test_seeds_decide_and_global_state_is_left_alone(folder_of):
    spec = ModelSpec(folder_of("bert"))
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    base = trained(spec)
    loaded = fresh(spec)
    train(loaded, TABLE, ROWS, SPEC, np.random.default_rng(0), 8)
    assert not same_bits(base, read_parts(loaded))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_lora_training_leaves_the_backbone_alone(folder_of):
    loaded = fresh(ModelSpec(folder_of("distilbert")))
    held = {id(p) for p in loaded.trainable()}
    frozen = {n: p for n, p in loaded.model.named_parameters() if id(p) not in held}
    before = {n: p.clone() for n, p in frozen.items()}
    train(loaded, TABLE, ROWS, SPEC, np.random.default_rng(0), 7)
    assert frozen
    assert all(torch.equal(before[n], p) for n, p in frozen.items())


@pytest.mark.parametrize("mu", [0.0, 0.3])
def test_training_is_a_plain_pytorch_loop(mu, folder_of):
    """Oracle: the textbook loop, the proximal term written into the loss."""
    spec = ModelSpec(folder_of("bert"))
    how = replace(SPEC, epochs=2, weight_decay=0.01, max_grad_norm=0.5)
    loaded = fresh(spec)
    result = train(loaded, TABLE, ROWS, how, np.random.default_rng(0), 7, Goal(prox_mu=mu))
    ours = read_parts(loaded)

    loaded = fresh(spec)
    parameters, rng, losses = loaded.trainable(), np.random.default_rng(0), []
    start = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=how.learning_rate, weight_decay=0.01)
    loaded.model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for _ in range(2):
            for batch in bucketed(TABLE.lengths[ROWS], 8, rng):
                arrays = TABLE.batch(ROWS[batch], 0)
                inputs = {k: torch.from_numpy(v) for k, v in arrays.items()}
                labels = inputs.pop("labels")
                loss = F.cross_entropy(loaded.model(**inputs).logits, labels)
                losses += [loss.item()] * len(batch)
                drift = sum(((p - s) ** 2).sum() for p, s in zip(parameters, start, strict=True))
                optimizer.zero_grad()
                (loss + mu / 2 * drift).backward()
                nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
    loaded.model.eval()
    theirs = tensors(read_parts(loaded))
    for name, array in tensors(ours).items():
        np.testing.assert_allclose(array, theirs[name], rtol=1e-4, atol=2e-6, err_msg=name)
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_proximal_term_of_zero_is_no_term_and_of_much_holds_back(folder_of):
    spec = ModelSpec(folder_of("bert"))
    start = tensors(initial_parts(spec, 2, 4, 2.0, 0))

    def drift(parts: ModelParts) -> float:
        return float(sum(((a - start[n]) ** 2).sum() for n, a in tensors(parts).items()))

    how = replace(SPEC, epochs=3)
    free = trained(spec, how)
    assert same_bits(free, trained(spec, how, goal=Goal(prox_mu=0.0)))
    assert drift(trained(spec, how, goal=Goal(prox_mu=10.0))) < 0.5 * drift(free)


@pytest.mark.parametrize("steps", [1, 3, 5, 12])
def test_max_steps_are_taken_exactly(steps, folder_of):
    loaded = fresh(ModelSpec(folder_of("gpt2")))
    rng = np.random.default_rng(0)
    assert train(loaded, TABLE, ROWS, SPEC, rng, 7, max_steps=steps).steps == steps


def test_max_steps_of_the_same_epochs_are_the_same_bits(folder_of):
    spec = ModelSpec(folder_of("gpt2"))
    assert same_bits(trained(spec, replace(SPEC, epochs=2)), trained(spec, SPEC, max_steps=10))


def test_bf16_trains_float32_tensors(folder_of):
    parts = trained(ModelSpec(folder_of("bert")), replace(SPEC, precision="bf16"))
    exact = trained(ModelSpec(folder_of("bert")))
    assert not same_bits(parts, exact)
    for name, array in tensors(parts).items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, tensors(exact)[name], atol=0.06)


# ------------------------------------------------------------------ refusals and memory


def test_no_rows_and_no_gpu_are_refused(folder_of, monkeypatch):
    loaded = fresh(ModelSpec(folder_of("bert")))
    rng = np.random.default_rng(0)
    with pytest.raises(AtlasError, match="no rows"):
        train(loaded, TABLE, ROWS[:0], SPEC, rng, 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"engine\.device"):
        train(loaded, TABLE, ROWS, replace(SPEC, device="cuda"), rng, 7)


def test_divergence_is_an_error(folder_of):
    loaded = fresh(ModelSpec(folder_of("bert")))
    loaded.head["classifier.bias"].data.fill_(float("nan"))
    with pytest.raises(AtlasError, match="loss is not finite"):
        train(loaded, TABLE, ROWS, SPEC, np.random.default_rng(0), 7)
    assert not loaded.model.training
    write_parts(loaded, initial_parts(loaded.spec, 2, 4, 2.0, 0))


class OutOfMemoryAbove:
    """A forward hook that fails like CUDA does when a batch has more than ``most`` rows."""

    def __init__(self, loaded: LoadedModel, most: int) -> None:
        self._most, self.rows = most, []
        self._handle = loaded.model.register_forward_hook(self)

    def __call__(self, module, args, output) -> None:
        rows = len(output.logits)
        self.rows.append(rows)
        if rows > self._most:
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")

    def __enter__(self) -> OutOfMemoryAbove:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@pytest.fixture
def no_dropout(folder_of):
    """A model without dropout: micro-batches draw other masks than whole batches."""
    spec = ModelSpec(folder_of("distilbert"))
    modules = [m for m in load(spec, 2, 0).model.modules() if isinstance(m, nn.Dropout)]
    rates = [m.p for m in modules]
    attention = [m for m in load(spec, 2, 0).model.modules() if hasattr(m, "dropout_prob")]
    assert not attention
    for module in modules:
        module.p = 0.0
    yield spec
    for module, rate in zip(modules, rates, strict=True):
        module.p = rate


@pytest.mark.parametrize(("most", "micro"), [(7, 4), (3, 2), (1, 1)])
def test_too_little_memory_changes_the_micro_batch_and_nothing_else(no_dropout, most, micro):
    whole = tensors(trained(no_dropout))
    loaded = fresh(no_dropout)
    with OutOfMemoryAbove(loaded, most) as limit:
        result = train(loaded, TABLE, ROWS, SPEC, np.random.default_rng(0), 7)
    assert result.micro_batch == micro
    assert "micro-batches" in result.notes[0]
    assert "\n" not in result.notes[0]
    assert result.steps == 5
    assert max(limit.rows[4:]) <= most
    for name, array in tensors(read_parts(loaded)).items():
        np.testing.assert_allclose(array, whole[name], rtol=2e-4, atol=2e-5, err_msg=name)


def test_too_little_memory_for_one_row_is_an_error(no_dropout):
    loaded = fresh(no_dropout)
    with (
        OutOfMemoryAbove(loaded, 0),
        pytest.raises(AtlasError, match="single row"),
    ):
        train(loaded, TABLE, ROWS, SPEC, np.random.default_rng(0), 7)
    assert all(p.grad is None for p in loaded.model.parameters())


def test_evaluation_halves_its_batch_too(no_dropout):
    loaded = fresh(no_dropout)
    whole = evaluate(loaded, TABLE, ROWS, device="cpu", precision="fp32")
    with OutOfMemoryAbove(loaded, 9):
        halved = evaluate(loaded, TABLE, ROWS, device="cpu", precision="fp32")
    assert halved.metrics == whole.metrics
    assert halved.loss == pytest.approx(whole.loss, rel=1e-6)
    with OutOfMemoryAbove(loaded, 0), pytest.raises(AtlasError, match="single row"):
        evaluate(loaded, TABLE, ROWS, device="cpu", precision="fp32")
