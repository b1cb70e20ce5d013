"""A federated round's work as a bare PyTorch loop: no Flower, no messages, no records.

The same rows in the same batches, the same optimizer steps and the same evaluation batches as the
framework's LoRA clients, on PEFT's own model. What the framework adds is all that is missing here.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from atlas_flwr.config.schema import Config
from atlas_flwr.models.backbone import quiet
from atlas_flwr.models.catalog import locate
from atlas_flwr.seeding import rng_for
from atlas_flwr.training import precision as prec
from atlas_flwr.training.batches import bucketed, by_length
from atlas_flwr.training.local import to_device
from clients.base import Site
from clients.site import open_site


def new_model(config: Config, num_labels: int) -> Any:
    """Return a freshly loaded model with PEFT's LoRA on every linear layer, and a trained head."""
    with quiet():
        model = AutoModelForSequenceClassification.from_pretrained(
            locate(config.model.name), num_labels=num_labels, dtype=torch.float32
        )
    rank = config.rank_of(0)
    lora = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=round(config.scale_of(rank) * rank),
        target_modules="all-linear",
    )
    return get_peft_model(model, lora)


def trainable(model: Any) -> list[torch.nn.Parameter]:
    """Return the tensors that training changes."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class BareLoop:
    """All clients of an experiment, trained and scored one after another in this process."""

    def __init__(self, config: Config) -> None:
        torch.set_num_threads(config.engine.threads)
        self.config = config
        self.sites: list[Site] = [open_site(config, p) for p in range(config.run.clients)]
        sizes = {site.model.num_labels for site in self.sites}
        self.models = {labels: new_model(config, labels) for labels in sorted(sizes)}
        self.starts = {n: copy.deepcopy(trainable(model)) for n, model in self.models.items()}
        self.device = torch.device("cpu")
        self.precision = prec.choose_precision(config.train.precision, self.device)

    def round(self, round_: int) -> None:
        """Train every client, then score every client."""
        for partition in range(len(self.sites)):
            self.train(partition, round_)
        for partition in range(len(self.sites)):
            self.score(partition)

    def train(self, partition: int, round_: int) -> int:
        """Train from the start on the client's batches of a round; return the optimizer steps."""
        site, model, parameters = self._load(partition)
        spec = site.spec
        optimizer = torch.optim.AdamW(
            parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )
        rng = rng_for(site.seed, "batches", round_, partition)
        batches = bucketed(site.train_table.lengths[site.train_rows], spec.batch_size, rng)
        model.train()
        for batch in batches:
            tensors = self._batch(site, site.train_table, site.train_rows[batch])
            labels = tensors.pop("labels")
            with prec.autocast(self.precision, self.device):
                logits = model(**tensors).logits
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(F.cross_entropy(logits.float(), labels))
            torch.nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm)
            optimizer.step()
        return len(batches)

    def score(self, partition: int) -> tuple[float, int]:
        """Score the client's own evaluation rows; return the mean loss and the right answers."""
        site, model, _ = self._load(partition)
        model.eval()
        loss, right = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        with torch.inference_mode():
            for batch in by_length(site.score_table.lengths[site.own_rows], site.eval_batch_size):
                tensors = self._batch(site, site.score_table, site.own_rows[batch])
                labels = tensors.pop("labels")
                with prec.autocast(self.precision, self.device):
                    logits = model(**tensors).logits.float()
                loss += F.cross_entropy(logits, labels, reduction="sum")
                right += (logits.argmax(dim=-1) == labels).sum()
        return loss.item() / max(1, len(site.own_rows)), int(right.item())

    def _load(self, partition: int) -> tuple[Site, Any, list[torch.nn.Parameter]]:
        """Return the client's site and model with the start's values in it."""
        site = self.sites[partition]
        model = self.models[site.model.num_labels]
        parameters = trainable(model)
        with torch.no_grad():
            for held, start in zip(parameters, self.starts[site.model.num_labels], strict=True):
                held.copy_(start)
        return site, model, parameters

    def _batch(self, site: Site, table: Any, rows: Any) -> dict[str, Any]:
        return to_device(table.batch(np.asarray(rows), site.model.pad_token_id), self.device)
