"""Training memory in bytes, predicted from plain numbers; a measurement is shown beside it.

Fine-tuning by LoRA holds the frozen weights, the trained tensors with their gradients and AdamW's
two moments, what the backward pass reads again, and a rest that no formula knows (allocator,
kernels' workspace, on a CPU the interpreter itself), which is given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from atlas_flwr.errors import ConfigError

STATE_BYTES = 16  # float32: value 4, gradient 4, AdamW's moments 8
GRADIENT_BYTES = 4  # float32: of each entry of a frozen weight, where its gradient is measured

# Two numbers of a training process on a CPU that follow from no shape. Both were taken once, on
# MiniLM at 16 × 128 (Linux, glibc, PyTorch's CPU wheel) by ``benchmarks.memory``, and are used on
# every other model and step. The process: interpreter, libraries and buffers, peak resident set
# less the tensors, with freed tensors given back to the system. The slack: what glibc's heap keeps
# of freed tensors when left to itself, as a share of the activations: 0.31 to 0.37 there from run
# to run, 0.4 to 0.5 on DistilBERT and 0.7 to 0.8 on GPT-2, whose peaks are told 13 to 15 % low.
PROCESS_BYTES = 545 * 10**6
HEAP_SLACK = 0.37

# What PyTorch sets aside for cuBLAS by a handle, out of the allocator that its memory counters
# count: 32 MiB from Hopper on, 2 × 4096 + 8 × 16 KiB before. A process that trains has two handles,
# its own thread's and that of the backward pass. On 59 runs of MiniLM on an H100 (702 clients, 12
# to 128 tokens, ranks of 4 to 16) the prediction is 0.98 to 1.08 of the peak with it, 0.70 to 0.93
# without.
CUBLAS_HANDLES = 2
_CUBLAS_HOPPER, _CUBLAS_BEFORE = 32 * 2**20, 8320 * 2**10
_HOPPER = 9  # compute capability

DTYPE_BYTES: dict[str, float] = {
    "float32": 4.0,
    "float16": 2.0,
    "bfloat16": 2.0,
    "int8": 1.0,
    "int4": 0.5,
}


@dataclass(frozen=True)
class Shape:
    """The transformer's numbers that its activations follow from.

    Attributes:
        layers: Transformer blocks.
        width: Hidden size.
        inner: Width of the feed-forward layer; 0 is four times the width.
        heads: Attention heads.
        kept: Values a block keeps for the backward pass for each token and unit of width, the
            feed-forward's apart: inputs of the four projections, q, k, v, two norms, residuals
            and dropouts. 10 was counted on MiniLM with LoRA on every linear layer (18 with the
            feed-forward's), in float32.
        maps: Attention maps (length × length a head) a block keeps: 3 were counted for PyTorch's
            plain attention with dropout; a fused kernel keeps none, but its mask once for all
            heads, ``1 / heads``.
        inner_kept: Values kept for each token and unit of the feed-forward layer: 2 around a plain
            activation, 5 were counted for GPT-2's, which is composed, 4 for Llama's gated one.
    """

    layers: int
    width: int
    inner: int = 0
    heads: int = 1
    kept: float = 10.0
    maps: float = 3.0
    inner_kept: float = 2.0


@dataclass(frozen=True)
class Load:
    """One training step.

    Attributes:
        batch: Rows in a micro-batch.
        length: Tokens in the longest row, to which the others are padded.
        value_bytes: Bytes of a value kept for the backward pass. 4 also under autocast on a CPU,
            where what is kept in bfloat16 is kept beside float32 copies (measured: 6 % less in
            short rows, 15 % in long ones); 2 for a model that is half precision throughout.
        slack: What the allocator holds beside the activations, as a share of them:
            ``HEAP_SLACK`` on a CPU.
    """

    batch: int
    length: int
    value_bytes: float = 4.0
    slack: float = 0.0


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for.

    Attributes:
        weights: Frozen weights.
        head: The trained head: values, gradients and moments.
        adapter: The adapter, likewise.
        activations: What the backward pass reads again.
        workspace: The rest: as given, and the allocator's slack.
    """

    weights: int
    head: int
    adapter: int
    activations: int
    workspace: int

    @property
    def total(self) -> int:
        """The sum of all."""
        return self.weights + self.head + self.adapter + self.activations + self.workspace


def predict(
    frozen: Mapping[str, int],
    shape: Shape,
    load: Load,
    *,
    head: int = 0,
    adapter: int = 0,
    ranks: int = 0,
    workspace: int = 0,
) -> Memory:
    """Return the bytes that training an adapter holds at its peak, by part.

    ``activations = batch · length · layers · (kept · width + inner_kept · inner) · bytes``, and
    ``batch · layers · maps · heads · length² · bytes`` of attention, and ``batch · length · Σ r ·
    bytes`` of ``A x``. Linear in each part: doubling the batch doubles the activations.

    Args:
        frozen: Number of frozen parameters by dtype (``DTYPE_BYTES``).
        shape: The transformer.
        load: The step.
        head: Parameters of the trained head.
        adapter: Parameters of the adapter, ``Σ r (d_out + d_in)``.
        ranks: The sum of all modules' ranks.
        workspace: Bytes beside all this: ``PROCESS_BYTES`` on a CPU, ``cublas_bytes`` on CUDA.

    Raises:
        ConfigError: A dtype is unknown or a number is negative.
    """
    for dtype, count in frozen.items():
        if dtype not in DTYPE_BYTES:
            raise ConfigError(f"dtype '{dtype}' is none of {', '.join(DTYPE_BYTES)}")
        _check(f"frozen {dtype}", count)
    for name, value in {**vars(shape), **vars(load)}.items():
        _check(name, value)
    beside = {"head": head, "adapter": adapter, "ranks": ranks, "workspace": workspace}
    for name, value in beside.items():
        _check(name, value)
    inner = shape.inner or 4 * shape.width
    tokens = load.batch * load.length
    values = tokens * shape.layers * (shape.kept * shape.width + shape.inner_kept * inner)
    values += load.batch * shape.layers * shape.maps * shape.heads * load.length**2
    values += tokens * ranks
    return Memory(
        weights=math.ceil(sum(DTYPE_BYTES[dtype] * count for dtype, count in frozen.items())),
        head=STATE_BYTES * head,
        adapter=STATE_BYTES * adapter,
        activations=math.ceil(values * load.value_bytes),
        workspace=workspace + math.ceil(values * load.value_bytes * load.slack),
    )


def cublas_bytes(major: int | None, config: str = "") -> int:
    """Return what a process that trains on CUDA holds for cuBLAS, in bytes.

    Args:
        major: The GPU's compute capability, its first number; None for an unknown GPU, which is
            taken for one that needs more.
        config: ``CUBLAS_WORKSPACE_CONFIG``, pairs of ``:KiB:number``, which overrides both; a text
            without a pair counts as none, as it does to PyTorch.

    >>> cublas_bytes(7), cublas_bytes(9), cublas_bytes(9, ":16:8")
    (17039360, 67108864, 262144)
    """
    pairs = re.findall(r":(\d+):(\d+)", config)
    asked = sum(int(size) * int(number) for size, number in pairs) * 2**10
    hopper = major is None or major >= _HOPPER
    return CUBLAS_HANDLES * (asked or (_CUBLAS_HOPPER if hopper else _CUBLAS_BEFORE))


def rank_bytes(load: Load) -> int:
    """Return the bytes that one rank of one module holds of ``A x``, with the allocator's slack.

    A rank adds them to ``STATE_BYTES`` for each of its ``d_out + d_in`` parameters. They are
    rounded up, so that ranks taken one by one are never told less than ``predict`` tells.
    """
    values = load.batch * load.length * load.value_bytes
    return math.ceil(values) + math.ceil(values * load.slack)


def _check(name: str, value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ConfigError(f"{name}: memory needs a number of 0 or more, got {value}")
