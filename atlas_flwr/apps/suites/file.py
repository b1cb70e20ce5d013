"""Which suite a command line names, and where it is written; loads in no time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from atlas_flwr.apps.shipped import named_file, shipped_experiments, shipped_suites
from atlas_flwr.config.suite_cells import Suite, load_suite
from atlas_flwr.config.suite_choices import with_choices
from atlas_flwr.errors import ConfigError, did_you_mean

MAX_SEED = 2**32
MOST_SEEDS = 1000  # a range of more is a slip of the hand


def suite_file(given: Path) -> Path:
    """Return the suite file a command line names: a path, or the name of a shipped one.

    Raises:
        ConfigError: Neither a file nor a shipped name.
    """
    shipped = shipped_suites()
    if found := named_file(given, shipped):
        return found
    if given.stem in shipped_experiments():
        raise ConfigError(f"{given}: is an experiment, not a suite: atlas run {given.stem}")
    near = did_you_mean(str(given), shipped)
    raise ConfigError(f"{given}: no such file{near}; shipped suites: {', '.join(shipped)}")


def load(
    given: Path,
    *,
    seeds: str | None = None,
    only: Sequence[str] = (),
    within: Sequence[str] = (),
    items: Sequence[str] = (),
    tuned: bool = True,
    choices: Path | None = None,
) -> Suite:
    """Return the checked suite behind a command's arguments.

    Args:
        given: The file, or a shipped suite's name.
        seeds: Instead of the file's: numbers and ranges with commas between them.
        only: Labels to run.
        within: Settings to run.
        items: ``a.b=value`` overrides.
        tuned: False leaves ``[tune]`` out.
        choices: A ``tuned.json`` whose pairs are not tuned again.

    Raises:
        ConfigError: The file or an argument is wrong.
    """
    path = suite_file(given)
    suite = load_suite(
        path,
        seeds=read_seeds(seeds) if seeds is not None else (),
        only=only,
        within=within,
        items=items,
        tuned=tuned,
    )
    return suite if choices is None else with_choices(suite, choices)


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


def read_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a list of numbers and ranges, both ends included.

    >>> read_seeds("42,43"), read_seeds("1..3,7")
    ((42, 43), (1, 2, 3, 7))

    Raises:
        ConfigError: A word is no seed or no range, or a seed is named twice.
    """
    seeds: list[int] = []
    for word in text.split(","):
        first, dots, last = (part.strip() for part in word.partition(".."))
        if not (first.isdecimal() and (last.isdecimal() or not dots)):
            raise ConfigError(f"--seeds: '{text}': expected numbers and ranges, e.g. 1..6 or 42,43")
        ends = int(first), int(last or first)
        if ends[1] < ends[0]:
            raise ConfigError(f"--seeds: '{word.strip()}': the range ends before it begins")
        if ends[1] >= MAX_SEED:
            raise ConfigError(f"--seeds: '{word.strip()}': a seed is below 2^32")
        if ends[1] - ends[0] >= MOST_SEEDS:
            raise ConfigError(f"--seeds: '{word.strip()}': more than {MOST_SEEDS} seeds")
        seeds += range(ends[0], ends[1] + 1)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"--seeds: '{text}': a seed is named twice; each once")
    return tuple(seeds)
