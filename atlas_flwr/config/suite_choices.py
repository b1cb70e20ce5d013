"""Values that an earlier suite has chosen, from its ``tuned.json``, in place of tuning again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from atlas_flwr.config.suite_cells import Suite
from atlas_flwr.errors import ConfigError


def with_choices(suite: Suite, path: Path) -> Suite:
    """Return the suite with what a ``tuned.json`` says of its pairs; the other pairs are tuned.

    Args:
        suite: The suite.
        path: The file, of this suite or of one with the same grids.

    Raises:
        ConfigError: The suite tunes nothing, the file can't be read or is no ``tuned.json``, says
            nothing of this suite's pairs, or a choice is not in the suite's grid.
    """
    if suite.file.tune is None or not suite.tuned:
        raise ConfigError("--choices: nothing is tuned; remove it, or --no-tune")
    told, known = _read(path), {}
    for setting, entry in suite.pairs():
        grid = suite.grid(entry)
        found = told.get(f"{setting.name}/{entry.label}")
        if not grid or found is None or found["chosen"] is None:
            continue
        chosen = found["chosen"]
        if chosen.keys() != grid.keys() or any(chosen[key] not in grid[key] for key in grid):
            raise ConfigError(
                f"--choices: {path}: {setting.name}/{entry.label}: {chosen} is not in the grid of "
                "[tune]; remove it from the file, to tune it again"
            )
        known[setting.name, entry.label] = found
    if not known:
        raise ConfigError(
            f"--choices: {path}: has no choice for this suite; give the tuned.json of one like it"
        )
    return replace(suite, known=known)


def _read(path: Path) -> dict[str, Mapping[str, Any]]:
    """Return what a ``tuned.json`` says, by setting and label."""
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"))["pairs"]
        for pair in pairs.values():
            chosen, scores = pair["chosen"], pair["scores"]
            if not isinstance(scores, list) or not isinstance(chosen, dict | None):
                raise TypeError(f"chosen = {chosen!r}")
    except OSError as error:
        why = error.strerror or error
        raise ConfigError(f"--choices: {path}: can't be read ({why})") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"--choices: {path}: is no tuned.json of a suite ({error}); name another"
        ) from error
    return dict(pairs)
