"""A small fake run: two tasks, two clients each, written through the real writer."""

from pathlib import Path

import pytest

from atlas_flwr.results.record import (
    Bytes,
    ClientRow,
    Measured,
    RunFacts,
    final_scores,
    round_record,
    summary,
)
from atlas_flwr.results.store import RunWriter, prepare, read_run

CONFIG = """[run]
name = "{name}"
rounds = {rounds}
clients = {clients}
seed = 7

[model]
name = "minilm"
adaptation = "lora"

[data]
tasks = [{tasks}]

[lora]
rank = [4, 8]

[strategy]
name = "{strategy}"
"""


def rows_of(round_, tasks, per_task, phase="evaluate"):
    rows = []
    for partition in range(len(tasks) * per_task):
        scores = {"loss": 1.0 / round_ + 0.1 * partition, "accuracy": 0.5 + 0.03 * round_}
        if phase == "train":
            scores.pop("accuracy")
        else:
            scores |= {"accuracy": scores["accuracy"] + 0.02 * partition, "macro_f1": 0.4}
        common = {"ranks": "4", "seconds": 1.5, "bytes_up": 10, "bytes_down": 20}
        task = tasks[partition // per_task]
        rows.append(
            ClientRow(
                round_,
                partition,
                task,
                phase,
                num_examples=10 + partition,
                peak_memory_mb=500.0 + partition,
                **common,
                **scores,
            )
        )
    return rows


def write_run(
    out: Path,
    *,
    name="demo",
    tasks=("bbc", "tweets"),
    rounds=3,
    per_task=2,
    strategy="fedavg",
    config_tasks=None,
    change=lambda rows: rows,
    measured=lambda round_: Measured(),
):
    """Write a finished run and read it back.

    ``change`` edits the rows of each round, ``measured`` says how good its merge was.
    """
    prepare(out)
    writer = RunWriter(out)
    named = ", ".join(f'"{task}"' for task in config_tasks or tasks)
    writer.write_config(
        CONFIG.format(
            name=name, rounds=rounds, clients=per_task * len(tasks), tasks=named, strategy=strategy
        )
    )
    writer.write_provenance({"argv": ["atlas", "run", "a & b.toml"], "seed": 7, "commit": None})
    records, moved = [], Bytes()
    for round_ in range(1, rounds + 1):
        rows = change(rows_of(round_, tasks, per_task, "train") + rows_of(round_, tasks, per_task))
        bytes_ = Bytes({"adapter": 100, "head": 7}, {"adapter": 200, "other": 3})
        writer.add_rows(rows)
        record = round_record(round_, rows, bytes_, 2.5, measured(round_))
        writer.append_round(record)
        records.append(record)
        moved += bytes_
    own = [row for row in rows if row.phase == "evaluate"]
    final = rows_of(rounds, tasks, per_task, "final")
    writer.add_rows(final)
    moved += Bytes({}, {"adapter": 50})
    facts = RunFacts(name, strategy, "minilm", "inline", 7)
    scores = final_scores(final, own)
    writer.finish(summary(facts, "completed", records, scores, moved, 9.0, 512.5))
    return read_run(out)


@pytest.fixture
def make_run(tmp_path):
    def make(folder="run", **options):
        return write_run(tmp_path / folder, **options)

    return make


@pytest.fixture
def run(make_run):
    return make_run()
