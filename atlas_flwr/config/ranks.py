"""Ranks by module: which ending of a module's name decides, as plain functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

from atlas_flwr.errors import ConfigError, did_you_mean

KEY = "lora.rank-pattern"


def flat_pattern(value: Any) -> Any:
    """Return nested tables as one table of dotted endings; anything else is left to pydantic.

    TOML reads ``attention.query = 4`` as tables and ``"attention.query" = 4`` as one key; both
    mean the same ending.

    Raises:
        PydanticCustomError: One ending stands there twice.

    >>> flat_pattern({"attention": {"query": 4}, "ffn.lin1": 2})
    {'attention.query': 4, 'ffn.lin1': 2}
    """
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        nested = flat_pattern(inner)
        below = {f"{key}.{k}": v for k, v in nested.items()} if isinstance(nested, dict) else {}
        for ending, rank in (below or {key: inner}).items():
            if ending in flat:
                message = f"'{ending}' stands there twice, quoted and as bare dots; keep one"
                raise PydanticCustomError("twice", "{message}", {"message": message})
            flat[ending] = rank
    return flat


def module_ranks(rank: int, pattern: Mapping[str, int], modules: Iterable[str]) -> dict[str, int]:
    """Return the rank of each module: the longest matching ending's, else ``rank``.

    An ending matches at a dot (``query`` matches ``layer.0.query``, not ``layer.0.subquery``), as
    in PEFT's ``rank_pattern`` but without its regular expressions.

    Args:
        rank: The client's base rank.
        pattern: Endings of module names and their ranks.
        modules: Full names of the adapted modules.

    Returns:
        A rank for each module, in the order given.

    Raises:
        ConfigError: An ending matches none of the modules.
    """
    names = list(modules)
    for ending in pattern:
        if not any(_ends(name, ending) for name in names):
            raise ConfigError(f"{KEY}: '{ending}' matches no adapted module{_hint(ending, names)}")
    ranks = {}
    for name in names:
        longest = max((e for e in pattern if _ends(name, e)), key=len, default=None)
        ranks[name] = rank if longest is None else pattern[longest]
    return ranks


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)


def _hint(ending: str, names: Collection[str]) -> str:
    """Return the nearest ending of as many steps, else the last steps there are."""
    steps = ending.count(".") + 1
    near = did_you_mean(ending, dict.fromkeys(".".join(n.split(".")[-steps:]) for n in names))
    last = sorted({name.rpartition(".")[2] for name in names})
    return near or f"; the adapted modules end in {', '.join(last)}"
