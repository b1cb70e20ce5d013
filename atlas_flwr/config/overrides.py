"""Overrides of an experiment's keys: dotted, as text, and every combination of a grid's values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted keys: ``"a.b" = 1`` and ``a = { b = 1 }`` mean the same.

    >>> flatten({"run.rounds": 3, "train": {"batch-size": 8}})
    {'run.rounds': 3, 'train.batch-size': 8}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[spelled(f"{prefix}{key}")] = value
    return flat


def spelled(key: str) -> str:
    """Return a dotted key with section and key as TOML has them; what follows is somebody's own.

    >>> spelled("train.learning_rate"), spelled("lora.rank_pattern.q_lin")
    ('train.learning-rate', 'lora.rank-pattern.q_lin')
    """
    section, first, rest = (*key.split(".", 2), "", "")[:3]
    steps = [section, first.replace("_", "-"), rest]
    return ".".join(step for step in steps if step)


def override(item: tuple[str, Any]) -> str:
    """Return a key and its value as the ``a.b=value`` that ``--set`` takes.

    >>> override(("lora.rank", [2, 4])), override(("data.root", "a b"))
    ('lora.rank=[2, 4]', 'data.root="a b"')
    """
    return f"{item[0]}={_inline(item[1])}"


def _inline(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, Mapping):
        pairs = (f"{_inline(str(key))} = {_inline(inner)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return tomli_w.dumps({"value": value}).partition(" = ")[2].strip()


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of a grid's values; none of an empty grid.

    >>> combinations({"a": [1, 2], "b": [3]})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    if not grid:
        return []
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def slug(values: Mapping[str, Any]) -> str:
    """Return tuned values as the name of a folder.

    >>> slug({"train.learning-rate": 0.001, "lora.rank": [2, 4]})
    'learning-rate=0.001,rank=2,4'
    """
    text = ",".join(f"{key.rpartition('.')[2]}={_inline(v)}" for key, v in values.items())
    return re.sub(r"[^A-Za-z0-9.,=_-]", "", text)
