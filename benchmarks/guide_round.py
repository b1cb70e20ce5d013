"""(c) What does a round cost against one with fixed padding and a new model for each client?"""

from __future__ import annotations

import tempfile
from dataclasses import replace

from benchmarks.federated_round import inline_pairs
from benchmarks.measure import Ratio
from benchmarks.rivals import GUIDE_LENGTH, GuideLoop
from benchmarks.sizes import Size, experiment

# What fixed padding wastes depends on the texts: SST-2's are short, the packaged ones are not.
TARGETS = {"sst2": 5.0}


def guide_round(size: Size, length: int = GUIDE_LENGTH) -> Ratio:
    """Measure rounds of the inline engine against the notebook style, one thread each."""
    size = replace(size, repetitions=min(size.repetitions, 3))
    with tempfile.TemporaryDirectory(prefix="atlas-bench-") as folder:
        config = experiment(size, f"{folder}/run")
        pairs = inline_pairs(config, GuideLoop(config, length).round)
    return Ratio(
        f"round padded to {length}, new models",
        "inline round",
        tuple((theirs, ours) for ours, theirs in pairs),
        ">=",
        TARGETS.get(size.task, 2.0),
        {"processes": 1, "threads": 1, "batch": config.train.batch_size},
    )
