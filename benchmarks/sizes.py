"""How much is measured, and the experiments it is measured on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from atlas_flwr.config.load import parse_config
from atlas_flwr.config.schema import Config


@dataclass(frozen=True)
class Size:
    """What one run of the benchmarks does.

    Attributes:
        task: The task everything is measured on.
        root: ``data.root``; None for a packaged task.
        repetitions: Pairs that count; one more is the warm-up.
        clients: Clients of the federated rounds.
        rows: Training rows of a client there.
        message_rows: Training rows of the single message.
        max_length: Tokens kept of a row.
        model: The model.
        holdout: Share of the training rows to score instead of the validation rows.
    """

    task: str = "tweets"
    root: str | None = None
    repetitions: int = 5
    clients: int = 4
    rows: int = 48
    message_rows: int = 100
    max_length: int = 128
    model: str = "minilm"
    holdout: float = 0.003

    def to_dict(self) -> dict[str, Any]:
        """Return what was measured, without the folder it came from."""
        facts = asdict(self)
        facts["root"] = self.root is not None
        return facts


QUICK: dict[str, Any] = {
    "repetitions": 1,
    "clients": 2,
    "rows": 16,
    "message_rows": 16,
    "max_length": 32,
    "holdout": 0.002,
}


def experiment(size: Size, out: str, *, engine: str = "inline", workers: int = 1) -> Config:
    """Return the federated experiment of a size, one thread a client."""
    data: dict[str, Any] = {
        "tasks": [size.task],
        "samples-per-client": size.rows,
        "holdout": size.holdout,
    }
    if size.root is not None:
        data["root"] = size.root
    return parse_config(
        {
            "run": {
                "name": "bench",
                "rounds": size.repetitions + 1,
                "clients": size.clients,
                "out": out,
            },
            "model": {"name": size.model, "max-length": size.max_length},
            "data": data,
            "engine": {"kind": engine, "workers": workers, "threads": 1, "device": "cpu"},
        }
    )
