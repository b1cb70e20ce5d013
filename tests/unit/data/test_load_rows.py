from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from atlas_flwr.data.load import is_split_by_seed, load_rows, source_identity
from atlas_flwr.data.packaged import row_key
from atlas_flwr.data.tasks import TASKS, TaskSpec
from atlas_flwr.errors import DataError

ROWS = [{"text": f"row number {i}", "y": i % 2} for i in range(20)]
PAIR = [{"text": "a b", "y": 0}, {"text": "b c", "y": 1}]


def own(path, text=("text",)):
    return TaskSpec("mine", "mine", text, "y", path=str(path))


def refusal(spec, root=None):
    with pytest.raises(DataError) as caught:
        load_rows(spec, root, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------ own files


@pytest.mark.parametrize("suffix", ["parquet", "csv", "tsv", "jsonl"])
def test_every_format_gives_the_same_rows(write, suffix):
    rows = load_rows(own(write(f"d.{suffix}", ROWS)), None, 5)
    reference = load_rows(own(write("other.parquet", ROWS)), None, 5)
    assert rows.train.texts == reference.train.texts
    assert rows.validation.texts == reference.validation.texts
    np.testing.assert_array_equal(rows.train.labels, reference.train.labels)
    assert rows.train.labels.dtype == np.int64
    assert (len(rows.train.texts), len(rows.validation.texts)) == (16, 4)
    assert (rows.num_labels, rows.label_names) == (2, ("0", "1"))


def test_one_file_is_split_by_seed_and_a_folder_is_not(write):
    file = write("d/train.csv", ROWS)
    write("d/validation.jsonl", PAIR)
    assert is_split_by_seed(own(file))
    assert not is_split_by_seed(own(file.parent))
    one = [load_rows(own(file), None, s).validation.texts for s in (0, 0, 1)]
    assert one[0] == one[1] != one[2]
    two = [load_rows(own(file.parent), None, s).validation.texts for s in (0, 1)]
    assert two[0] == two[1] == [("a b",), ("b c",)]


def test_words_are_numbered_in_sorted_order(write):
    write("d/train.csv", [{"text": "a", "y": "pos"}, {"text": "b", "y": "neg"}])
    folder = write("d/validation.csv", [{"text": "c", "y": "pos"}]).parent
    rows = load_rows(own(folder), None, 0)
    assert rows.label_names == ("neg", "pos")
    assert rows.train.labels.tolist() == [1, 0]
    assert rows.validation.labels.tolist() == [1]


def test_cells_that_look_missing_are_text(write):
    rows = [{"text": text, "y": i % 2} for i, text in enumerate(["NA", "null", "nan", "None"])]
    read = load_rows(own(write("d.csv", rows)), None, 0)
    assert {t for (t,) in read.train.texts + read.validation.texts} == {"NA", "null", "nan", "None"}


def test_tsv_is_unquoted_and_csv_is_quoted(tmp_path):
    (tmp_path / "d.tsv").write_text('text\ty\n"open quote\t0\nb\t1\nc\t0\nd\t1\n')
    tabs = load_rows(own(tmp_path / "d.tsv"), None, 0)
    assert ('"open quote',) in tabs.train.texts + tabs.validation.texts
    (tmp_path / "d.csv").write_text('text,y\n"one, two\nthree",0\nb,1\nc,0\nd,1\n')
    quoted = load_rows(own(tmp_path / "d.csv"), None, 0)
    assert ("one, two\nthree",) in quoted.train.texts + quoted.validation.texts


def test_pairs_keep_both_columns(write):
    rows = [{"p": f"p{i}", "q": f"q{i}", "y": i % 2} for i in range(10)]
    read = load_rows(own(write("d.jsonl", rows), ("p", "q")), None, 0)
    assert {(f"p{i}", f"q{i}") for i in range(10)} == {*read.train.texts, *read.validation.texts}


def test_train_rows_equal_to_a_validation_row_are_removed(write):
    train = [{"text": "A  film", "y": 0}, {"text": "other", "y": 1}, {"text": "third", "y": 0}]
    write("d/train.csv", train)
    folder = write("d/validation.csv", [{"text": "a film ", "y": 0}]).parent
    assert load_rows(own(folder), None, 0).train.texts == [("other",), ("third",)]


def test_nothing_left_after_removal(write):
    write("d/train.csv", PAIR)
    folder = write("d/validation.csv", PAIR).parent
    message = refusal(own(folder))
    assert "'mine', train without validation's rows: column 'y' has no rows" in message


def test_copies_in_one_file_do_not_cross_the_split(write):
    read = load_rows(own(write("d.csv", ROWS * 3)), None, 0)
    assert not {*map(row_key, read.train.texts)} & {*map(row_key, read.validation.texts)}


def test_identity_follows_the_file(write):
    path = write("d.csv", ROWS)
    before = source_identity(own(path), None)
    assert before == source_identity(own(path), None)
    write("d.csv", ROWS + PAIR)
    assert before != source_identity(own(path), None)


@pytest.mark.parametrize(
    ("name", "rows", "words"),
    [
        ("d.csv", [], ["d.csv", "can't be read"]),
        ("d.jsonl", [], ["d.jsonl: has no rows"]),
        ("d.csv", [{"txt": "a", "y": 0}], ["d.csv: no column 'text' (did you mean 'txt'?)", "y"]),
        ("d.jsonl", [{"text": "a", "z": 0}], ["d.jsonl: no column 'y'; columns: text, z"]),
        ("d.csv", [*PAIR, {"text": " ", "y": 0}], ["column 'text', row 3: the text is empty"]),
        ("d.parquet", [*PAIR, {"text": None, "y": 0}], ["row 3: the text is missing"]),
        ("d.jsonl", [*PAIR, {"text": 5, "y": 0}], ["row 3: the text is not text: 5"]),
        ("d.jsonl", [*PAIR, {"text": "c"}], ["column 'y', row 3: the label is missing"]),
        ("d.csv", [*PAIR, {"text": "c", "y": ""}], ["column 'y', row 3: the label is missing"]),
        ("d.csv", [*PAIR, {"text": "c", "y": 0.5}], ["row 3: label '0.5' is not an integer"]),
        ("d.parquet", [{"text": "c", "y": 1.5}], ["row 1: label 1.5 is not an integer"]),
        ("d.csv", [*PAIR, {"text": "c", "y": "x"}], ["row 3: label 'x' is not an integer, or"]),
        ("d.jsonl", [*PAIR, {"text": "c", "y": [1]}], ["row 3: label [1] is not an integer"]),
        ("d.csv", [*PAIR, {"text": "c", "y": -1}], ["row 3: label -1 is out of range 0..C-1"]),
        ("d.csv", [*PAIR, {"text": "c", "y": 3}], ["0..C-1, but no row has 2 (largest: 3)"]),
        ("d.csv", [{"text": "c", "y": 0}] * 6, ["d.csv: column 'y' has label 0 only"]),
        ("d.csv", PAIR, ["2 rows are too few to split 80/20"]),
    ],
)
def test_bad_columns(write, tmp_path, name, rows, words):
    if rows:
        write(name, rows)
    else:
        (tmp_path / name).write_text("")
    message = refusal(own(tmp_path / name))
    assert all(word in message for word in words), message


def test_header_alone_has_no_rows(tmp_path):
    (tmp_path / "d.csv").write_text("text,y\n")
    assert refusal(own(tmp_path / "d.csv")).endswith("d.csv: has no rows")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.csv", b"text,y\na,0\nb,1,2\n", "line 3 has 3 cells, the header 2"),
        ("d.tsv", b"text\ty\na\n", "line 2 has 1 cells, the header 2"),
        ("d.csv", b"text,y\n\xff\xfe,0\n", "can't be read"),
        ("d.csv", b"text,text,y\na,b,0\n", "column 'text' is there twice"),
        ("d.jsonl", b'{"text": "a", "y": 0}\n{"text"\n', "line 2 is not JSON"),
        ("d.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("d.jsonl", b'{"text": "\xff", "y": 0}\n', "can't be read"),
        ("d.parquet", b"PAR1 no parquet", "can't be read"),
        ("d.txt", b"a", "is not one of .parquet, .csv, .tsv, .jsonl"),
    ],
)
def test_broken_files(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    message = refusal(own(tmp_path / name))
    assert name in message
    assert words in message


def test_missing_and_ambiguous_files(write, tmp_path):
    assert (
        refusal(own(tmp_path / "no.csv")) == f"task.mine.path: {tmp_path / 'no.csv'} does not exist"
    )
    folder = write("d/train.csv", ROWS).parent
    assert f"{folder} has no validation.* file" in refusal(own(folder))
    write("d/validation.csv", ROWS)
    write("d/validation.tsv", ROWS)
    assert "validation.csv and validation.tsv; keep one" in refusal(own(folder))


def test_validation_label_unknown_to_train(write):
    write("d/train.csv", PAIR)
    folder = write("d/validation.csv", [{"text": "c", "y": 0}, {"text": "d", "y": 2}]).parent
    message = refusal(own(folder))
    assert "validation.csv: column 'y', row 2: label 2 is not a label of" in message


# ------------------------------------------------------------------ built-in tasks


def glue_root(tmp_path, train, validation=None) -> str:
    folder = tmp_path / "sst2"
    folder.mkdir()
    for split, rows in (("train", train), ("validation", validation or train)):
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    return str(tmp_path)


SST2 = [{"sentence": "good film", "label": 1}, {"sentence": "bad film", "label": 0}]


def test_root_folder(tmp_path):
    root = glue_root(tmp_path, [*SST2, {"sentence": "c", "label": 1}, SST2[1]], SST2[:1])
    rows = load_rows(TASKS["sst2"], root, 0)
    assert rows.train.texts == [("bad film",), ("c",), ("bad film",)]
    assert rows.train.labels.tolist() == [0, 1, 0]
    assert rows.label_names == ("negative", "positive")


def test_label_map_flips(tmp_path):
    root = glue_root(tmp_path, SST2, [{"sentence": "x", "label": 1}])
    flipped = load_rows(replace(TASKS["sst2"], name="flip", label_map=(1, 0)), root, 0)
    assert flipped.train.labels.tolist() == [0, 1]
    assert flipped.validation.labels.tolist() == [0]
    assert flipped.label_names == ("positive", "negative")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"sentence": "c", "label": 2}, "row 3: label 2 is out of range 0..1"),
        ({"sentence": "c", "label": -1}, "row 3: label -1 is out of range 0..1"),
        ({"sentence": "", "label": 0}, "row 3: the text is empty"),
    ],
)
def test_bad_rows_under_root(tmp_path, row, words):
    message = refusal(TASKS["sst2"], glue_root(tmp_path, [*SST2, row]))
    assert "train.parquet: column" in message
    assert words in message


