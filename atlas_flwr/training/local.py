"""One client's local training: a few epochs of AdamW on its own rows."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from atlas_flwr.errors import AtlasError
from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.training import precision as prec
from atlas_flwr.training.batches import TokenTable, bucketed
from atlas_flwr.training.memory import MEND, give_back

# A client takes some twenty steps a round: the usual 2**16 would waste the first ones.
FP16_FIRST_SCALE = 2.0**12


@dataclass(frozen=True)
class TrainSpec:
    """How a client trains.

    Attributes:
        epochs: Passes over the rows.
        batch_size: Rows of one optimizer step.
        learning_rate: AdamW's, constant.
        weight_decay: AdamW's, on all trainable tensors.
        max_grad_norm: The gradient's global 2-norm is clipped to this.
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        threads: Torch threads on the CPU.
        micro_batch: Rows of one forward pass; gradients accumulate over the batch. None: all.
        logit_adjustment: τ of ``prior.log_prior``, by which clients make ``Goal.prior``.
        own_offset: What clients add to logits of their own slice: ``"mix"`` or ``"fitted"``.
    """

    epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    precision: prec.PrecisionChoice = "auto"
    device: prec.DeviceChoice = "auto"
    threads: int = 1
    micro_batch: int | None = None
    logit_adjustment: float = 0.0
    own_offset: Literal["mix", "fitted"] = "mix"


@dataclass(frozen=True)
class Goal:
    """What is trained, and towards what besides a small loss on the rows.

    Attributes:
        parameters: The tensors that move; None: all the model's trainable ones. The others of the
            model are frozen for the time being.
        prox_mu: Weight of ``(mu/2) ||theta - anchor||^2`` over ``parameters`` (FedProx, Ditto).
        anchors: The proximal term's centre, one tensor for each parameter; None: where they start.
        penalty: Returns a scalar added to each step's mean loss, or None for nothing.
        prior: Added to the logits, shape ``(C,)`` (``prior.log_prior``); None: nothing.
    """

    parameters: Sequence[nn.Parameter] | None = None
    prox_mu: float = 0.0
    anchors: Sequence[torch.Tensor] | None = None
    penalty: Callable[[], torch.Tensor] | None = None
    prior: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class TrainResult:
    """What training says afterwards.

    Attributes:
        loss: Mean cross-entropy over every row seen, each at its own step, of adjusted logits and
            without any proximal term.
        num_examples: Rows the client trained on (each counted once).
        steps: Optimizer steps.
        micro_batch: Rows of one forward pass in the end.
        notes: What the user should know.
    """

    loss: float
    num_examples: int
    steps: int
    micro_batch: int
    notes: tuple[str, ...] = ()


def train(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    spec: TrainSpec,
    rng: np.random.Generator,
    torch_seed: int,
    goal: Goal = Goal(),
    max_steps: int | None = None,
) -> TrainResult:
    """Train the model in place on some rows of a table.

    AdamW starts afresh. On a CPU the result is a function of the arguments and the model's
    trainable tensors alone, to the bit; torch's generator and thread count are put back.

    Args:
        loaded: The model; it must hold the tensors to start from.
        table: Tokenised rows.
        rows: Which of them, shape ``(n,)``, n >= 1.
        spec: Epochs, batch size, optimizer.
        rng: Draws the batches.
        torch_seed: Seeds dropout.
        goal: Which tensors move, and terms beside the loss: FedProx's over all trainable tensors
            is ``Goal(prox_mu=mu)`` (Li et al., MLSys 2020).
        max_steps: Take exactly that many optimizer steps, with as many epochs as that needs.

    Raises:
        UserError: ``"cuda"`` was asked for and there is none.
        AtlasError: No rows, a loss or gradient that is not finite, or too little memory for a
            single row.
    """
    if len(rows) == 0:
        raise AtlasError("training: the client has no rows")
    device = prec.resolve_device(spec.device)
    loaded.model.to(device)
    moving = list(goal.parameters if goal.parameters is not None else loaded.trainable())
    with (
        prec.threads_of(spec.threads),
        prec.seeded(torch_seed, device),
        _training(loaded, moving),
    ):
        run = _Run(loaded, table, spec, device, replace(goal, parameters=moving))
        for batch in _schedule(table.lengths[rows], spec, rng, max_steps):
            run.step(rows[batch])
        return run.result(len(rows))


@contextlib.contextmanager
def _training(loaded: LoadedModel, moving: Sequence[nn.Parameter]) -> Iterator[None]:
    """Run in training mode with the rest frozen; leave evaluation mode and no gradients behind."""
    kept = {id(parameter) for parameter in moving}
    free = (parameter for parameter in loaded.model.parameters() if parameter.requires_grad)
    still = [parameter for parameter in free if id(parameter) not in kept]
    loaded.model.train()
    try:
        for parameter in still:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in still:
            parameter.requires_grad_(True)
        loaded.model.zero_grad(set_to_none=True)
        loaded.model.eval()


def _schedule(
    lengths: NDArray[np.int32], spec: TrainSpec, rng: np.random.Generator, max_steps: int | None
) -> Iterator[NDArray[np.int64]]:
    """Yield the batches of all epochs, or as many as ``max_steps`` asks for."""
    epochs = range(spec.epochs) if max_steps is None else itertools.count()
    batches = (batch for _ in epochs for batch in bucketed(lengths, spec.batch_size, rng))
    return itertools.islice(batches, max_steps)


class _Run:
    """Optimizer, running sums and micro-batch size of one call of ``train``."""

    def __init__(
        self,
        loaded: LoadedModel,
        table: TokenTable,
        spec: TrainSpec,
        device: torch.device,
        goal: Goal,
    ) -> None:
        self._loaded, self._table, self._spec, self._device = loaded, table, spec, device
        self._precision = prec.choose_precision(spec.precision, device)
        self._prior = None if goal.prior is None else torch.from_numpy(goal.prior).to(device)
        self._parameters = list(goal.parameters or ())
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True
        )
        self._scaler = torch.amp.GradScaler(
            device.type, init_scale=FP16_FIRST_SCALE, enabled=self._precision == "fp16"
        )
        self._mu, self._penalty = goal.prox_mu, goal.penalty
        self._anchors = list(goal.anchors or ())
        if self._mu > 0 and goal.anchors is None:
            self._anchors = [p.detach().clone() for p in self._parameters]
        self._micro = self._asked = min(spec.batch_size, spec.micro_batch or spec.batch_size)
        self._loss = torch.zeros((), device=device)
        self._norms = torch.zeros((), device=device)
        self._seen = self._steps = 0

    def step(self, indices: NDArray[np.int64]) -> None:
        """Take one optimizer step on the rows, in micro-batches if memory asks for it."""
        loss = self._gradients(indices)
        self._scaler.unscale_(self._optimizer)
        if self._mu > 0:
            self._pull_back()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._spec.max_grad_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._loss += loss
        if not self._scaler.is_enabled():  # fp16 skips the steps that overflow by itself
            self._norms += norm
        self._seen += len(indices)
        self._steps += 1

    def result(self, num_examples: int) -> TrainResult:
        """Read the sums, which is the only wait for the device, and check they are finite."""
        total, norms = self._loss.item(), self._norms.item()
        for name, value in (("loss", total), ("gradient", norms)):
            if not math.isfinite(value):
                raise AtlasError(
                    f"training: the {name} is not finite after {self._steps} steps; lower "
                    f"train.learning-rate ({self._spec.learning_rate:g})"
                )
        notes: list[str] = []
        if self._micro < self._asked:
            notes.append(
                f"out of memory at batch size {self._asked}: went on with micro-batches "
                f"of {self._micro} and accumulated gradients; the effective batch is unchanged"
            )
        if self._scaler.is_enabled() and self._scaler.get_scale() < FP16_FIRST_SCALE:
            notes.append("fp16 overflowed: at least one optimizer step was skipped")
        return TrainResult(
            loss=total / self._seen,
            num_examples=num_examples,
            steps=self._steps,
            micro_batch=self._micro,
            notes=tuple(notes),
        )

    def _gradients(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Leave the batch's mean gradient in the parameters; return its summed loss."""
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            try:
                return self._accumulate(indices)
            except torch.OutOfMemoryError as error:
                if self._micro == 1:
                    raise AtlasError(
                        f"training: out of memory at micro-batch 1, a single row; {MEND}"
                    ) from error
            # Outside the handler: the traceback, and the tensors its frames hold, are gone.
            self._micro = min(self._micro, len(indices))
            self._micro = max(1, self._micro // 2)
            self._optimizer.zero_grad(set_to_none=True)
            give_back()

    def _accumulate(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Sum gradients over micro-batches; each row weighs ``1 / len(indices)``."""
        total = torch.zeros((), device=self._device)
        for start in range(0, len(indices), self._micro):
            loss = self._forward(indices[start : start + self._micro])
            torch.autograd.backward(self._scaler.scale(loss / len(indices)))
            total += loss.detach()
        if self._penalty is not None:
            torch.autograd.backward(self._scaler.scale(self._penalty()))
        return total

    def _forward(self, indices: NDArray[np.int64]) -> torch.Tensor:
        """Return the summed cross-entropy of the rows, in float32."""
        batch = to_device(self._table.batch(indices, self._loaded.pad_token_id), self._device)
        labels = batch.pop("labels")
        with prec.autocast(self._precision, self._device):
            logits = self._loaded.model(**batch).logits.float()
        if self._prior is not None:
            logits = logits + self._prior
        return F.cross_entropy(logits, labels, reduction="sum")

    @torch.no_grad()
    def _pull_back(self) -> None:
        """Add the proximal term's gradient, ``mu (theta - anchor)``."""
        for parameter, anchor in zip(self._parameters, self._anchors, strict=True):
            if parameter.grad is not None:
                parameter.grad.add_(parameter - anchor, alpha=self._mu)


def to_device(batch: dict[str, NDArray[np.int64]], device: torch.device) -> dict[str, Any]:
    """Return the arrays as tensors on the device, without a copy on the CPU."""
    return {key: torch.from_numpy(array).to(device) for key, array in batch.items()}
