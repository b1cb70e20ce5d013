"""The smallest things a run remembers: one client in one phase, and bytes by kind. Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

KINDS = ("adapter", "head", "weights", "fingerprint", "activation", "gradient", "other")
PHASES = ("fingerprint", "score", "train", "evaluate", "final")
MB = 1e6


@dataclass(frozen=True)
class ClientRow:
    """One line of ``clients.parquet``: one client in one phase of one round; absent is ``None``.

    Attributes:
        round: Round number; the last one for ``phase="final"``.
        partition: Who.
        task: The client's task.
        phase: ``"train"``, ``"evaluate"`` (own slice), ``"final"`` (the task's whole evaluation
            set), or what comes before: ``"fingerprint"``, and ``"score"`` (models compared on
            training rows).
        cluster: Its cluster from the fingerprint phase on.
        num_examples: Rows the phase used.
        ranks: ``"8"`` when uniform, else compact JSON ``{"module": rank}``; see `compact_ranks`.
        seconds: Wall time on the client.
        bytes_up: Bytes from client to server; ``bytes_down`` the other way.
        peak_memory_mb: Measured peak, MB = 10⁶ bytes.
        precision: The number format that ``train.precision`` came to on the client.
        status: ``"ok"``, ``"lost"`` (no answer) or ``"rejected"`` (an answer that was refused).
        error: One line on why, unless ``"ok"``.
    """

    round: int
    partition: int
    task: str
    phase: str
    cluster: int | None = None
    num_examples: int | None = None
    loss: float | None = None
    accuracy: float | None = None
    f1: float | None = None
    macro_f1: float | None = None
    mcc: float | None = None
    ranks: str | None = None
    seconds: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    peak_memory_mb: float | None = None
    precision: str | None = None
    status: Literal["ok", "lost", "rejected"] = "ok"
    error: str | None = None

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f"phase '{self.phase}' is none of {', '.join(PHASES)}")
        if self.status not in ("ok", "lost", "rejected"):
            raise ValueError(f"status '{self.status}' is none of ok, lost, rejected")

    def to_dict(self) -> dict[str, Any]:
        """Return the row as written: a value that is not finite is null, and ``error`` says so."""
        row = {name: getattr(self, name) for name in COLUMNS}
        bad = [k for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)]
        row |= dict.fromkeys(bad)
        if bad and row["error"] is None:
            row["error"] = _NOT_FINITE + ", ".join(bad)
        return row

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> ClientRow:
        """Return the row that was written: what was not finite is so again, and says so again."""
        row = dict(told)
        names, found, bad = (row["error"] or "").partition(_NOT_FINITE)
        if found and not names:
            row |= {**dict.fromkeys(bad.split(", "), math.nan), "error": None}
        return cls(**row)


_NOT_FINITE = "not finite: "
COLUMNS = (
    *("round", "partition", "task", "cluster", "phase", "num_examples", "loss", "accuracy"),
    *("f1", "macro_f1", "mcc", "ranks", "seconds", "bytes_up", "bytes_down", "peak_memory_mb"),
    *("precision", "status", "error"),
)


@dataclass(frozen=True)
class Measured:
    """How good one round's merge was; a number that does not exist is ``None``.

    Attributes:
        aggregation_error: ``‖applied − P*‖_F / ‖P*‖_F`` over all adapted modules, with
            ``P* = Σ p_k s_k B_k A_k`` and p_k ∝ rows, whatever weights the rule uses.
        truncation_error: The same distance from what was applied to what a receiver of each rank
            holds, before rounding, by the rank that is served; 0 where receivers hold all of it.
        compression_error: Share of a norm that sparsity left behind, ``{"up", "down"}``, or that
            was cut from the exact mean to bound the server's memory, ``{"stack"}``.
        effective_rank: ``exp(entropy of σ²)`` of all that was gained since the checkpoint,
            averaged over modules.
        step_loss: Share ρ of a graph step that receivers of each rank had to cut, by rank; at 1
            the graph did nothing.
        eta: Share of the step over the graph that each cluster took, by cluster.
        eta_loss: Mean loss on held-back rows, by cluster, then by candidate η; the smallest was
            chosen. Rows that no client trains on.
        shares: How much of each client's update a robust rule let in, by partition: 0 is left out,
            1 is whole.
        epsilon: Privacy spent so far, by neighbouring relation, where noise was added.
    """

    aggregation_error: float | None = None
    truncation_error: Mapping[str, float | None] | None = None
    compression_error: Mapping[str, float | None] | None = None
    effective_rank: float | None = None
    step_loss: Mapping[str, float | None] | None = None
    eta: Mapping[str, float | None] | None = None
    eta_loss: Mapping[str, Mapping[str, float | None]] | None = None
    shares: Mapping[str, float | None] | None = None
    epsilon: Mapping[str, float | None] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; what is not finite is ``None``."""

        def plain(value: float | None) -> float | None:
            return None if value is None or not math.isfinite(value) else float(value)

        def each(values: Mapping[str, float | None] | None) -> dict[str, float | None] | None:
            return None if values is None else {key: plain(v) for key, v in values.items()}

        return {
            "aggregation_error": plain(self.aggregation_error),
            "truncation_error": each(self.truncation_error),
            "compression_error": each(self.compression_error),
            "effective_rank": plain(self.effective_rank),
            "step_loss": each(self.step_loss),
            "eta": each(self.eta),
            "eta_loss": None
            if self.eta_loss is None
            else {cluster: each(losses) for cluster, losses in self.eta_loss.items()},
            "shares": each(self.shares),
            "epsilon": each(self.epsilon),
        }


