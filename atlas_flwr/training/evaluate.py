"""Loss and classification metrics of a model on some rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from atlas_flwr.errors import AtlasError
from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.training import precision as prec
from atlas_flwr.training.batches import TokenTable, by_length
from atlas_flwr.training.local import to_device
from atlas_flwr.training.memory import with_smaller_batches


@dataclass(frozen=True)
class EvalResult:
    """What evaluation says.

    Attributes:
        loss: Mean cross-entropy over the rows; NaN if there are none.
        metrics: ``accuracy``, ``f1``, ``macro_f1``, ``mcc``; one that does not exist is absent.
        num_examples: Rows scored.
    """

    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    num_examples: int = 0


def evaluate(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    batch_size: int = 64,
    precision: prec.PrecisionChoice = "auto",
    device: prec.DeviceChoice = "auto",
    threads: int = 1,
    prior: NDArray[np.float32] | None = None,
) -> EvalResult:
    """Score the model on some rows, which changes nothing in it.

    Args:
        loaded: The model.
        table: Tokenised rows.
        rows: Which of them, shape ``(n,)``; none gives a result without metrics.
        batch_size: Rows of one forward pass; halved when memory runs out.
        precision: As in training.
        device: As in training.
        threads: Torch threads on the CPU.
        prior: Added to the logits, shape ``(C,)`` (``prior.log_prior``); None: nothing.

    Raises:
        UserError: ``"cuda"`` was asked for and there is none.
        AtlasError: A loss that is not finite, or too little memory for a single row.
    """
    if len(rows) == 0:
        return EvalResult(loss=float("nan"))
    where = prec.resolve_device(device)
    loaded.model.to(where).eval()
    with prec.threads_of(threads), torch.inference_mode():
        loss, predicted = with_smaller_batches(
            lambda size: _score(loaded, table, rows, size, precision, where, prior),
            min(batch_size, len(rows)),
            "evaluation",
        )
    if not np.isfinite(loss):
        raise AtlasError("evaluation: the loss is not finite; the model has diverged")
    metrics = classification_metrics(table.labels[rows], predicted, loaded.num_labels)
    return EvalResult(loss=loss, metrics=metrics, num_examples=len(rows))


def logits_of(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    batch_size: int = 64,
    precision: prec.PrecisionChoice = "auto",
    device: prec.DeviceChoice = "auto",
    threads: int = 1,
) -> NDArray[np.float32]:
    """Return the model's logits of some rows, ``(n, C)``, n ≥ 1; arguments are ``evaluate``'s.

    Raises:
        UserError: ``"cuda"`` was asked for and there is none.
        AtlasError: Logits that are not finite, or too little memory for a single row.
    """
    where = prec.resolve_device(device)
    loaded.model.to(where).eval()

    def run(size: int) -> NDArray[np.float32]:
        batches = by_length(table.lengths[rows], size)
        passes = _passes(loaded, table, rows, batches, precision, where)
        return _in_order([logits for logits, _ in passes], batches)

    with prec.threads_of(threads), torch.inference_mode():
        found = with_smaller_batches(run, min(batch_size, len(rows)), "evaluation")
    if not np.isfinite(found).all():
        raise AtlasError("evaluation: logits are not finite; the model has diverged")
    return found


def _score(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    batch_size: int,
    precision: prec.PrecisionChoice,
    device: torch.device,
    prior: NDArray[np.float32] | None,
) -> tuple[float, NDArray[np.int64]]:
    """Return the mean loss and each row's predicted class, in the order of ``rows``."""
    total = torch.zeros((), device=device, dtype=torch.float64)
    added = None if prior is None else torch.from_numpy(prior).to(device)
    answers: list[torch.Tensor] = []
    batches = by_length(table.lengths[rows], batch_size)
    for logits, labels in _passes(loaded, table, rows, batches, precision, device):
        scores = logits if added is None else logits + added
        total += F.cross_entropy(scores, labels, reduction="sum")
        answers.append(scores.argmax(dim=-1))
    return total.item() / len(rows), _in_order(answers, batches)


def _passes(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    batches: Sequence[NDArray[np.int64]],
    precision: prec.PrecisionChoice,
    device: torch.device,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield float32 logits and labels of each batch."""
    chosen = prec.choose_precision(precision, device)
    for batch in batches:
        tensors = to_device(table.batch(rows[batch], loaded.pad_token_id), device)
        labels = tensors.pop("labels")
        with prec.autocast(chosen, device):
            logits = loaded.model(**tensors).logits.float()
        yield logits, labels


def _in_order(
    answers: Sequence[torch.Tensor], batches: Sequence[NDArray[np.int64]]
) -> NDArray[Any]:
    """Return what was said batch by batch in the order of the rows."""
    said = torch.cat(list(answers)).cpu().numpy()
    ordered = np.empty_like(said)
    ordered[np.concatenate(batches)] = said
    return ordered


def classification_metrics(
    labels: NDArray[np.int64], predicted: NDArray[np.int64], num_labels: int
) -> dict[str, float]:
    """Return scikit-learn's metrics; those that are 0/0 on these rows are left out.

    ``f1`` is label 1's and exists for two labels only, where label 1 occurs or is predicted.
    ``macro_f1`` is the plain mean over the classes that occur or are predicted. ``mcc``
    (Matthews) exists where the rows have more than one class.

    Args:
        labels: True classes, shape ``(n,)``, n >= 1.
        predicted: Predicted classes, shape ``(n,)``.
        num_labels: Classes of the task.
    """
    metrics = {
        "accuracy": float(accuracy_score(labels, predicted)),
        "macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0.0)),
    }
    if num_labels == 2 and (np.any(labels == 1) or np.any(predicted == 1)):
        metrics["f1"] = float(f1_score(labels == 1, predicted == 1, zero_division=0.0))
    if np.unique(labels).size > 1:
        metrics["mcc"] = float(matthews_corrcoef(labels, predicted))
    return metrics
