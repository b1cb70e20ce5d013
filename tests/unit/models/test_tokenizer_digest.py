"""The digest that token caches are named by: what the tokenizer does, not what it did last."""

from __future__ import annotations

import json
from pathlib import Path

from atlas_flwr.models.backbone import ModelSpec, forget, load_tokenizer, tokenizer_digest
from fakes import tiny_model


def test_using_a_tokenizer_leaves_its_digest(tmp_path: Path) -> None:
    name = tiny_model(tmp_path, "bert")
    before = tokenizer_digest(name)
    tokenizer_digest.cache_clear()
    load_tokenizer(ModelSpec(name))(["a b c d e f"], truncation=True, max_length=4)
    assert tokenizer_digest(name) == before


def test_another_vocabulary_under_the_same_name_changes_it(tmp_path: Path) -> None:
    name = tiny_model(tmp_path, "bert")
    before = tokenizer_digest(name)
    path = tmp_path / "tokenizer.json"
    facts = json.loads(path.read_text())
    facts["model"]["vocab"]["newword"] = len(facts["model"]["vocab"])
    path.write_text(json.dumps(facts))
    forget()
    assert tokenizer_digest(name) != before
