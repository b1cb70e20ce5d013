"""Clients as they are usually written: what the framework's own are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from atlas_flwr.config.schema import Config
from atlas_flwr.data.load import TaskRows, load_rows
from atlas_flwr.models.backbone import quiet
from atlas_flwr.models.catalog import locate
from benchmarks.bare_loop import new_model, trainable
from clients.base import Site
from clients.site import open_site, task_specs

GUIDE_LENGTH = 128


def rows_of(config: Config) -> TaskRows:
    """Return the texts of the experiment's only task."""
    spec = task_specs(config)[config.data.tasks[0]]
    return load_rows(spec, config.data.root, config.run.seed)


class QuickstartClient:
    """A client in the manner of Flower's ``quickstart-huggingface`` example.

    Every message loads the model and tokenises the shard, takes all weights in, trains all of
    them with dynamic padding, and answers with all of them.
    """

    def __init__(self, config: Config, partition: int) -> None:
        self.config = config
        site = open_site(config, partition)
        self.site, self.path = site, locate(config.model.name)
        rows = rows_of(config)
        self.raw = Dataset.from_dict(
            {
                "text": [" ".join(rows.train.texts[i]) for i in site.train_rows],
                "labels": [int(rows.train.labels[i]) for i in site.train_rows],
            }
        )
        self.app = ClientApp()
        self.app.train()(self._train)

    def model(self) -> Any:
        """Return the model, read from disk."""
        with quiet():
            return AutoModelForSequenceClassification.from_pretrained(
                self.path, num_labels=self.site.model.num_labels, dtype=torch.float32
            )

    def loader(self) -> DataLoader[Any]:
        """Return the shard's batches, tokenised now, each padded to its longest row."""
        tokenizer = AutoTokenizer.from_pretrained(self.path)

        def encode(rows: dict[str, list[str]]) -> Any:
            return tokenizer(rows["text"], truncation=True, max_length=self.config.model.max_length)

        data = self.raw.map(encode, batched=True, remove_columns="text")
        return DataLoader(
            data,
            shuffle=True,
            batch_size=self.config.train.batch_size,
            collate_fn=DataCollatorWithPadding(tokenizer=tokenizer),
        )

    def _train(self, message: Message, _: Context) -> Message:
        model, loader = self.model(), self.loader()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        fit(model, list(model.parameters()), loader, 5e-5)
        content = RecordDict({
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(self.raw)}),
        })  # fmt: skip
        return Message(content, reply_to=message)


class GuideLoop:
    """Rounds in the manner of notebooks: every row padded to 128, a new model for each client.

    LoRA, the optimizer steps and the rows scored are those of the framework's clients.
    """

    def __init__(self, config: Config, length: int = GUIDE_LENGTH) -> None:
        self.config, self.length = config, length
        self.tokenizer = AutoTokenizer.from_pretrained(locate(config.model.name))
        self.rows = rows_of(config)
        self.sites: list[Site] = [open_site(config, p) for p in range(config.run.clients)]

    def round(self, _: int) -> None:
        """Train each client's new model from the global tensors, then score the last one's."""
        spec = self.sites[0].spec
        shared: list[torch.Tensor] | None = None
        for site in self.sites:
            model = new_model(self.config, site.model.num_labels)
            parameters = trainable(model)
            if shared is not None:
                with torch.no_grad():
                    for held, sent in zip(parameters, shared, strict=True):
                        held.copy_(sent)
            shared = [parameter.detach().clone() for parameter in parameters]
            batches = self.batches(self.rows.train, site.train_rows, spec.batch_size)
            fit(model, parameters, batches, spec.learning_rate)
        for site in self.sites:
            table = (
                self.rows.train if site.score_table is site.train_table else self.rows.validation
            )
            score(model, self.batches(table, site.own_rows, site.eval_batch_size))

    def batches(self, rows: Any, chosen: NDArray[np.int64], size: int) -> list[dict[str, Any]]:
        """Return the chosen rows tokenised and padded to the fixed length."""
        texts = [" ".join(rows.texts[i]) for i in chosen]
        encoded = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.length,
            return_tensors="pt",
        )
        encoded["labels"] = torch.tensor([int(rows.labels[i]) for i in chosen])
        return [
            {key: value[start : start + size] for key, value in encoded.items()}
            for start in range(0, len(texts), size)
        ]


def fit(model: Any, parameters: list[torch.nn.Parameter], batches: Any, rate: float) -> None:
    """Train for one epoch."""
    optimizer = torch.optim.AdamW(parameters, lr=rate)
    model.train()
    for batch in batches:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def score(model: Any, batches: list[dict[str, Any]]) -> int:
    """Return the number of right answers."""
    model.eval()
    with torch.no_grad():
        return sum(
            int((model(**batch).logits.argmax(dim=-1) == batch["labels"]).sum())
            for batch in batches
        )
