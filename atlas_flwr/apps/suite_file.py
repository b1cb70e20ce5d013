"""Which suite a command line names, and where it is written; loads in no time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import atlas_flwr
from atlas_flwr.config.suite_cells import Suite, load_suite
from atlas_flwr.errors import ConfigError, did_you_mean


def shipped_suites() -> dict[str, Path]:
    """Return the suite files that come with the package, by name: ``suite_*.toml``."""
    # Not by import: a folder of that name in the current one would be found first.
    folder = Path(str(atlas_flwr.__file__)).resolve().parent.parent / "experiments"
    return {path.stem: path for path in sorted(folder.glob("suite_*.toml"))}


def suite_file(given: Path) -> Path:
    """Return the suite file a command line names: a path, or the name of a shipped one.

    Raises:
        ConfigError: Neither a file nor a shipped name.
    """
    if given.is_file():
        return given
    shipped = shipped_suites()
    if given.name == str(given) and given.stem in shipped and given.suffix in ("", ".toml"):
        return shipped[given.stem]
    near = did_you_mean(str(given), shipped)
    raise ConfigError(f"{given}: no such file{near}; shipped suites: {', '.join(shipped)}")


def load(
    given: Path, *, seeds: str | None, only: Sequence[str], items: Sequence[str], tuned: bool
) -> Suite:
    """Return the checked suite behind a command's arguments.

    Args:
        given: The file, or a shipped suite's name.
        seeds: Instead of the file's: numbers with commas between them.
        only: Labels to run.
        items: ``a.b=value`` overrides.
        tuned: False leaves ``[tune]`` out.

    Raises:
        ConfigError: The file or an argument is wrong.
    """
    path = suite_file(given)
    return load_suite(path, seeds=_seeds(seeds), only=only, items=items, tuned=tuned)


def suite_folder(suite: Suite, out: Path | None) -> Path:
    """Return where a suite is written, absolute: ``--out``, the file's, or ``runs/<name>``.

    Raises:
        ConfigError: The path names a home that nobody has.
    """
    chosen = out or Path(suite.file.out or f"runs/{suite.file.name}")
    try:
        return chosen.expanduser().resolve()
    except RuntimeError as error:
        raise ConfigError(f"out: '{chosen}': {error}") from error


def _seeds(text: str | None) -> tuple[int, ...]:
    """Read ``42,43``."""
    if text is None:
        return ()
    try:
        seeds = tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--seeds: '{text}': expected whole numbers, e.g. 42,43") from error
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: '{text}': a seed is named twice; each once")
    return seeds
