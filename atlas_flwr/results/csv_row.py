"""A run as the one row of ``summary.csv``. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def csv_row(summary: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``summary.csv``'s one row; an absent number is an empty field."""
    rounds = summary["round_results"]
    full = config.get("model", {}).get("adaptation") == "full"
    rank = device_ranks(config) or config.get("lora", {}).get("rank")
    ranks = rank if isinstance(rank, list) else [rank]
    tasks = config.get("data", {}).get("tasks") or sorted(summary["final"]["by_task"])
    return {
        "Experiment": summary["experiment"],
        "Task": "+".join(tasks),
        "Model": summary["model"],
        "LoRA": "full" if full or rank is None else "r=" + ",".join(map(str, ranks)),
        "Rounds": summary["rounds_completed"],
        "Final Accuracy": summary["final"]["accuracy"],
        "Final Loss": summary["final"]["loss"],
        "Time (min)": round(summary["seconds"] / 60, 3),
        "Avg Memory (MB)": _average(r["memory_mb"] for r in rounds),
        "Avg Comm (MB)": _average(r["communication_mb"] for r in rounds),
        **{key: summary[key] for key in ("strategy", "engine", "seed", "status")},
    }


def device_ranks(config: Mapping[str, Any]) -> list[str]:
    """Return the ranks of the device profiles as they are dealt; none without devices.

    A device without a rank of its own has ``budget``: its ranks are in ``ranks.json``.
    """
    named = {device["name"]: device.get("rank", "budget") for device in config.get("device", ())}
    return [str(named[profile]) for profile in config.get("devices", {}).get("profiles", ())]


def _average(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values there are."""
    there: Sequence[float] = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None
