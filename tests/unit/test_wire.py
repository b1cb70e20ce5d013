"""What goes over the wire comes back the same, and what is malformed is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from atlas_flwr import wire
from atlas_flwr.errors import WireError
from atlas_flwr.types import Job, LoraFactors, ModelParts, Report, Update

RNG = np.random.default_rng(0)


def parts(rank: int = 3, d_in: int = 7, d_out: int = 5) -> ModelParts:
    def draw(*shape: int) -> np.ndarray:
        return RNG.standard_normal(shape).astype(np.float32)

    return ModelParts(
        adapter={
            "bert.layer.0.q": LoraFactors(draw(rank, d_in), draw(d_out, rank), 2.0),
            "bert.layer.1.q": LoraFactors(draw(1, d_in), draw(d_out, 1), 0.5),
        },
        head={"classifier.weight": draw(2, 5), "classifier.bias": draw(2)},
        weights={"bert.norm": draw(4)},
    )


def assert_same(left: ModelParts, right: ModelParts) -> None:
    a, b = wire.flatten(left), wire.flatten(right)
    assert {k: list(v) for k, v in a.items()} == {k: list(v) for k, v in b.items()}
    for kind in a:
        for name in a[kind]:
            np.testing.assert_array_equal(a[kind][name], b[kind][name], strict=True)
    assert {m: f.scale for m, f in left.adapter.items()} == {
        m: f.scale for m, f in right.adapter.items()
    }


def over_the_network(content: RecordDict) -> RecordDict:
    return recorddict_from_proto(recorddict_to_proto(content))


def test_a_job_survives_the_network() -> None:
    job = Job(
        partition=4,
        action="train",
        round=2,
        parts=parts(),
        private=frozenset({"head"}),
        since=1,
        options={"mu": 0.01, "max-steps": 7},
        rows="full",
        pool=(4, 5),
    )
    back, config = wire.read_job(over_the_network(wire.pack_job(job, '{"a": 1}')))
    assert config == '{"a": 1}'
    assert_same(back.parts, job.parts)
    for name in ("partition", "action", "round", "private", "since", "options", "rows", "pool"):
        assert getattr(back, name) == getattr(job, name)


def test_an_update_survives_the_network() -> None:
    report = Report(300, {"loss": 0.5, "accuracy": 0.75}, 1.5, 10**9, "Tesla T4", ("a note",))
    back = wire.read_update(over_the_network(wire.pack_update(Update(1, report, parts()))), 1)
    assert back.report == report


def test_bytes_by_kind_are_tensors_plus_headers() -> None:
    sent = parts()
    content = wire.pack_job(Job(0, "train", 1, sent), "{}")
    counted = wire.count_bytes(content)
    for kind, tensors in wire.flatten(sent).items():
        payload = sum(tensor.nbytes for tensor in tensors.values())
        headers = sum(128 + len(name) for name in tensors)  # NumPy's header, and the name
        assert counted[kind] == payload + headers
    # What Flower serialises differs only by its framing of each array.
    serialised = len(recorddict_to_proto(content).SerializeToString())
    arrays = sum(len(tensors) for tensors in wire.flatten(sent).values())
    assert 0 <= serialised - sum(counted.values()) <= 64 * (arrays + 4)


def test_numpy_client_lists_keep_their_meaning() -> None:
    sent = parts()
    arrays, layout = wire.to_arrays(sent)
    assert_same(wire.from_arrays(arrays, layout), sent)
    with pytest.raises(WireError, match="places"):
        wire.from_arrays(arrays[:-1], layout)


@pytest.mark.parametrize(
    ("kinds", "scales", "message"),
    [
        ({"adapter": {"m.lora_A": np.ones((2, 3))}}, {"m": 1.0}, "without its partner"),
        ({"adapter": {"m.lora_B": np.ones((2, 3))}}, {"m": 1.0}, "without its A"),
        (
            {"adapter": {"m.lora_A": np.ones((2, 3)), "m.lora_B": np.ones((4, 1))}},
            {"m": 1.0},
            "don't share a rank",
        ),
        (
            {"adapter": {"m.lora_A": np.ones((2, 3)), "m.lora_B": np.ones((4, 2))}},
            {},
            "its scale",
        ),
    ],
)
def test_broken_factors_are_refused(kinds: dict, scales: dict, message: str) -> None:
    with pytest.raises(WireError, match=message):
        wire.unflatten(kinds, scales)


@pytest.mark.parametrize("count", [-1, 2.5, float("nan")])
def test_example_counts_are_whole_and_not_negative(count: float) -> None:
    content = wire.pack_update(Update(0, Report(1)))
    content["metrics"] = MetricRecord({wire.NUM_EXAMPLES: count})
    with pytest.raises(WireError, match="num-examples"):
        wire.read_update(content, 0)


@pytest.mark.parametrize("data", [b"", b"not an array", b"\x80\x04N."])
def test_broken_arrays_are_refused_and_nothing_is_unpickled(data: bytes) -> None:
    content = wire.pack_update(Update(0, Report(1), parts()))
    content["head"] = ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", data)})
    with pytest.raises(WireError, match="can't be read"):
        wire.read_update(content, 0)


def test_messages_without_their_records_are_refused() -> None:
    with pytest.raises(WireError, match="no job"):
        wire.read_job(RecordDict({"x": ArrayRecord()}))
    with pytest.raises(WireError, match="doesn't understand"):
        wire.read_job(
            RecordDict({"job": ConfigRecord({"job": json.dumps({"round": 1}), "config": ""})})
        )
    with pytest.raises(WireError, match="no report"):
        wire.read_update(RecordDict(), 0)
    with pytest.raises(WireError, match="hello"):
        wire.read_hello(RecordDict())
