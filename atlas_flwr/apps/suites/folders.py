"""What a suite finds on disk: finished runs of the same config, of another one, and broken ones."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from atlas_flwr.apps.prepare import resolve
from atlas_flwr.apps.resume import Resumable, find_run
from atlas_flwr.config.load import dump_config, parse_config
from atlas_flwr.config.overrides import flatten
from atlas_flwr.config.schema import Config
from atlas_flwr.config.suite_cells import Suite
from atlas_flwr.errors import ConfigError, ResultError
from atlas_flwr.results.store import read_run
from atlas_flwr.results.suites.table import Row, suite_row

# Where a run lies, when it stops for a while and how many clients run at a time changes none of
# its numbers.
NOT_COMPARED = ("run.out", "run.stop-after", "run.trackers", "engine.workers")


def status(folder: Path) -> str | None:
    """Return how the run in a folder ended; ``None`` where no summary says so."""
    try:
        return str(json.loads((folder / "summary.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def is_finished(folder: Path, config: Config, ignore: Collection[str] = ()) -> bool:
    """Tell whether a folder holds a completed run of a config.

    Args:
        folder: The run directory.
        config: The experiment; its run directory and number of workers are not compared.
        ignore: Dotted keys that are not compared either.

    Raises:
        ResultError: It holds a completed run of another config.
    """
    if status(folder) != "completed":
        return False
    found = difference(folder, config, ignore)
    if found:
        raise ResultError(
            f"{folder}: holds a finished run with another config ({found}); name another --out"
        )
    return True


def difference(folder: Path, config: Config, ignore: Collection[str] = ()) -> str | None:
    """Return the first key in which a run directory's config differs, with both values.

    Both are read by today's rules, so a key that is new since has its default in both.
    """
    try:
        text = (folder / "config.toml").read_text(encoding="utf-8")
        there = _resolved(parse_config(tomllib.loads(text)))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, ConfigError) as error:
        return f"config.toml: {error}"
    here = _resolved(config)
    for key in sorted(there.keys() | here.keys()):
        if key in NOT_COMPARED or key in ignore or there.get(key) == here.get(key):
            continue
        return f"{key}: {there.get(key, 'absent')} there, {here.get(key, 'absent')} here"
    return None


def _resolved(config: Config) -> dict[str, object]:
    return flatten(tomllib.loads(dump_config(resolve(config))))


def stopped_run(folder: Path, config: Config) -> Resumable | None:
    """Return where a killed or stopped run of a config stands; None where it can't go on.

    One that failed is run again from its beginning, and so is one without a whole commit.
    """
    if status(folder) not in (None, "stopped") or not (folder / "config.toml").exists():
        return None
    if difference(folder, config) is not None:
        return None
    try:
        found = find_run(folder)
    except ResultError:
        return None
    return found if found.commit else None


def set_aside(folder: Path) -> Path | None:
    """Rename the folder of a run that did not finish; return where it went, if there was one."""
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.failed-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def read_json(path: Path) -> dict[str, Any]:
    """Return a suite's own file, empty where it is not there yet.

    Raises:
        ResultError: It is not what a suite writes.
    """
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: can't be read ({error}); move it away") from error
    if not isinstance(told, dict):
        raise ResultError(f"{path}: is not a suite's; move it away")
    return told


def finished_rows(suite: Suite, out: Path) -> dict[Path, Row]:
    """Return a row for every completed run of the suite's pairs, also of seeds not asked for.

    Raises:
        ResultError: A completed run can't be read.
    """
    rows: dict[Path, Row] = {}
    for setting, entry in suite.pairs():
        for folder in (out / setting.name / entry.label).glob("seed-*"):
            if folder.name.removeprefix("seed-").isdigit() and status(folder) == "completed":
                path = folder.relative_to(out)
                rows[path] = row_of(out, path, setting.name, entry.label)
    return rows


def row_of(out: Path, path: Path, setting: str, label: str) -> Row:
    """Return the row of the completed run at ``out / path``."""
    return suite_row(read_run(out / path), setting, label, path.as_posix())


def in_order(suite: Suite, rows: dict[Path, Row]) -> list[Row]:
    """Return the rows in the suite's order: setting, entry, seed; seeds it does not name last."""
    pairs = [(setting.name, entry.label) for setting, entry in suite.pairs()]
    seeds = list(dict.fromkeys((*suite.file.seeds, *suite.seeds)))

    def place(row: Row) -> tuple[int, int, int]:
        seed = row["seed"]
        known = seeds.index(seed) if seed in seeds else len(seeds)
        return pairs.index((row["setting"], row["label"])), known, seed

    return sorted(rows.values(), key=place)
