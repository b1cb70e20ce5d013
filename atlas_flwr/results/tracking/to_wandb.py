"""Weights & Biases, offline unless ``WANDB_MODE`` says otherwise; ``wandb sync`` sends it later."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Mapping
from typing import Any

from atlas_flwr.results.tracking.card import Card


class WeightsAndBiases:
    """One W&B run, with the same id in every session."""

    def start(self, card: Card) -> int:
        """Begin; offline, one file is written anew, since no line of it can be taken back."""
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        if mode not in _MODES:
            raise ValueError(f"WANDB_MODE: '{mode}' is none of {', '.join(_MODES)}")
        # Without a network W&B's own 90 s would keep a run from ending.
        os.environ.setdefault("WANDB_INIT_TIMEOUT", "30")
        own = {f"WANDB_{name}_DIR": str(card.folder / f".{name.lower()}") for name in _PLACES}
        os.environ.update(own | {"WANDB_ERROR_REPORTING": "false"})
        import wandb  # noqa: PLC0415

        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,
            x_disable_meta=True,  # it holds the names of machine and user
        )
        identity = _identity(card)
        if mode == "offline":
            for old in (card.folder / "wandb").glob(f"offline-run-*-{identity}"):
                shutil.rmtree(old)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "atlas-flwr",
            group=card.experiment,
            name=card.run,
            id=identity,
            resume="allow",
            mode=mode,
            dir=str(card.folder),
            config=dict(card.config),
            settings=settings,
        )
        # Online, what the server has stays: it takes no step twice.
        return 0 if mode == "offline" else max(self._run.step - 1, 0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send one row; at its end, the final numbers join the last one."""
        self._run.log(dict(metrics), step=step)

    def end(self, status: str) -> None:
        """Finish the run; one that can go on counts as preempted."""
        self._run.summary["status"] = status
        self._run.finish(exit_code=0 if status in ("completed", "stopped") else 1)


_MODES = ("offline", "online", "shared", "disabled")
_PLACES = ("CONFIG", "CACHE", "DATA", "ARTIFACT")


def _identity(card: Card) -> str:
    path = card.folder / "id"
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:12], encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()
