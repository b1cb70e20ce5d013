"""The Colab guide's three snippets, as its reader copies them, and what makes their runs small."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ANALYZE = """
import json
import pandas as pd

# Load results
with open('results/exp1_standard_fl.json') as f:
    data = json.load(f)

# Extract metrics
rounds = [r['round'] for r in data['round_results']]
accuracy = [r['accuracy'] for r in data['round_results']]
loss = [r['loss'] for r in data['round_results']]

# Plot
import matplotlib.pyplot as plt
plt.plot(rounds, accuracy)
plt.xlabel('Round')
plt.ylabel('Accuracy')
plt.title('Training Progress')
plt.show()
"""

CUSTOM = """
from real_training import RealFederatedTrainer

trainer = RealFederatedTrainer(
    model_name="bert-base-uncased",
    task_name="mrpc",
    num_clients=10,
    local_epochs=2,
    batch_size=8,
    max_samples=500,
    device="cuda"
)

results = trainer.run_federated_training(
    num_rounds=10,
    clients_per_round=10,
    learning_rate=3e-5
)
"""

WITH_LORA = """
from real_training import LoRAFederatedTrainer

trainer = LoRAFederatedTrainer(
    model_name="roberta-base",
    task_name="sst2",
    num_clients=8,
    rank=16,  # Higher rank = more capacity
    batch_size=16,
    max_samples=400
)

results = trainer.run_federated_training(
    num_rounds=8,
    clients_per_round=8
)
"""


def atlas_set(model: str, tasks: Sequence[Mapping[str, Any]], *more: str) -> str:
    """Return ``ATLAS_SET`` of a small run: a model's folder and tasks of one's own."""
    written = ", ".join(
        "{" + ", ".join(f"{key} = {json.dumps(value)}" for key, value in task.items()) + "}"
        for task in tasks
    )
    items = (
        f"model.name={json.dumps(model)}",
        "model.max-length=16",
        f"data.tasks={json.dumps([task['name'] for task in tasks])}",
        f"task=[{written}]",
        "data.samples-per-client=24",
        "engine.kind=inline",
        "engine.device=cpu",
        "train.precision=fp32",  # whatever the processor is made for
        *more,
    )
    return ";".join(items)
