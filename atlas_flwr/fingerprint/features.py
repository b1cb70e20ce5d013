"""A client's fingerprint from its rows and the model as it is loaded.

Clients can be compared only if all of them hold the same model: write the shared, seeded parts
first. The adapters in it count; right after the seed they change nothing.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from atlas_flwr.errors import AtlasError
from atlas_flwr.fingerprint import gradients, sketch, subspace
from atlas_flwr.fingerprint.summary import summarise, summarise_vectors
from atlas_flwr.models.backbone import LoadedModel
from atlas_flwr.training import precision as prec
from atlas_flwr.training.batches import TokenTable, by_length
from atlas_flwr.training.local import to_device
from atlas_flwr.training.memory import with_smaller_batches
from atlas_flwr.types import Tensors

Kind = Literal["class_means", "embedding", "mean_gradient", "rms_gradient"]
KINDS: tuple[Kind, ...] = ("class_means", "embedding", "mean_gradient", "rms_gradient")


def fingerprint(  # noqa: PLR0913 - all of them optional but the first six
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    num_labels: int,
    *,
    seed: int,
    rng: np.random.Generator,
    kind: Kind = "class_means",
    clip: float | None = None,
    noise: float = 0.0,
    limit: int = sketch.LIMIT,
    batch_size: int = 64,
    device: prec.DeviceChoice = "auto",
    threads: int = 1,
) -> Tensors:
    """Return two arrays that say what a client's rows are like (``summary``), in 8 KB.

    Up to rounding it depends on which rows there are and not on their order or the batch size; on
    a CPU the same arguments give the same bits. In float32, without dropout.

    * ``class_means``: the mean last hidden state of each class, in two halves. Forward passes only.
      Clients of one task have the same whatever their label mixes are.
    * ``embedding``: the same without classes.
    * ``mean_gradient``: of the cross-entropy with respect to the adapted weights of the last two
      blocks, without adapters; label mixes swamp it.
    * ``rms_gradient``: the root of its mean square over single rows (the diagonal of the empirical
      Fisher information): domains, not labels; a backward pass a row.

    Args:
        loaded: The model.
        table: Tokenised rows.
        rows: Which of them, ``(n,)``, n >= 1.
        num_labels: Classes of the label space.
        seed: The run's, the same on every client: it draws the projection.
        rng: The client's own: it draws the halves and the noise. A seed that others know is fit
            for simulations only: they could take the noise off again.
        kind: What is measured.
        clip: Features are shortened to this norm; class means and embedding alone.
        noise: Multiplier of the Gaussian mechanism (``privacy``); needs ``clip``.
        limit: Bytes, serialised. What doesn't fit is projected, to no less than 16 dimensions a
            class; of more than 107 classes, 107 drawn from the seed are measured.
        batch_size: Rows of one pass.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        threads: Torch threads on the CPU.

    Raises:
        UserError: ``"cuda"`` was asked for and there is none.
        AtlasError: There are no rows, the model's answer is not finite, or an option doesn't fit.
    """
    if kind not in KINDS:
        raise AtlasError(f"no fingerprint is named '{kind}', known: {', '.join(KINDS)}")
    if len(rows) == 0:
        raise AtlasError("fingerprint: the client has no rows")
    rows = np.sort(rows)
    labels = table.labels[rows]
    where = prec.resolve_device(device)
    loaded.model.to(where).eval()
    with prec.threads_of(threads):
        if kind in ("mean_gradient", "rms_gradient"):
            if noise or clip is not None:
                raise AtlasError(f"fingerprint: clip and noise are not for '{kind}'")
            plan = gradients.Plan(kind == "rms_gradient", limit, batch_size, where)
            return summarise_vectors(
                *gradients.of_halves(loaded, table, rows, plan, seed=seed, rng=rng)
            )
        features = with_smaller_batches(
            lambda size: mean_hidden(loaded, table, rows, size, where), batch_size, "fingerprint"
        )
    classes, own = (num_labels, labels) if kind == "class_means" else (1, np.zeros_like(labels))
    return summarise(
        features, own, classes, seed=seed, rng=rng, clip=clip, noise=noise, limit=limit
    )


def subspace_of(  # noqa: PLR0913 - all of them optional but the first five
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    num_labels: int,
    *,
    seed: int,
    dimensions: int = subspace.DIMENSIONS,
    class_wise: bool = False,
    limit: int = sketch.LIMIT,
    batch_size: int = 64,
    device: prec.DeviceChoice = "auto",
    threads: int = 1,
) -> Tensors:
    """Return the subspace of a client's mean hidden states (``subspace``); forward passes only.

    Args:
        loaded: The model.
        table: Tokenised rows.
        rows: Which of them, ``(n,)``, n >= 1.
        num_labels: Classes of the label space.
        seed: The run's, the same on every client: it draws the projection, where one is needed.
        dimensions: Directions kept.
        class_wise: Of each class; else of all rows together, labels unread.
        limit: Bytes, serialised.
        batch_size: Rows of one pass.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        threads: Torch threads on the CPU.

    Raises:
        UserError: ``"cuda"`` was asked for and there is none.
        AtlasError: There are no rows, the model's answer is not finite, or the directions don't
            fit the limit.
    """
    if len(rows) == 0:
        raise AtlasError("fingerprint: the client has no rows")
    rows = np.sort(rows)
    where = prec.resolve_device(device)
    loaded.model.to(where).eval()
    with prec.threads_of(threads):
        features = with_smaller_batches(
            lambda size: mean_hidden(loaded, table, rows, size, where), batch_size, "fingerprint"
        )
    classes = num_labels if class_wise else 1
    return subspace.subspace(
        features, table.labels[rows], classes, dimensions, seed=seed, limit=limit
    )


def mean_hidden(
    loaded: LoadedModel,
    table: TokenTable,
    rows: NDArray[np.int64],
    batch_size: int,
    device: torch.device,
) -> NDArray[np.float64]:
    """Return the mean over a row's tokens of the backbone's last hidden state, ``(n, d)``."""
    batches = by_length(table.lengths[rows], batch_size)
    found: list[torch.Tensor] = []
    with torch.inference_mode():
        for batch in batches:
            tensors = to_device(table.batch(rows[batch], loaded.pad_token_id), device)
            del tensors["labels"]
            hidden = loaded.backbone.module(**tensors).last_hidden_state.double()
            mask = tensors["attention_mask"].unsqueeze(-1)
            found.append((hidden * mask).sum(dim=1) / mask.sum(dim=1))
    features = np.empty((len(rows), found[0].shape[1]))
    features[np.concatenate(batches)] = torch.cat(found).cpu().numpy()
    return features