def test_words_where_numbers_are_known(tmp_path):
    root = glue_root(tmp_path, [{"sentence": "c", "label": "good"}])
    assert "row 1: label 'good' is not an integer; 'sst2' has labels 0..1" in refusal(
        TASKS["sst2"], root
    )


def test_root_without_the_task(tmp_path):
    message = refusal(TASKS["rte"], str(tmp_path))
    assert message.startswith(f"data.root: {tmp_path / 'rte' / 'train.parquet'} does not exist")


# ------------------------------------------------------------------ the hub, as a folder


def hub_folder(tmp_path: Path, columns=("sentence", "label")) -> str:
    names = "\n".join(f"  - split: {s}\n    path: one/{s}.parquet" for s in ("train", "validation"))
    (tmp_path / "one").mkdir()
    (tmp_path / "README.md").write_text(
        f"---\nconfigs:\n- config_name: one\n  data_files:\n{names}\n---\n"
    )
    rows = pd.DataFrame([*SST2, {"sentence": "c", "label": 1}]).set_axis([*columns], axis=1)
    rows.to_parquet(tmp_path / "one" / "train.parquet")
    rows[2:].to_parquet(tmp_path / "one" / "validation.parquet")
    return str(tmp_path)


@pytest.fixture
def _offline(monkeypatch, tmp_path):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("_offline")
def test_hub_dataset(tmp_path):
    spec = replace(TASKS["sst2"], hub=(hub_folder(tmp_path), "one"))
    rows = load_rows(spec, None, 0)
    assert rows.train.texts == [("good film",), ("bad film",)]
    assert rows.validation.labels.tolist() == [1]
    assert source_identity(spec, None) == source_identity(spec, None)


