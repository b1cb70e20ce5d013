"""Memory is a sum of parts with known slopes; a budget leaves what it leaves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.errors import ConfigError
from atlas_flwr.ranks.budget import Budget, Grant, allowance, cost, rank_costs
from atlas_flwr.ranks.memory import STATE_BYTES, Load, Shape, predict, rank_bytes

MINILM = Shape(layers=6, width=384, inner=1536, heads=12)
LOAD = Load(batch=16, length=32)
FROZEN = {"float32": 22_713_216}


def test_the_parts_are_their_formulas():
    memory = predict(FROZEN, MINILM, LOAD, head=770, adapter=36_864, ranks=48, workspace=5_000)
    assert memory.weights == 4 * FROZEN["float32"]
    assert (memory.head, memory.adapter) == (16 * 770, 16 * 36_864)
    block = 16 * 32 * (10 * 384 + 2 * 1536) + 16 * 3 * 12 * 32**2
    assert memory.activations == 4 * (6 * block + 16 * 32 * 48)
    assert memory.total == sum(vars(memory).values())


@pytest.mark.parametrize(
    ("batch", "length", "counted"),
    [(16, 32, 100.0), (16, 64, 228.2), (8, 128, 284.8), (16, 128, 569.6)],
)
def test_activations_are_those_autograd_was_seen_to_keep(batch, length, counted):
    """Counted in MB with saved-tensor hooks on MiniLM with LoRA, float32, training mode."""
    seen = predict({}, MINILM, Load(batch, length), ranks=37).activations / 1e6
    assert seen == pytest.approx(counted, rel=0.02)


def test_weights_follow_their_dtypes_and_half_a_byte_rounds_up():
    assert predict({"float16": 10, "int4": 3}, MINILM, LOAD).weights == 22
    assert predict({}, MINILM, LOAD).weights == 0


def test_doubling_the_batch_doubles_activations_and_length_more_than_doubles():
    one = predict(FROZEN, MINILM, LOAD).activations
    assert predict(FROZEN, MINILM, replace(LOAD, batch=32)).activations == 2 * one
    assert predict(FROZEN, MINILM, replace(LOAD, length=64)).activations > 2 * one
    fused = replace(MINILM, maps=0.0)
    long = predict(FROZEN, fused, replace(LOAD, length=64)).activations
    assert long == 2 * predict(FROZEN, fused, LOAD).activations
    assert predict(FROZEN, replace(MINILM, inner=0), LOAD).activations == one  # 4 × width


def test_the_allocator_s_slack_is_a_share_of_the_activations_and_no_activation():
    plain = predict(FROZEN, MINILM, LOAD, workspace=1000)
    slack = predict(FROZEN, MINILM, replace(LOAD, slack=0.25), workspace=1000)
    assert slack.activations == plain.activations
    assert slack.workspace == pytest.approx(1000 + plain.activations / 4, abs=1)


def test_a_composed_activation_keeps_more_of_the_feed_forward():
    gelu_new = predict(FROZEN, replace(MINILM, inner_kept=5.0), LOAD).activations
    more = 3 * 4 * LOAD.batch * LOAD.length * MINILM.layers * MINILM.inner
    assert gelu_new == predict(FROZEN, MINILM, LOAD).activations + more


def test_costs_count_both_sides_of_each_module():
    shapes = {"query": (384, 384), "up": (1536, 384)}
    assert rank_costs(shapes) == {"query": 768, "up": 1920}
    assert cost({"query": 4, "up": 8}, rank_costs(shapes, 4)) == 4 * (4 * 768 + 8 * 1920)


def test_the_smallest_allowance_binds():
    resting = predict(FROZEN, MINILM, LOAD, head=770)
    everything = Budget(memory=2 * 10**9, state=10**6, uplink=100_000)
    seen = allowance(everything, resting, head=770)
    assert seen.each == {
        "memory": (2 * 10**9 - resting.total) // STATE_BYTES,
        "state": 62_500 - 770,
        "uplink": 25_000 - 770,
    }
    assert (seen.params, seen.by) == (24_230, "uplink")
    assert allowance(everything, resting, head=770, sends_head=False).params == 25_000
    assert allowance(Budget(memory=2 * 10**9), resting).by == "memory"
    assert allowance(Budget(), resting).params is None


def test_an_adapter_of_the_allowance_fits_each_budget_and_one_more_does_not():
    resting = predict(FROZEN, MINILM, LOAD, head=770)
    limit = Budget(memory=resting.total + 160_000)
    params = allowance(limit, resting, head=770).params
    fits = predict(FROZEN, MINILM, LOAD, head=770, adapter=params)
    more = predict(FROZEN, MINILM, LOAD, head=770, adapter=params + 1)
    assert fits.total <= limit.memory < more.total


@given(
    load=st.builds(
        Load, st.integers(1, 64), st.integers(1, 512), slack=st.sampled_from([0.0, 0.37, 0.5])
    ),
    costs=st.lists(st.integers(2, 2000), min_size=1, max_size=8),
    room=st.integers(10**6, 10**8),
    seed=st.integers(0, 99),
)
def test_whatever_ranks_spend_the_allowance_the_memory_is_not_exceeded(load, costs, room, seed):
    """However the parameters are dealt to modules, ``A x`` of each rank is paid for."""
    fixed = {"head": 770, "workspace": 10**6}
    resting, each = predict(FROZEN, MINILM, load, **fixed), rank_bytes(load)
    limit = Budget(memory=resting.total + room)
    params = allowance(limit, resting, rank_bytes=each, narrowest=min(costs)).params
    ranks, left, rng = 0, params, np.random.default_rng(seed)
    while fitting := [c for c in costs if c <= left]:
        one = int(rng.choice(fitting))
        times = int(rng.integers(1, left // one, endpoint=True))
        ranks, left = ranks + times, left - times * one
    used = params - left
    told = predict(FROZEN, MINILM, load, **fixed, adapter=used, ranks=ranks).total
    assert told <= limit.memory
    grant = Grant(params, resting=resting, rank_bytes=each, ranks=params // min(costs))
    assert told <= grant.memory(used, ranks) <= told + 2 * ranks  # rounded up, rank by rank
    assert grant.memory(used, ranks) <= grant.needs <= limit.memory


@given(
    load=st.builds(Load, st.integers(1, 64), st.integers(1, 512)),
    shapes=st.lists(st.tuples(st.integers(2, 900), st.integers(2, 900)), min_size=1, max_size=6),
    room=st.integers(10**6, 10**8),
    seed=st.integers(0, 99),
)
def test_a_frozen_a_is_paid_for_however_ranks_are_dealt(load, shapes, room, seed):
    """Oracle: the memory model, with A's values as weights that are held and not trained."""
    named = {str(index): shape for index, shape in enumerate(shapes)}
    resting, each = predict(FROZEN, MINILM, load), rank_bytes(load)
    limit = Budget(memory=resting.total + room)
    narrowest = min(rank_costs(named).values())
    allowed = allowance(limit, resting, rank_bytes=each, narrowest=narrowest)
    both = Grant(allowed.params, "memory", "room", allowed.each, resting, each)
    grant = both.of_b_alone(named)
    assert grant.params <= both.params
    left, rng, ranks = grant.params, np.random.default_rng(seed), dict.fromkeys(named, 0)
    while fitting := [m for m, (d_out, _) in named.items() if d_out <= left]:
        module = str(rng.choice(fitting))
        times = int(rng.integers(1, left // named[module][0], endpoint=True))
        ranks[module] += times
        left -= times * named[module][0]
    frozen = sum(rank * named[module][1] for module, rank in ranks.items())
    weights = {**FROZEN, "float32": FROZEN.get("float32", 0) + frozen}
    spent = {"adapter": grant.params - left, "ranks": sum(ranks.values())}
    told = predict(weights, MINILM, load, **spent).total
    assert told <= limit.memory
    held = grant.memory(grant.params - left, sum(ranks.values()), frozen)
    assert told <= held <= told + 2 * sum(ranks.values())
    assert Grant(7, "lora.rank").of_b_alone(named).params == 7  # nobody said what memory there is


def test_a_rank_holds_a_value_of_each_token_and_its_slack():
    load = Load(batch=16, length=128, slack=0.37)
    one = predict(FROZEN, MINILM, load).total
    assert rank_bytes(load) == 16 * 128 * 4 + 3032  # 0.37 of 8192, rounded up
    assert predict(FROZEN, MINILM, load, ranks=48).total == pytest.approx(
        one + 48 * rank_bytes(load), abs=48
    )
    assert Grant(5).needs is None  # nothing is known of the model


def test_names_and_headers_are_paid_out_of_the_uplink():
    resting = predict(FROZEN, MINILM, LOAD)
    seen = allowance(Budget(uplink=100_000), resting, head=770, overhead=20_000)
    assert seen.params == 20_000 - 770
    with pytest.raises(ConfigError, match="20000 bytes of uplink leave nothing"):
        allowance(Budget(uplink=20_000), resting, overhead=20_000)


BAD = {
    "dtype 'int3'": lambda: predict({"int3": 4}, MINILM, LOAD),
    "frozen float32": lambda: predict({"float32": -1}, MINILM, LOAD),
    "batch: memory": lambda: predict({}, MINILM, Load(-1, 8)),
    "workspace": lambda: predict({}, MINILM, LOAD, workspace=-5),
    "1000 bytes of memory leave nothing": lambda: allowance(
        Budget(memory=1000), predict(FROZEN, MINILM, LOAD)
    ),
    "3000 bytes of uplink leave nothing": lambda: allowance(
        Budget(uplink=3000), predict({}, MINILM, LOAD), head=770
    ),
}


@pytest.mark.parametrize("text", BAD)
def test_what_has_no_memory_is_refused(text):
    with pytest.raises(ConfigError, match=text):
        BAD[text]()
