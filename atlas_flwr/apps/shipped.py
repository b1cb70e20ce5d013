"""The experiment and suite files that come with the package; loads in no time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import atlas_flwr

SUITE = "suite_"


def shipped_experiments() -> dict[str, Path]:
    """Return the experiment files that come with the package, by name."""
    return {name: path for name, path in _files().items() if not name.startswith(SUITE)}


def shipped_suites() -> dict[str, Path]:
    """Return the suite files that come with the package, by name: ``suite_*.toml``."""
    return {name: path for name, path in _files().items() if name.startswith(SUITE)}


def named_file(given: Path, shipped: Mapping[str, Path]) -> Path | None:
    """Return the file a command line names: a path, or a shipped one's name; None: neither."""
    if given.is_file():
        return given
    if given.name == str(given) and given.suffix in ("", ".toml"):
        return shipped.get(given.stem)
    return None


def _files() -> dict[str, Path]:
    # Not by import: a folder of that name in the current one would be found first.
    folder = Path(str(atlas_flwr.__file__)).resolve().parent.parent / "experiments"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}
