"""Strategies that other packages bring: entry points of one group, beside the table of our own.

A package with these lines in its ``pyproject.toml`` gives every process of its environment, and so
every engine, the strategy ``halfway``::

    [project.entry-points."atlas_flwr.strategies"]
    halfway = "halfway_atlas:Halfway"

Nothing that a stranger's package does stops a run that doesn't ask for it: what can't be taken is
refused under its own name, in one line.
"""

from __future__ import annotations

import re
from importlib.metadata import EntryPoint, entry_points

from atlas_flwr.results.provenance import STRATEGY_PLUGINS
from strategies.base import Method, Options

_NAME = re.compile(r"[a-z][a-z0-9_]*")  # it becomes a key, a file name and a word of commands


def add_to(table: dict[str, type[Method]]) -> dict[str, str]:
    """Put the strategies of installed packages into a table, by their entry points' names.

    Args:
        table: Our own by name; taken names are added.

    Returns:
        Why a name can't be used, in one line, by name: two packages have it (ours counts, and
        stays in the table), its module can't be imported, or what it names is no strategy.
    """
    offered: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=STRATEGY_PLUGINS):
        offered.setdefault(point.name, []).append(point)
    refused: dict[str, str] = {}
    for name, points in sorted(offered.items()):
        owners = [*(["atlas-flwr"] if name in table else []), *sorted(map(_owner, points))]
        if len(owners) > 1:
            refused[name] = (
                f"'{name}' is the name of a strategy in {' and in '.join(owners)}; "
                f"uninstall one of them, or rename its entry point"
            )
            continue
        found = _loaded(points[0])
        if isinstance(found, str):
            refused[name] = found
        else:
            table[name] = found
    return refused


def _loaded(point: EntryPoint) -> type[Method] | str:
    """Return the class behind an entry point, or in one line why there is none."""
    who = f"'{point.name}' of {_owner(point)} ({point.value})"
    if not _NAME.fullmatch(point.name):
        return f"{who} is no name of a strategy; take lower-case letters, digits and _"
    try:
        found = point.load()
    # A stranger's module may raise anything, or end the program as a script does.
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())[:200]
        return (
            f"{who} can't be loaded ({type(error).__name__}: {said}); mend the package "
            f'(python -c "import {point.module}" shows where), or uninstall it'
        )
    if not (isinstance(found, type) and issubclass(found, Method)):
        return f"{who} is no subclass of strategies.base.Method; mend the package"
    options: object = found.options_type
    if not (isinstance(options, type) and issubclass(options, Options)):
        return f"{who} has options_type {options!r}, no subclass of strategies.base.Options"
    return found


def _owner(point: EntryPoint) -> str:
    """Return the distribution that an entry point is from, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unnamed package"
