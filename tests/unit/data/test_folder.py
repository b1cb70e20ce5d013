"""A client's own folder holds what the simulation deals to it, and says one line when it can't."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atlas_flwr.config.sections import DataSection
from atlas_flwr.data.folder import FACTS, holds_full, open_folder, read_facts, write_shard
from atlas_flwr.data.load import load_rows
from atlas_flwr.data.shards import Shard, deal_task
from atlas_flwr.data.tasks import TaskSpec
from atlas_flwr.data.tokenised import TokenisedTask, open_tokenised
from atlas_flwr.errors import DataError
from fakes import task_rows, tiny_task, tiny_tokenizer, write_rows

TOKENIZER = tiny_tokenizer("bert")


def spec_of(folder: Path, **more: object) -> TaskSpec:
    return TaskSpec(folder.name, folder.name, ("text",), "label", path=str(folder), **more)


def opened(folder: Path, spec: TaskSpec, partition: int, cache: Path):
    return open_folder(folder, spec, partition, TOKENIZER, "tiny", 16, cache)


def tokens(task: TokenisedTask, table: str, rows: np.ndarray) -> list[tuple[bytes, int]]:
    chosen = getattr(task, table)
    return [(chosen.key(row), int(chosen.labels[row])) for row in rows]


@pytest.mark.parametrize("holdout", [0.0, 0.2])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("partitioner", ["dirichlet", "pathological"])
def test_a_folder_holds_what_is_dealt_in_its_order(
    tmp_path: Path, holdout: float, full: bool, partitioner: str
) -> None:
    tiny_task(tmp_path / "three", "csv", num_labels=3, seed=3)
    spec = spec_of(tmp_path / "three")
    data = DataSection(
        tasks=("three",), samples_per_client=24, partitioner=partitioner, holdout=holdout
    )
    task = open_tokenised(spec, TOKENIZER, "tiny", 16, None, 7, tmp_path / "cache")
    shards = deal_task(task, (0, 1, 2), data, 7, "three")
    rows = load_rows(spec, None, 7)
    for partition, shard in shards.items():
        folder = tmp_path / f"client-{partition}"
        write_shard(folder, spec, rows, shard, partition, full)
        own, held = opened(folder, spec, partition, tmp_path / "cache")
        assert (own.num_labels, own.label_names) == (3, task.label_names)
        assert tokens(own, "train", held.train) == tokens(task, "train", shard.train)
        table = shard.evaluation_table
        assert tokens(own, "validation", held.evaluation) == tokens(task, table, shard.evaluation)
        whole = shard.full_evaluation if full else shard.evaluation
        assert tokens(own, "validation", held.full_evaluation) == tokens(task, table, whole)
        assert holds_full(folder) == full
        facts = read_facts(folder, partition)
        assert (facts.train_rows, facts.score_rows) == (len(shard.train), len(shard.evaluation))
        np.testing.assert_allclose(held.mix.sum(), 1)


def hospital(folder: Path, labels: list[object], words: dict[str, object] | None = None) -> None:
    """Write a folder by hand, as a client with rows of its own would."""
    rows = [{**row, "label": label} for row, label in zip(task_rows(8), labels, strict=True)]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "validation.csv", rows[:3])
    if words is not None:
        (folder / FACTS).write_text(json.dumps(words))


def test_classes_may_be_written_as_words(tmp_path: Path) -> None:
    hospital(
        tmp_path / "a",
        ["well", "ill"] * 4,
        {"task": "a", "labels": ["ill", "well"], "partition": 2},
    )
    task, shard = opened(tmp_path / "a", spec_of(tmp_path / "a"), 2, tmp_path / "cache")
    assert task.train.labels.tolist() == [1, 0] * 4
    assert (len(shard.train), len(shard.evaluation), len(shard.full_evaluation)) == (8, 3, 3)


def test_a_task_with_known_classes_needs_no_word_of_them(tmp_path: Path) -> None:
    hospital(tmp_path / "a", [0, 1] * 4)
    known = spec_of(tmp_path / "a", label_names=("no", "yes"), num_labels=2)
    task, _ = opened(tmp_path / "a", known, 0, tmp_path / "cache")
    assert task.label_names == ("no", "yes")


def test_one_class_and_no_rows_to_score_are_fine(tmp_path: Path) -> None:
    hospital(tmp_path / "a", [1] * 8, {"task": "a", "labels": ["no", "yes"], "partition": 0})
    (tmp_path / "a" / "validation.csv").unlink()
    empty = pd.DataFrame({"text": pd.Series([], dtype=str), "label": pd.Series([], dtype=int)})
    empty.to_parquet(tmp_path / "a" / "validation.parquet")
    task, shard = opened(tmp_path / "a", spec_of(tmp_path / "a"), 0, tmp_path / "cache")
    assert task.train.labels.tolist() == [1] * 8
    assert (len(shard.evaluation), len(shard.full_evaluation)) == (0, 0)


GOOD = {"task": "a", "labels": ["no", "yes"], "partition": 0}


@pytest.mark.parametrize(
    ("labels", "told", "partition", "words"),
    [
        ([0, 1] * 4, GOOD, 1, ["shard of partition 0", "partition-id is 1"]),
        ([0, 1] * 4, {**GOOD, "task": "b"}, 0, ["of task 'b'", "'a'"]),
        ([0, 2] * 4, GOOD, 0, ["row 2", "label 2", "0..1"]),
        (["no", "maybe"] * 4, GOOD, 0, ["row 2", "'maybe' is unknown", "no, yes"]),
        ([0, 1] * 4, {**GOOD, "labels": ["no"]}, 0, ["at least two labels"]),
        ([0, 1] * 4, {"task": "a"}, 0, ["can't be read", "labels"]),
        ([0, 1] * 4, None, 0, ["shard.json: is missing", '"task": "a"']),
    ],
)
def test_a_folder_that_does_not_fit_is_told_in_one_line(
    tmp_path: Path, labels: list[object], told: dict[str, object], partition: int, words: list[str]
) -> None:
    hospital(tmp_path / "a", labels, told)
    with pytest.raises(DataError) as error:
        opened(tmp_path / "a", spec_of(tmp_path / "a"), partition, tmp_path / "cache")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("gone", ["train.jsonl", "validation.csv"])
def test_a_missing_file_or_folder_is_named(tmp_path: Path, gone: str) -> None:
    hospital(tmp_path / "a", [0, 1] * 4, GOOD)
    (tmp_path / "a" / gone).unlink()
    with pytest.raises(DataError, match=f"has no {gone.partition('.')[0]}"):
        read_facts(tmp_path / "a", 0)
    with pytest.raises(DataError, match="is not a folder on this machine"):
        read_facts(tmp_path / "nowhere", 0)


def test_a_shard_is_not_written_over_another(tmp_path: Path) -> None:
    tiny_task(tmp_path / "two", "csv")
    rows = load_rows(spec_of(tmp_path / "two"), None, 0)
    shard = Shard(np.arange(3), np.arange(2), np.ones(2) / 2, "validation", np.arange(4))
    write_shard(tmp_path / "c", spec_of(tmp_path / "two"), rows, shard, 0, True)
    with pytest.raises(DataError, match="holds a shard already"):
        write_shard(tmp_path / "c", spec_of(tmp_path / "two"), rows, shard, 0, True)