@pytest.mark.usefixtures("_offline")
def test_hub_dataset_with_another_column(tmp_path):
    spec = replace(TASKS["sst2"], hub=(hub_folder(tmp_path, ("sentences", "label")), "one"))
    assert "no column 'sentence' (did you mean 'sentences'?)" in refusal(spec)


@pytest.mark.usefixtures("_offline")
def test_hub_that_cannot_be_reached():
    message = refusal(replace(TASKS["sst2"], hub=("atlas-flwr/no-such-set", "one")))
    assert "dataset atlas-flwr/no-such-set (one) can't be had" in message
    assert "data.root" in message
    assert "'bbc' and 'tweets'" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"text;y\ngood;1\nbad;0\n", "separated by semicolons: a csv needs commas"),
        ("text,y\nété,1\nnon,0\n".encode("latin-1"), "save the file as UTF-8"),
        (b"text,y\na,1\nb,5\n", "number the classes from 0, or name them in words, e.g. 'y 5'"),
        (b"text,y\na,good\nb,good\n", "column 'y' has label good only"),
        (b"text,y\na,x\nb,z\n", "each of the 2 classes in column 'y' needs two rows"),
    ],
)
def test_a_csv_of_a_spreadsheet_is_refused_with_the_mend(tmp_path, content, words):
    (tmp_path / "d.csv").write_bytes(content)
    assert words in refusal(own(tmp_path / "d.csv"))