def compact_ranks(ranks: Mapping[str, int]) -> str | None:
    """Return ranks by module as ``"8"`` when uniform, else compact JSON; no module gives ``None``.

    >>> compact_ranks({"q": 8, "v": 8}), compact_ranks({"v": 4, "q": 8}), compact_ranks({})
    ('8', '{"q":8,"v":4}', None)
    """
    if not ranks:
        return None
    if len(set(ranks.values())) == 1:
        return str(next(iter(ranks.values())))
    return json.dumps(dict(sorted(ranks.items())), separators=(",", ":"))


@dataclass(frozen=True)
class Bytes:
    """Measured bytes by direction and kind; they add up with ``+`` and ``Bytes()`` is nothing.

    ``up`` and ``down`` are sums of their kinds, so kinds always sum to ``up + down``.

    Attributes:
        by_kind_up: Bytes from clients to the server by kind; kinds left out are 0.
        by_kind_down: Bytes from the server to clients by kind.
    """

    by_kind_up: Mapping[str, int] = field(default_factory=dict)
    by_kind_down: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("by_kind_up", "by_kind_down"):
            given = getattr(self, name)
            if unknown := sorted(set(given) - set(KINDS)):
                raise ValueError(f"{name}: unknown kind '{unknown[0]}'; known: {', '.join(KINDS)}")
            if any(int(n) != n or n < 0 for n in given.values()):
                raise ValueError(f"{name}: bytes are whole and not negative, got {dict(given)}")
            object.__setattr__(self, name, {kind: int(given.get(kind, 0)) for kind in KINDS})

    @property
    def up(self) -> int:
        """Bytes from clients to the server."""
        return sum(self.by_kind_up.values())

    @property
    def down(self) -> int:
        """Bytes from the server to clients."""
        return sum(self.by_kind_down.values())

    @property
    def by_kind(self) -> dict[str, int]:
        """Both directions together, by kind."""
        return {kind: self.by_kind_up[kind] + self.by_kind_down[kind] for kind in KINDS}

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(
            {kind: self.by_kind_up[kind] + other.by_kind_up[kind] for kind in KINDS},
            {kind: self.by_kind_down[kind] + other.by_kind_down[kind] for kind in KINDS},
        )
