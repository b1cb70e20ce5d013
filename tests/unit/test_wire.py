"""What goes over the wire comes back the same, and what is malformed is refused."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from atlas_flwr import wire
from atlas_flwr.errors import WireError
from atlas_flwr.greeting import read_hello
from atlas_flwr.types import Job, LoraFactors, ModelParts, Report, Stage, Update

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
        seeded=frozenset({"lora_A"}),
        draw=3,
        carried=(1, 2),
        stages=(Stage(frozenset({"head"}), 2), Stage(frozenset({"lora_B", "core"}))),
        returns=frozenset({"core", "head"}),
        expects={"classifier.bias": (2,)},
        shrinks=True,
        choices=(parts(), parts(4, 3)),
        pooled=(7, 0, 30),
    )
    back, config = wire.read_job(over_the_network(wire.pack_job(job, '{"a": 1}')))
    assert config == '{"a": 1}'
    assert_same(back.parts, job.parts)
    for mine, theirs in zip(back.choices, job.choices, strict=True):
        assert_same(mine, theirs)
    # What the server checks an answer with stays at the server.
    assert (back.expects, back.shrinks) == ({}, False)
    for field in fields(Job):
        if field.name not in ("parts", "expects", "shrinks", "sparse", "choices"):
            assert getattr(back, field.name) == getattr(job, field.name), field.name
            assert getattr(job, field.name) != field.default, "the test tells nothing of it"


def test_an_update_survives_the_network() -> None:
    report = Report(
        300, {"loss": 0.5, "accuracy": 0.75}, 1.5, 10**9, "Tesla T4", ("a note",), "fp16"
    )
    back = wire.read_update(over_the_network(wire.pack_update(Update(1, report, parts()))), 1)
    assert back.report == report


def whole() -> ModelParts:
    """Return a model with every part; some factors came alone."""
    some = parts()
    q, k = some.adapter.values()
    adapter = {"b": q, "a_only": k.without("lora_B"), "b_only": q.without("lora_A")}
    core = {"b": RNG.standard_normal((3, 3)).astype(np.float32)}
    delta = {"b": replace(q, scale=1.0), "c": replace(k, scale=1.0)}
    return replace(some, adapter=adapter, core=core, delta=delta)


@pytest.mark.parametrize("sparse", [False, True])
def test_every_part_survives_the_network_in_both_directions(sparse: bool) -> None:
    sent = whole()
    if sparse:  # zeros of an adapter don't travel; those of a head do
        sent = sent.with_body({n: np.where(t > 0, t, t * 0) for n, t in sent.body().items()})
    job = Job(0, "train", 1, sent, sparse=sparse)
    back, _ = wire.read_job(over_the_network(wire.pack_job(job, "{}")))
    assert back.sparse == sparse
    assert_same(back.parts, sent)
    update = Update(3, Report(1), sent, sparse)
    again = wire.read_update(over_the_network(wire.pack_update(update)), 3)
    assert_same(again.parts, sent)
    assert again.partition == 3


@pytest.mark.parametrize("sparse", [False, True])
def test_models_to_choose_from_travel_together_and_are_counted_by_kind(sparse: bool) -> None:
    """Each with its own scales, and with every part it has."""
    doubled = {m: replace(f, scale=2 * f.scale) for m, f in parts().adapter.items()}
    choices = (whole(), replace(parts(), adapter=doubled), ModelParts(head=parts().head))
    content = wire.pack_job(Job(0, "train.choose", 1, choices=choices, sparse=sparse), "{}")
    back, _ = wire.read_job(over_the_network(content))
    assert back.parts == ModelParts()
    for mine, theirs in zip(back.choices, choices, strict=True):
        assert_same(mine, theirs)
    alone = [wire.count_bytes(wire.pack_job(Job(0, "t", 1, c, sparse=sparse), "")) for c in choices]
    together = wire.count_bytes(content)
    for kind in wire.KINDS:
        assert together[kind] == sum(counted[kind] for counted in alone) > 0


def test_a_choice_whose_scales_are_lost_is_refused() -> None:
    content = wire.pack_job(Job(0, "train.choose", 1, choices=(parts(),)), "{}")
    del content["choice-0/facts"]
    with pytest.raises(WireError, match="scale"):
        wire.read_job(content)


@pytest.mark.parametrize("sparse", [False, True])
def test_tensors_of_any_layout_survive_the_network(sparse: bool) -> None:
    some = parts()
    turned = {
        m: LoraFactors(np.asfortranarray(f.a), np.repeat(f.b, 2, axis=0)[::2], f.scale)
        for m, f in some.adapter.items()
    }
    head = {**some.head, "scalar": np.float32(7).reshape(())}
    sent = replace(some, adapter=turned, head=head)
    back, _ = wire.read_job(
        over_the_network(wire.pack_job(Job(0, "t", 1, sent, sparse=sparse), ""))
    )
    assert_same(back.parts, replace(some, head=head))


def test_a_sparse_adapter_costs_a_bit_an_entry_and_its_values() -> None:
    rank, width = 8, 1000
    tensor = np.zeros((rank, width), np.float32)
    tensor[:, ::10] = 1.5
    sent = ModelParts(adapter={"m": LoraFactors(tensor, np.zeros((0, rank), np.float32), 1.0)})
    counted = {
        sparse: wire.count_bytes(wire.pack_job(Job(0, "train", 1, sent, sparse=sparse), "{}"))
        for sparse in (False, True)
    }
    assert counted[False]["adapter"] == 4 * rank * width + 128 + len("m.lora_A")
    names = len("m.lora_A.bits") + len("m.lora_A.values")
    assert counted[True]["adapter"] == rank * width // 8 + 4 * rank * width // 10 + 256 + names
    assert counted[True]["head"] == counted[True]["weights"] == 0


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
        read_hello(RecordDict())


FACTS = {
    "no mapping": "[]",
    "scales of a list": '{"scales": []}',
    "scale of a word": '{"scales": {"bert.layer.0.q": "2"}}',
    "scale of nothing": '{"scales": {"bert.layer.0.q": null, "bert.layer.1.q": 1.0}}',
    "scale not a number": '{"scales": {"bert.layer.0.q": NaN, "bert.layer.1.q": 1.0}}',
    "scale without end": '{"scales": {"bert.layer.0.q": 1.0, "bert.layer.1.q": Infinity}}',
    "columns of a list": '{"columns": [7]}',
    "columns of a word": '{"columns": {"bert.layer.0.q.lora_A": "7"}}',
    "no JSON": "{",
}


@pytest.mark.parametrize("case", FACTS)
def test_broken_facts_are_refused_whoever_sent_them(case: str) -> None:
    """A client may say anything: the server must call it rejected, not stop."""
    content = wire.pack_update(Update(0, Report(1), parts()))
    content["facts"] = ConfigRecord({"facts": FACTS[case]})
    with pytest.raises(WireError):
        wire.read_update(content, 0)
    content = wire.pack_job(Job(0, "train", 1, parts()), "{}")
    content["facts"] = ConfigRecord({"facts": FACTS[case]})
    with pytest.raises(WireError):
        wire.read_job(content)


JOBS = {
    "no mapping": "[]",
    "part of no model": {"private": ["lora_C"]},
    "a part of no model is trained": {"stages": [{"trains": ["body"], "epochs": None}]},
    "one version": {"carried": [1]},
    "three versions": {"carried": [1, 2, 3]},
}


@pytest.mark.parametrize("case", JOBS)
def test_jobs_of_another_kind_are_refused(case: str) -> None:
    content = wire.pack_job(Job(0, "train", 1, parts()), "{}")
    told = JOBS[case]
    if isinstance(told, dict):
        told = json.dumps({**json.loads(str(content["job"]["job"])), **told})
    content["job"] = ConfigRecord({"job": told, "config": "{}"})
    with pytest.raises(WireError, match="doesn't understand"):
        wire.read_job(content)
