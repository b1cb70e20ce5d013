"""A tiny WordPiece tokenizer and small files."""

import json
from pathlib import Path

import pandas as pd
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ["a", "b", "c", "good", "bad", "film", "##s", "the", "was", "plot", "x", "y"]
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
}


@pytest.fixture(scope="session")
def wordpiece():
    """Return a maker of tokenizers: ``wordpiece()`` or ``wordpiece(token_types=False)``."""

    def make(token_types: bool = True) -> PreTrainedTokenizerFast:
        vocabulary = {word: i for i, word in enumerate([*SPECIAL.values(), *WORDS])}
        inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
        names = ["input_ids", "token_type_ids", "attention_mask"]
        return PreTrainedTokenizerFast(
            tokenizer_object=inner,
            model_input_names=names if token_types else [names[0], names[2]],
            **SPECIAL,
        )

    return make


@pytest.fixture
def write(tmp_path):
    """Return ``write(name, rows)``: rows (dicts) as parquet, csv, tsv or jsonl; gives the path."""

    def to_file(name: str, rows: list[dict]) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        match path.suffix:
            case ".parquet":
                pd.DataFrame(rows).to_parquet(path)
            case ".jsonl":
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            case ".csv":
                pd.DataFrame(rows).to_csv(path, index=False)
            case ".tsv":
                lines = ["\t".join(map(str, row)) for row in [rows[0], *map(dict.values, rows)]]
                path.write_text("\n".join(lines) + "\n")
        return path

    return to_file
