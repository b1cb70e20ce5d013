"""What a stage of training moves, and towards what besides a small loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from atlas_flwr.errors import AtlasError
from atlas_flwr.models.adapter_io import initial_parts, read_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.training.batches import bucketed
from atlas_flwr.training.local import Goal, TrainResult, TrainSpec, train
from atlas_flwr.types import BODY, ModelParts, Part
from fakes import FakeTable, random_parts

SPEC = TrainSpec(batch_size=8, learning_rate=5e-3, precision="fp32", device="cpu")
TABLE = FakeTable(48)
ROWS = np.arange(2, 42)
ONE_STEP = replace(SPEC, max_grad_norm=1e9)


def fresh(spec: ModelSpec, seed: int = 0) -> LoadedModel:
    """Return the model with small random factors: B is not zero, so that A moves too."""
    loaded = load(spec, 2, 0)
    if spec.adaptation == "full":
        write_parts(loaded, initial_parts(spec, 2, 4, 2.0, 0))
    else:
        write_parts(loaded, random_parts(loaded, seed, rank=4, spread=0.1))
    return loaded


def run(loaded: LoadedModel, goal: Goal, how: TrainSpec = SPEC, **more: object) -> TrainResult:
    return train(loaded, TABLE, ROWS, how, np.random.default_rng(0), 7, goal, **more)


def tensors(parts: ModelParts) -> dict[str, np.ndarray]:
    return parts.body() | dict(parts.head)


def part_of(parts: ModelParts, name: str) -> Part:
    if name in parts.head:
        return "head"
    ending = name.rpartition(".")[2]
    return ending if ending in ("lora_A", "lora_B") else "weights"  # type: ignore[return-value]


CHOICES: list[tuple[str, set[Part]]] = [
    ("lora", {"head"}),
    ("lora", {"lora_B", "head"}),
    ("lora", {"lora_A"}),
    ("lora", set(BODY)),
    ("full", {"head"}),
    ("full", {"weights"}),
]


@pytest.mark.parametrize(("adaptation", "trains"), CHOICES)
def test_only_what_is_named_moves(adaptation, trains, folder_of):
    loaded = fresh(ModelSpec(folder_of("bert"), adaptation=adaptation))
    free = [p.requires_grad for p in loaded.model.parameters()]
    start = read_parts(loaded)
    run(loaded, Goal(loaded.trainable(trains)))
    end = tensors(read_parts(loaded))
    for name, tensor in tensors(start).items():
        moved = tensor.tobytes() != end[name].tobytes()
        assert moved == (part_of(start, name) in trains), name
    assert [p.requires_grad for p in loaded.model.parameters()] == free
    assert all(p.grad is None for p in loaded.model.parameters())


def test_what_is_named_is_free_again_after_a_failure(folder_of):
    loaded = fresh(ModelSpec(folder_of("bert")))
    free = [p.requires_grad for p in loaded.model.parameters()]
    before = tensors(read_parts(loaded))
    chosen = loaded.trainable({"lora_B"})

    def breaks() -> torch.Tensor:
        assert [p.requires_grad for p in chosen] == [True] * len(chosen)
        assert sum(p.requires_grad for p in loaded.model.parameters()) == len(chosen)
        raise AtlasError("a test")

    with pytest.raises(AtlasError, match="a test"):
        run(loaded, Goal(chosen, penalty=breaks))
    assert [p.requires_grad for p in loaded.model.parameters()] == free
    assert all(p.grad is None for p in loaded.model.parameters())
    assert not loaded.model.training
    after = tensors(read_parts(loaded))
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_stages_hold_still_to_the_bit_what_they_do_not_train(folder_of):
    """FedRep's two stages, and an optimizer of its own for each."""
    spec = ModelSpec(folder_of("gpt2"))
    loaded = fresh(spec)
    start = tensors(read_parts(loaded))
    run(loaded, Goal(loaded.trainable({"head"})))
    middle = tensors(read_parts(loaded))
    run(loaded, Goal(loaded.trainable(BODY)))
    end = tensors(read_parts(loaded))
    heads = set(read_parts(loaded).head)
    for name in start:
        steps = start[name].tobytes(), middle[name].tobytes(), end[name].tobytes()
        first, second = steps[0] != steps[1], steps[1] != steps[2]
        assert (first, second) == ((name in heads), (name not in heads)), name


def test_all_parts_named_are_no_choice_at_all(folder_of):
    spec = ModelSpec(folder_of("bert"))
    ends = []
    for goal in (Goal(), Goal(fresh(spec).trainable())):
        loaded = fresh(spec)
        run(loaded, goal)
        ends.append(tensors(read_parts(loaded)))
    assert all(ends[0][name].tobytes() == ends[1][name].tobytes() for name in ends[0])


# ------------------------------------------------------------------ anchors


def distance(parameters: list[nn.Parameter], centre: list[torch.Tensor]) -> float:
    pairs = zip(parameters, centre, strict=True)
    return float(sum((p.detach() - c).square().sum() for p, c in pairs))


def test_anchors_pull_to_the_anchor_and_not_to_the_start(folder_of):
    spec = ModelSpec(folder_of("bert"))
    anchors = [p.detach().clone() for p in fresh(spec, seed=9).trainable()]
    ends = {}
    for mu, centre in ((0.0, anchors), (1e3, anchors), (1e3, None)):
        loaded = fresh(spec)
        start = [p.detach().clone() for p in loaded.trainable()]
        run(loaded, Goal(prox_mu=mu, anchors=centre), replace(SPEC, epochs=20))
        moving = loaded.trainable()
        ends[mu, centre is None] = distance(moving, anchors), distance(moving, start)
    apart = distance(fresh(spec).trainable(), anchors)
    near, far = ends[1e3, False]
    assert near < 0.05 * apart
    assert far > 0.5 * apart
    # Without anchors the start is the centre.
    assert ends[1e3, True][1] < 0.05 * apart
    # Without a weight they pull nowhere.
    assert ends[0.0, False][0] > 0.5 * apart


