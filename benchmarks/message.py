"""(b) What does one training message cost against a client written the usual way?"""

from __future__ import annotations

import tempfile
from dataclasses import replace

import torch
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from atlas_flwr.apps.client import app
from atlas_flwr.engine.inline import InlineGrid
from atlas_flwr.errors import RunFailed
from atlas_flwr.types import Job, ModelParts
from atlas_flwr.wire import pack_job, read_update
from benchmarks.measure import Ratio, in_turn
from benchmarks.rivals import QuickstartClient
from benchmarks.sizes import Size, experiment
from clients.site import rank_of, starting_parts


def over_the_wire(content: RecordDict) -> RecordDict:
    """Return the content after it was serialised and read again, as every engine does."""
    data = recorddict_to_proto(content).SerializeToString()
    return recorddict_from_proto(RecordDictProto.FromString(data))


def ask(grid: InlineGrid, content: RecordDict) -> RecordDict:
    """Send one training message to the first client and return the answer's content."""
    node = next(iter(grid.get_node_ids()))
    (reply,) = grid.send_and_receive([Message(over_the_wire(content), node, "train")])
    if reply.has_error():
        raise RunFailed(f"benchmark's client: {reply.error.reason}")
    return over_the_wire(reply.content)


def training_message(size: Size) -> Ratio:
    """Measure a training message from packing to unpacking, both sides in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        config = experiment(replace(size, rows=size.message_rows, clients=1), f"{folder}/run")
        rival = QuickstartClient(config, 0)
        labels = rival.site.model.num_labels
        job = Job(0, "train", 1, starting_parts(config, labels, rank_of(config, 0)))
        ours, theirs = InlineGrid(app, 1), InlineGrid(rival.app, 1)
        told, weights = config.model_dump_json(), rival.model().state_dict()

        def ask_ours() -> ModelParts:
            return read_update(ask(ours, pack_job(job, told)), 0).parts

        def ask_theirs() -> dict[str, torch.Tensor]:
            content = ask(theirs, RecordDict({"arrays": ArrayRecord(weights)}))
            return dict(content.array_records["arrays"].to_torch_state_dict())

        pairs = in_turn(ask_theirs, ask_ours, size.repetitions)
    return Ratio(
        "quickstart message",
        "LoRA client's message",
        pairs,
        ">=",
        2.0,
        {"rows": size.message_rows, "processes": 1, "threads": 1},
    )
