"""One tracker's process: commands come in as JSON lines, and its end is the end of its input.

A process of its own keeps what a tracker prints, warns of, starts and sets away from the run.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from atlas_flwr.results.tracking.card import Card

if TYPE_CHECKING:
    from atlas_flwr.results.tracking.card import Tracker

CLASSES = {
    "tensorboard": "TensorBoard",
    "wandb": "WeightsAndBiases",
    "mlflow": "MLflow",
    "trackio": "Trackio",
}


def tracker_of(name: str) -> Tracker:
    """Return a tracker by its name; its package is imported when it starts."""
    module = import_module(f"atlas_flwr.results.tracking.to_{name}")
    made: Tracker = getattr(module, CLASSES[name])()
    return made


def serve(tracker: Tracker, lines: TextIO) -> None:
    """Do as the lines say: ``start`` once, ``log`` often, ``end``.

    A run that is killed ends its tracker too: the input ends without a word.
    """
    held, status, started = 0, "killed", False
    for line in lines:
        told: dict[str, Any] = json.loads(line)
        if "start" in told:
            card = told["start"]
            held = tracker.start(Card(**(card | {"folder": Path(card["folder"])})))
            started = True
        elif "log" in told:
            step, metrics, again = told["log"], told["metrics"], told["again"]
            # A round that went before is told again: only who lacks it takes it in.
            if not again or step > held:
                tracker.log(step, metrics)
        elif "end" in told:
            status = told["end"]
    if started:
        tracker.end(status)


if __name__ == "__main__":
    os.environ.pop("PYTHONWARNINGS", None)  # the run's own rules are not this package's
    serve(tracker_of(sys.argv[1]), sys.stdin)