def test_anchors_are_one_for_each_parameter(folder_of):
    loaded = fresh(ModelSpec(folder_of("bert")))
    anchors = [p.detach().clone() for p in loaded.trainable()][:-1]
    with pytest.raises(ValueError, match="zip"):
        run(loaded, Goal(prox_mu=1.0, anchors=anchors))


def test_the_pull_is_that_of_the_term_in_the_loss(folder_of):
    """Oracle: the textbook loop with ``(mu/2) ||theta - anchor||^2`` written into the loss."""
    spec = ModelSpec(folder_of("bert"))
    how = replace(SPEC, max_grad_norm=0.5)
    anchors = [p.detach().clone() for p in fresh(spec, seed=9).trainable({"lora_B", "head"})]
    loaded = fresh(spec)
    chosen = loaded.trainable({"lora_B", "head"})
    run(loaded, Goal(chosen, prox_mu=0.3, anchors=anchors), how, max_steps=3)
    ours = tensors(read_parts(loaded))

    def term(loaded: LoadedModel) -> torch.Tensor:
        pairs = zip(loaded.trainable({"lora_B", "head"}), anchors, strict=True)
        return 0.15 * sum((p - a).square().sum() for p, a in pairs)

    theirs = by_hand(fresh(spec), how, 3, {"lora_B", "head"}, term)
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=1e-4, atol=2e-6, err_msg=name)


def by_hand(
    loaded: LoadedModel,
    how: TrainSpec,
    steps: int,
    trains: set[Part],
    term: Callable[[LoadedModel], torch.Tensor],
) -> dict[str, np.ndarray]:
    """Train with plain PyTorch, a term added to the mean loss."""
    chosen, rng = loaded.trainable(trains), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(chosen, lr=how.learning_rate, weight_decay=0.0)
    loaded.model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        for batch in bucketed(TABLE.lengths[ROWS], how.batch_size, rng)[:steps]:
            inputs = {k: torch.from_numpy(v) for k, v in TABLE.batch(ROWS[batch], 0).items()}
            labels = inputs.pop("labels")
            loss = F.cross_entropy(loaded.model(**inputs).logits, labels) + term(loaded)
            gradients = torch.autograd.grad(loss, chosen)
            for parameter, gradient in zip(chosen, gradients, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(chosen, how.max_grad_norm)
            optimizer.step()
    loaded.model.zero_grad(set_to_none=True)
    loaded.model.eval()
    return tensors(read_parts(loaded))


# ------------------------------------------------------------------ penalty


def squares(loaded: LoadedModel) -> torch.Tensor:
    """Return a penalty: the squares of all B's."""
    return 0.7 * sum(b.square().sum() for b in loaded.trainable({"lora_B"}))


def test_a_penalty_adds_its_gradient(folder_of):
    spec = ModelSpec(folder_of("bert"))
    loaded = fresh(spec)
    plain = run(loaded, Goal(), max_steps=3)
    without = tensors(read_parts(loaded))
    loaded = fresh(spec)
    result = run(loaded, Goal(penalty=lambda: squares(loaded)), max_steps=3)
    ours = tensors(read_parts(loaded))
    theirs = by_hand(fresh(spec), SPEC, 3, {"lora_A", "lora_B", "head"}, squares)
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=1e-4, atol=2e-6, err_msg=name)
    assert any(not np.allclose(ours[name], without[name], atol=1e-4) for name in ours)
    # The loss that is told is the rows' alone.
    first = [run(fresh(spec), goal, max_steps=1).loss for goal in (Goal(), Goal(prox_mu=5.0))]
    assert first[0] == first[1]
    assert abs(result.loss - plain.loss) < 0.1


def test_a_penalty_comes_once_a_step_however_small_the_micro_batches(folder_of):
    spec = ModelSpec(folder_of("distilbert"))
    module = load(spec, 2, 0).model
    rates = [(m, m.p) for m in module.modules() if isinstance(m, nn.Dropout)]
    for dropout, _ in rates:
        dropout.p = 0.0  # micro-batches draw other masks than whole batches
    try:
        found = {most: _steps_with_at_most(spec, most) for most in (8, 3, 1)}
    finally:
        for dropout, rate in rates:
            dropout.p = rate
    for most, (calls, end) in found.items():
        # A step that ran out of memory never got as far as its penalty.
        assert calls == 5, most
        for name, tensor in end.items():
            np.testing.assert_allclose(tensor, found[8][1][name], rtol=2e-4, atol=2e-5)


def _steps_with_at_most(spec: ModelSpec, most: int) -> tuple[int, dict[str, np.ndarray]]:
    """Train five steps on a device that takes ``most`` rows at once; count the penalty's calls."""
    loaded, calls = fresh(spec), 0

    def full(module: nn.Module, args: object, output: object) -> None:
        if len(output.logits) > most:  # type: ignore[attr-defined]
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")

    def penalty() -> torch.Tensor:
        nonlocal calls
        calls += 1
        return squares(loaded)

    handle = loaded.model.register_forward_hook(full)
    try:
        run(loaded, Goal(penalty=penalty))
    finally:
        handle.remove()
    return calls, tensors(read_parts(loaded))
