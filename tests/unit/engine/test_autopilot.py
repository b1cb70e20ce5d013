"""Laws of the plan: never over the budget, monotone in memory, one client or a clear error."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from atlas_flwr.engine.autopilot import MARGIN, Need, Plan, Room, plan
from atlas_flwr.errors import ConfigError

needs = st.builds(
    lambda base, row, batch, host: Need(base + row * batch, base, batch, host),
    base=st.floats(1, 20_000),
    row=st.floats(0, 2_000),
    batch=st.integers(1, 64),
    host=st.floats(0, 5_000),
)
rooms = st.builds(
    lambda total, share, gpus, cpus, host: Room(total * share, total, gpus, cpus, host),
    total=st.floats(1_000, 100_000),
    share=st.floats(0.05, 1),
    gpus=st.integers(1, 8),
    cpus=st.integers(1, 64),
    host=st.floats(0, 200_000),
)
clients = st.integers(1, 100)


def planned(need: Need, room: Room, count: int) -> Plan | None:
    try:
        return plan(need, room, count)
    except ConfigError:
        return None


@given(needs, rooms, clients)
def test_no_gpu_is_promised_more_than_is_free(need: Need, room: Room, count: int) -> None:
    chosen = planned(need, room, count)
    assume(chosen is not None)
    assert chosen is not None
    held = chosen.per_gpu * need.at(chosen.micro_batch)
    assert held <= room.free_mb * (1 - MARGIN) * (1 + 1e-9)
    assert 1 <= chosen.workers <= min(room.cpus, count)
    assert chosen.workers <= chosen.per_gpu * room.gpus
    assert 1 <= chosen.micro_batch <= need.batch


@given(needs, rooms, clients)
def test_shares_of_a_gpu_add_up_as_ray_and_flower_count(need: Need, room: Room, count: int) -> None:
    """Flower takes floor(GPUs / share) workers; Ray counts in ten-thousandths, rounded."""
    chosen = planned(need, room, count)
    assume(chosen is not None)
    assert chosen is not None
    assert round(chosen.fraction * 10_000) * chosen.per_gpu <= 10_000
    assert int(room.gpus / chosen.fraction) >= chosen.workers


@given(needs, rooms, clients, st.floats(1, 4))
def test_more_memory_never_means_fewer_clients_or_smaller_batches(
    need: Need, room: Room, count: int, times: float
) -> None:
    before = planned(need, room, count)
    assume(before is not None)
    more = replace(room, free_mb=room.free_mb * times, total_mb=room.total_mb * times)
    after = planned(need, more, count)
    assert before is not None
    assert after is not None
    assert after.micro_batch >= before.micro_batch
    if after.micro_batch == before.micro_batch:
        assert after.workers >= before.workers


@given(needs, rooms, clients)
def test_a_refusal_is_true_and_names_what_would_do(need: Need, room: Room, count: int) -> None:
    if planned(need, room, count) is None:
        assert need.at(1) > room.free_mb * (1 - MARGIN)
        enough = replace(room, free_mb=need.at(1) / (1 - MARGIN) * 1.001)
        assert planned(need, enough, count) is not None


def test_the_refusal_has_the_smallest_need_in_it() -> None:
    need, room = Need(5_000, 4_000, 10), Room(3_000, 16_000)
    with pytest.raises(ConfigError, match=r"4,556 MB .* single row, 3,000 of 16,000 MB"):
        plan(need, room, 4)


def test_what_it_says_is_what_it_chose() -> None:
    chosen = plan(Need(1_500, 900, 16), Room(14_000, 16_000, cpus=12), 30)
    assert (chosen.workers, chosen.fraction, chosen.micro_batch) == (8, 0.125, 16)
    assert chosen.reasons == (
        "8 clients share a GPU: one needs 1,500 MB, 14,000 of 16,000 MB free; limited by memory "
        "of the GPU",
    )
    cores = plan(Need(1_500, 900, 16), Room(14_000, 16_000, cpus=2), 30)
    assert cores.reasons[0].endswith("limited by CPU cores")
    all_ = plan(Need(1_500, 900, 16), Room(14_000, 16_000, cpus=2), 2)
    assert all_.reasons[0].endswith("limited by clients")  # more cores would change nothing
    two = plan(Need(1_500, 900, 16), Room(14_000, 16_000, gpus=2, cpus=64), 30)
    assert (two.workers, two.per_gpu) == (16, 8)
    assert "8 clients share a GPU (16 at a time on 2 GPUs)" in two.reasons[0]


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    chosen = plan(Need(9_000, 1_000, 16), Room(4_000, 4_000, cpus=8), 8)
    assert (chosen.workers, chosen.micro_batch) == (1, 4)
    assert "the effective batch is unchanged" in chosen.reasons[1]


def test_a_batch_that_had_to_be_halved_while_it_was_measured_is_told_too() -> None:
    chosen = plan(Need(3_500, 1_000, 8, wanted=32), Room(4_000, 4_000, cpus=8), 8)
    assert chosen.micro_batch == 8
    assert "a batch of 32 rows does not fit: 8 are passed at once" in chosen.reasons[1]


def test_main_memory_binds_too() -> None:
    chosen = plan(Need(500, 400, 16, host_mb=3_000), Room(80_000, 80_000, 1, 16, 10_000), 30)
    assert chosen.workers == 3
    assert chosen.reasons[0].endswith("limited by main memory")
