"""Server optimizers against Flower's own and their closed forms."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam as FlowerFedAdam

from atlas_flwr.aggregation.server_opt import Memory, adam_step, momentum_step
from atlas_flwr.engine.inline import adopt_identity


def reply_with(tensors: dict[str, np.ndarray]) -> Message:
    content = RecordDict(
        {
            "arrays": ArrayRecord({name: Array(tensor) for name, tensor in tensors.items()}),
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    return Message(content, reply_to=Message(RecordDict(), 2, "train"))


def test_momentum_zero_and_rate_one_is_the_mean() -> None:
    rng = np.random.default_rng(0)
    previous, mean = {"a": rng.standard_normal((3, 5))}, {"a": rng.standard_normal((3, 5))}
    new, _ = momentum_step(previous, mean, {}, learning_rate=1.0, momentum=0.0)
    np.testing.assert_allclose(new["a"], mean["a"], rtol=1e-12)


def test_momentum_two_steps_closed_form() -> None:
    start = {"a": np.zeros(3)}
    first, memory = momentum_step(start, {"a": np.ones(3)}, {}, learning_rate=0.5, momentum=0.9)
    second, _ = momentum_step(first, {"a": first["a"]}, memory, learning_rate=0.5, momentum=0.9)
    np.testing.assert_allclose(first["a"], 0.5)
    np.testing.assert_allclose(second["a"], 0.5 + 0.5 * 0.9)


def test_adam_follows_flowers_own_over_three_rounds() -> None:
    adopt_identity()
    rng = np.random.default_rng(1)
    current = {"x": rng.standard_normal((3, 5)), "y": rng.standard_normal(4)}
    theirs = FlowerFedAdam(eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3)
    memory: Memory = {}
    for step in (1, 2, 3):
        mean = {name: t + 0.1 * rng.standard_normal(t.shape) for name, t in current.items()}
        theirs.current_arrays = current
        # Flower counts Adam's step as its round + 1; ours counts from 1 as Adam does.
        oracle, _ = theirs.aggregate_train(step - 1, [reply_with(mean)])
        assert oracle is not None
        current, memory = adam_step(
            current, mean, memory, step=step, learning_rate=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3
        )
        for name, tensor in current.items():
            np.testing.assert_allclose(tensor, oracle[name].numpy(), rtol=1e-10)


def test_adam_first_step_closed_form() -> None:
    new, _ = adam_step(
        {"a": np.zeros(2)},
        {"a": np.array([0.5, -2.0])},
        {},
        step=1,
        learning_rate=0.1,
        beta_1=0.9,
        beta_2=0.99,
        tau=1e-9,
    )
    # Bias correction makes the first step η·sign(Δ), up to τ.
    np.testing.assert_allclose(new["a"], [0.1, -0.1], rtol=1e-6)
