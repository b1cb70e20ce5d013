"""What is compared does the same work: the same steps to the same losses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from atlas_flwr.models.adapter_io import write_parts
from atlas_flwr.seeding import rng_for
from atlas_flwr.training.evaluate import evaluate
from atlas_flwr.training.local import train
from benchmarks.__main__ import main, table, write
from benchmarks.bare_loop import BareLoop, trainable
from benchmarks.federated_round import inline_round
from benchmarks.guide_round import guide_round
from benchmarks.message import training_message
from benchmarks.sizes import Size, experiment
from fakes import task_rows, tiny_model, write_rows


@pytest.fixture(scope="module")
def size(tmp_path_factory) -> Size:
    """Return a size on a tiny model and a task of made-up words, in place of SST-2."""
    folder = tmp_path_factory.mktemp("bench")
    root = folder / "root"
    (root / "sst2").mkdir(parents=True)
    for name, rows in (("train", 80), ("validation", 20)):
        renamed = [
            {"sentence": row["text"], "label": row["label"]} for row in task_rows(rows, seed=1)
        ]
        write_rows(root / "sst2" / f"{name}.parquet", renamed)
    model = tiny_model(folder / "model", "bert")
    return Size("sst2", str(root), 1, 2, 16, 16, 16, str(model), 0.0)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path / "cache"))


def test_the_bare_loop_does_the_framework_s_steps_and_evaluation(size, tmp_path):
    loop = BareLoop(experiment(size, str(tmp_path / "run")))
    site = loop.sites[0]
    model = loop.models[site.model.num_labels]
    ours = sum(p.numel() for p in site.model.trainable())
    factors = sum(f.a.size + f.b.size for f in site.initial().adapter.values())
    head = sum(t.size for t in site.initial().head.values())
    assert sum(p.numel() for p in trainable(model)) == factors + head
    write_parts(site.model, site.initial())
    assert sum(p.numel() for p in site.model.trainable()) == factors + head
    assert ours <= factors + head  # the layers' rank was a placeholder before
    result = train(
        site.model, site.train_table, site.train_rows, site.spec,
        rng_for(site.seed, "batches", 1, 0), 0,
    )  # fmt: skip
    assert loop.train(0, 1) == result.steps


def test_the_bare_loop_scores_as_the_framework_does(size, tmp_path):
    loop = BareLoop(experiment(size, str(tmp_path / "run")))
    site = loop.sites[0]
    start = loop.starts[site.model.num_labels]
    write_parts(site.model, site.initial())
    with torch.no_grad():  # the same head; the factors change nothing, for B is 0 at the start
        for held, sent in zip(start[-2:], site.initial().head.values(), strict=True):
            held.copy_(torch.from_numpy(np.array(sent)).reshape(held.shape))
    loss, right = loop.score(0)
    want = evaluate(site.model, site.score_table, site.own_rows)
    assert loss == pytest.approx(want.loss, rel=1e-4)
    assert right == round(want.metrics["accuracy"] * len(site.own_rows))


@pytest.mark.parametrize(
    "measure", [inline_round, training_message, partial(guide_round, length=32)]
)
def test_each_question_is_answered(measure, size):
    ratio = measure(size)
    assert len(ratio.pairs) == 1
    assert min(ratio.pairs[0]) > 0


def test_what_is_written_names_machine_and_versions_and_no_folder(size, tmp_path):
    ratio = inline_round(size)
    path = write([ratio], size, tmp_path)
    facts = json.loads(path.read_text(encoding="utf-8"))
    assert {"machine", "versions", "commit", "load_average", "ratios"} <= facts.keys()
    assert facts["size"]["root"] is True
    assert table([ratio], size).row_count == 1


def test_a_folder_without_the_task_is_refused_in_one_line(tmp_path, capsys):
    assert main(["--quick", "--only", "inline", "--glue", str(tmp_path / "none")]) == 2
    assert "none" in Path(capsys.readouterr().out.replace("\n", "")).as_posix()
