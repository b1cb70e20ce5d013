"""`atlas predict`: texts classified with a run's model or an exported folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from atlas_flwr.apps.sharing.choose import Asked, base_folder, choose, held_models
from atlas_flwr.apps.sharing.texts import Texts
from atlas_flwr.data.tasks import resolve_tasks
from atlas_flwr.errors import ResultError, did_you_mean
from atlas_flwr.models.export import SERVES
from atlas_flwr.models.reopen import as_served, open_model, open_tokenizer
from atlas_flwr.results.store import read_extra
from atlas_flwr.training.memory import with_smaller_batches

_BATCH = 32


@dataclass(frozen=True)
class Classifier:
    """A model ready to be asked.

    Attributes:
        model: The transformers or PEFT model.
        tokenizer: Its tokenizer.
        labels: Class names in order.
        columns: Names of the task's texts, one or two; empty: not known.
        max_length: Tokens of a text that are read.
    """

    model: Any
    tokenizer: Any
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    max_length: int


@dataclass(frozen=True)
class Prediction:
    """What a model says of a text.

    Attributes:
        texts: The text, or the two of it.
        probabilities: Of each class, by name, in the order of the classes.
        cut: Whether it has more tokens than the model reads.
    """

    texts: tuple[str, ...]
    probabilities: dict[str, float]
    cut: bool

    @property
    def label(self) -> str:
        """The most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "texts": list(self.texts),
            "label": self.label,
            "probability": self.probabilities[self.label],
            "probabilities": self.probabilities,
            "cut": self.cut,
        }


def print_predictions(folder: Path, texts: Texts, asked: Asked, as_json: bool) -> None:
    """Classify texts and print a line, or a JSON object, each.

    Raises:
        UserError: There is no such model, or the texts are not as it wants them.
    """
    with open_classifier(folder, asked) as classifier:
        rows = texts.columns(classifier.columns or ("text",))
        found = classify(classifier, rows)
    if as_json:
        file = Console().file  # written as it is: rich would make an emoji of ":smile:"
        plain = "utf" not in str(getattr(file, "encoding", None) or "utf-8").lower()
        told = json.dumps([p.to_dict() for p in found], ensure_ascii=plain, indent=2)
        file.write(f"{told}\n")
        return
    Console().print(_table(found))
    if cut := sum(prediction.cut for prediction in found):
        note = f"note: {cut} of {len(found)} cut to {classifier.max_length} tokens"
        Console(stderr=True, soft_wrap=True, highlight=False).print(note, markup=False)


@contextmanager
def open_classifier(folder: Path, asked: Asked) -> Iterator[Classifier]:
    """Open a run's model, or an exported folder.

    Raises:
        ResultError: There is no such model.
        ModelError: It can't be opened.
    """
    if (folder / "config.json").is_file():
        yield _exported(folder, asked)
        return
    with held_models(folder) as held:
        found = choose(held, asked)
        spec = resolve_tasks(held.config.data.tasks, held.config.task)[found.task]
        model = open_model(found.folder, base_folder(held))
        with as_served(model, found.folder):
            yield Classifier(
                model=model,
                tokenizer=open_tokenizer(found.folder),
                labels=found.labels[found.task],
                columns=spec.text,
                max_length=held.config.model.max_length,
            )


def _exported(folder: Path, asked: Asked) -> Classifier:
    """Open an exported folder, or any classifier's."""
    told = read_extra(folder / SERVES)
    task = asked.task or told.get("task")
    if words := [word for word in asked.words() if not word.startswith("--task")]:
        raise ResultError(f"{words[0]}: {folder} is one exported model; leave it out")
    labels = told.get("labels", {})
    if asked.task is not None and asked.task not in labels:
        there = f"{folder} is of {', '.join(labels)}" if labels else f"{folder} names no task"
        raise ResultError(f"--task {asked.task}:{did_you_mean(asked.task, labels)} {there}")
    model, tokenizer = open_model(folder), open_tokenizer(folder)
    names = labels.get(task) or [model.config.id2label[i] for i in range(model.config.num_labels)]
    texts = told.get("text", {}).get(task, ())
    longest = told.get("max_length") or min(tokenizer.model_max_length, 512)
    return Classifier(model, tokenizer, tuple(names), tuple(texts), longest)


def classify(classifier: Classifier, rows: Sequence[tuple[str, ...]]) -> list[Prediction]:
    """Return what the model says of each text, in float32; the order is that of the texts.

    Args:
        classifier: The model.
        rows: One text or two each.

    Raises:
        AtlasError: There is too little memory for a single text.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier.model.to(device)
    with torch.inference_mode():
        chances = with_smaller_batches(
            lambda size: torch.cat(
                [
                    _chances(classifier, rows[start : start + size], device)
                    for start in range(0, len(rows), size)
                ]
            ),
            _BATCH,
            "predict",
        )
    return [
        Prediction(
            texts=row,
            probabilities=dict(zip(classifier.labels, each.tolist(), strict=True)),
            cut=_tokens(classifier, row) > classifier.max_length,
        )
        for row, each in zip(rows, chances, strict=True)
    ]


def _tokens(classifier: Classifier, row: tuple[str, ...]) -> int:
    """Return how many tokens a text has; without transformers' own note on long ones."""
    return len(classifier.tokenizer(*row, verbose=False)["input_ids"])


def _chances(
    classifier: Classifier, rows: Sequence[tuple[str, ...]], device: torch.device
) -> torch.Tensor:
    """Return the class probabilities of a batch, shape ``(rows, classes)``, on the CPU."""
    words = classifier.tokenizer(
        *(list(column) for column in zip(*rows, strict=True)),
        truncation=True,
        max_length=classifier.max_length,
        padding=True,
        return_tensors="pt",
    )
    logits = classifier.model(**words.to(device)).logits
    return torch.softmax(logits.float(), dim=-1).cpu()


def _table(found: Sequence[Prediction]) -> Table:
    table = Table.grid(padding=(0, 2))
    for prediction in found:
        chance = prediction.probabilities[prediction.label]
        table.add_row(
            Text(prediction.label, style="bold"),
            Text(f"{chance:.1%}", style="dim", justify="right"),
            Text(" | ".join(prediction.texts), overflow="ellipsis", no_wrap=True),
        )
    return table
