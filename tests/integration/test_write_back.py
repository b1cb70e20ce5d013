"""What a client holds after it loads a job is what the server sent, tensor for tensor."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file

import clients.base
import strategies.rounds.federation
from atlas_flwr.models.adapter_io import read_parts
from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.types import Job, ModelParts
from runs import Run

pytestmark = pytest.mark.usefixtures("no_report")


class Wire:
    """Notes what the server puts into messages and what clients hold once they have loaded it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[Job] = []
        self.held: list[ModelParts] = []
        pack, write = strategies.rounds.federation.pack_job, clients.base.write_parts

        def packs(job: Job, config: str) -> object:
            self.sent.append(job)
            return pack(job, config)

        def writes(loaded: LoadedModel, parts: ModelParts) -> None:
            write(loaded, parts)
            self.held.append(read_parts(loaded))

        monkeypatch.setattr(strategies.rounds.federation, "pack_job", packs)
        monkeypatch.setattr(clients.base, "write_parts", writes)


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    return Wire(monkeypatch)


def flat(parts: ModelParts) -> dict[str, bytes]:
    """Return every tensor's bytes and every scale by name."""
    tensors = {**parts.body(), **{f"head {name}": array for name, array in parts.head.items()}}
    scales = {f"{module} scale": np.float64(f.scale) for module, f in parts.adapter.items()}
    return {name: np.asarray(value).tobytes() for name, value in {**tensors, **scales}.items()}


MODELS = [
    *(
        (name, how)
        for name in ("distilbert", "bert", "roberta", "gpt2")
        for how in ("lora", "full")
    ),
    ("minilm", "lora"),
]


@pytest.mark.parametrize(("name", "adaptation"), MODELS)
def test_clients_hold_what_the_server_sent(
    run: Callable[..., Run],
    wire: Wire,
    folder_of: Callable[[str], str],
    name: str,
    adaptation: str,
) -> None:
    found = run(
        run={"rounds": 2, "clients": 2},
        model={"name": folder_of(name), "adaptation": adaptation},
        data={"samples-per-client": 16},
    )
    kinds = [(job.round, job.action, job.rows) for job in wire.sent]
    assert kinds == [
        *((1, "train", "own"), (1, "train", "own"), (1, "evaluate", "own"), (1, "evaluate", "own")),
        *((2, "train", "own"), (2, "train", "own"), (2, "evaluate", "own"), (2, "evaluate", "own")),
        (2, "evaluate", "full"),
    ]
    assert len(wire.held) == len(wire.sent)
    for job, held in zip(wire.sent, wire.held, strict=True):
        assert flat(held) == flat(job.parts)
    # Each round's training moves every tensor that both sides agree is trained.
    states = [flat(wire.sent[i].parts) for i in (0, 2, 6)]
    for before, after in pairwise(states):
        moved = {key for key in before if before[key] != after[key]}
        still = {key for key in before if not key.endswith("scale")} - moved
        assert len(still) <= len(before) // 4, still
    # What was scored in the end is what is on disk.
    if adaptation == "lora":
        saved = load_file(found.folder / "adapters" / "global" / "adapter_model.safetensors")
        final = wire.held[-1]
        for module, factors in final.adapter.items():
            there = saved[f"base_model.model.{module}.lora_B.weight"]
            assert there.tobytes() == factors.b.tobytes()
        assert len(saved) == 2 * len(final.adapter) + len(final.head)


def test_the_mean_is_what_is_sent_next(run: Callable[..., Run], wire: Wire) -> None:
    """Two clients of one shard size: the next round starts from the plain mean of their answers."""
    answers: list[ModelParts] = []
    fit = clients.base.FineTuneClient.fit
    patch = pytest.MonkeyPatch()

    def noted(self, parameters, config):  # type: ignore[no-untyped-def]
        result = fit(self, parameters, config)
        answers.append(read_parts(self.site.model))
        return result

    with patch.context() as context:
        context.setattr(clients.base.FineTuneClient, "fit", noted)
        run(run={"rounds": 1, "clients": 2})
    first, second = ({**answer.body(), **answer.head} for answer in answers)
    sent = wire.sent[2].parts
    merged = {**sent.body(), **sent.head}
    assert merged.keys() == first.keys()
    for name, tensor in merged.items():
        mean = (first[name].astype(np.float64) + second[name].astype(np.float64)) / 2
        np.testing.assert_array_equal(tensor, mean.astype(np.float32))


def test_heads_of_several_tasks_do_not_meet(run: Callable[..., Run], wire: Wire) -> None:
    """Tasks of 2 and 3 labels share one process and one backbone, and each holds its own head."""
    run(data={"tasks": ["two", "three"]}, run={"clients": 4})
    for job, held in zip(wire.sent, wire.held, strict=True):
        assert flat(held) == flat(job.parts)
    rows = {next(reversed(job.parts.head.values())).shape[0] for job in wire.sent}
    assert rows == {2, 3}
