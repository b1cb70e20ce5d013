"""What rounds have merged into the frozen weights, kept as factors (FLoRA, FedEx-LoRA)."""

from __future__ import annotations

from atlas_flwr.aggregation.products import compress, stack
from atlas_flwr.types import Adapter, LoraFactors


def accumulate(before: Adapter, change: Adapter) -> Adapter:
    """Return the sum of two low-rank changes as factors of scale 1.

    Ranks add up; a sum that outgrows ``min(d_out, d_in)`` is cut to its numerical rank, which
    changes nothing but rounding. A module that one side lacks counts as zero there.
    """
    modules = dict.fromkeys([*before, *change])
    return {module: _plus(before.get(module), change.get(module)) for module in modules}


def _plus(before: LoraFactors | None, change: LoraFactors | None) -> LoraFactors:
    terms = [(1.0, factors) for factors in (before, change) if factors is not None]
    total = stack(terms)
    if total.rank > min(total.b.shape[0], total.a.shape[1]):
        total, _ = compress(total)
    return total


def as_one(adapter: Adapter, delta: Adapter) -> Adapter:
    """Return an adapter on top of a delta as one adapter of its exact rank, scale 1.

    Where there is no delta the adapter comes back as it is.
    """
    if not delta:
        return adapter
    return {module: compress(f)[0] for module, f in accumulate(delta, adapter).items()}
