"""Frozen values to a JSON tree beside named tensors, and back: nothing is pickled.

Dictionaries keep their order and their keys' types, tuples stay tuples, floats keep every bit. A
tensor that several values share is stored once. Tensors come back in C order, so whoever goes on
from a decoded value computes the same bits whether it was read from a file or not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from atlas_flwr.types import Array


def encode(value: Any) -> tuple[Any, dict[str, Array]]:
    """Return a value as a JSON tree, and the tensors it names.

    Tensors are named by their place in the value, ``bodies/global/adapter/q/a``.

    Raises:
        TypeError: The value holds something that is no dataclass, collection, number, text or
            array.
    """
    packer = _Packer()
    return packer.tree(value, ""), packer.tensors


def decode(tree: Any, tensors: Mapping[str, Array], types: Iterable[type]) -> Any:
    """Return the value behind a tree and its tensors.

    Args:
        tree: What ``encode`` returned, or the same read back from JSON.
        tensors: The tensors by name.
        types: The dataclasses the value is made of. A field that the tree lacks has its default.

    Raises:
        ValueError: The tree is not ``encode``'s, or names a class, field or tensor that is
            unknown.
    """
    return _value(tree, tensors, {each.__name__: each for each in types})


class _Packer:
    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self._names: dict[int, str] = {}
        self._alive: list[Array] = []  # an id is an array's own only while the array lives

    def tree(self, value: Any, place: str) -> Any:
        match value:
            case np.ndarray():
                told: Any = {"tensor": self._tensor(value, place)}
            case float():
                told = float(value) if math.isfinite(value) else {"float": repr(float(value))}
            case bool() | int() | str() | None:
                told = value
            case Mapping():
                items = [[key, self.tree(v, f"{place}/{key}")] for key, v in value.items()]
                told = {"map": items}
            case list() | tuple():
                kind = "list" if isinstance(value, list) else "tuple"
                told = {kind: [self.tree(v, f"{place}/{i}") for i, v in enumerate(value)]}
            case frozenset():
                told = {"set": sorted(value)}
            case _ if is_dataclass(value) and not isinstance(value, type):
                own = {f.name: getattr(value, f.name) for f in fields(value)}
                inner = {name: self.tree(v, f"{place}/{name}") for name, v in own.items()}
                told = {"of": type(value).__name__, "fields": inner}
            case _:
                raise TypeError(f"{place}: a {type(value).__name__} can't be stored")
        return told

    def _tensor(self, array: Array, place: str) -> str:
        if (known := self._names.get(id(array))) is not None:
            return known
        name = place.removeprefix("/")
        while name in self.tensors:  # keys may hold a slash, and 1 and "1" are two keys
            name += "~"
        self._names[id(array)] = name
        self.tensors[name] = np.asarray(array, order="C")
        self._alive.append(array)
        return name


def _value(tree: Any, tensors: Mapping[str, Array], types: Mapping[str, type]) -> Any:
    found: Any = tree
    match tree:
        case bool() | int() | float() | str() | None:
            pass
        case {"tensor": str(name)} if name in tensors:
            found = tensors[name]
        case {"float": str(text)}:
            found = float(text)
        case {"map": list(items)}:
            found = {key: _value(value, tensors, types) for key, value in items}
        case {"list": list(items)}:
            found = [_value(item, tensors, types) for item in items]
        case {"tuple": list(items)}:
            found = tuple(_value(item, tensors, types) for item in items)
        case {"set": list(items)}:
            found = frozenset(items)
        case {"of": str(name), "fields": dict(told)} if name in types:
            known = {field.name for field in fields(types[name])}
            if unknown := sorted(told.keys() - known):
                raise ValueError(f"{name} has no field '{unknown[0]}'")
            found = types[name](**{key: _value(v, tensors, types) for key, v in told.items()})
        case _:
            raise ValueError(f"can't be read: {str(tree)[:80]}")
    return found
