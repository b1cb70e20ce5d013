from __future__ import annotations

from collections import Counter

import torch
from transformers import DistilBertConfig, DistilBertModel

from benchmarks.aggregation import DISTILBERT

ADAPTED = ("q_lin", "v_lin", "out_lin", "lin1", "lin2")


def test_the_shapes_called_distilberts_are_transformers():
    with torch.device("meta"):
        model = DistilBertModel(DistilBertConfig())
    found = Counter(
        tuple(module.weight.shape)
        for name, module in model.named_modules()
        if name.endswith(ADAPTED)
    )
    assert found == DISTILBERT
    assert sum(found.values()) == 30
