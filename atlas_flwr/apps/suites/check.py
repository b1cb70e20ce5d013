"""What a suite would run: checked before anything runs, and shown by ``--check``."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rich.table import Table

from atlas_flwr.apps.catalogue import plain_table
from atlas_flwr.apps.prepare import check_names
from atlas_flwr.apps.suites.folders import is_finished, status
from atlas_flwr.config.suite_cells import Cell, Suite
from atlas_flwr.data.load import load_rows
from atlas_flwr.data.tasks import TaskSpec
from atlas_flwr.errors import ConfigError, DataError
from clients.site import task_specs


def check_suite(suite: Suite, out: Path) -> list[Cell]:
    """Check every run's config and every folder; return the runs of tuning, then the others.

    Raises:
        ConfigError: A run's config is wrong.
        DataError: Rows that lie on this machine are missing or wrong.
        ResultError: A folder holds a finished run of another config.
    """
    tuning, cells = suite.tuning(), suite.cells()
    for cell in (*tuning, *cells):
        try:
            check_names(cell.config)
            _check_mirror(cell)
        except ConfigError as error:
            raise ConfigError(f"{cell.setting}/{cell.label}: {error}") from error
    _check_rows(cells)
    # The values of tuned keys are not known yet.
    tuned = {key for cell in tuning for key in cell.values}
    for cell in (*tuning, *cells):
        is_finished(out / cell.folder, cell.config, () if cell.tuning else tuned)
    return [*tuning, *cells]


def _check_rows(cells: Sequence[Cell]) -> None:
    """Read each task once, as the first run that has it will; the hub is not asked.

    Else every run would fail of it, one after the other.
    """
    seen: set[tuple[TaskSpec, str | None]] = set()
    for cell in cells:
        root = cell.config.data.root
        for spec in task_specs(cell.config).values():
            here = spec.package is not None or spec.path is not None or root is not None
            if not here or (spec, root) in seen:
                continue
            seen.add((spec, root))
            try:
                load_rows(spec, root, cell.config.run.seed)
            except DataError as error:
                raise DataError(f"{cell.setting}/{cell.label}: {error}") from error


def _check_mirror(cell: Cell) -> None:
    """Refuse a mirror: runs of one seed have one name, and would share their copy's folder."""
    if cell.config.run.mirror is not None:
        raise ConfigError("run.mirror: a suite has none; name a folder of the drive with --out")


def describe_suite(suite: Suite, out: Path) -> Table:
    """Return what a suite would run, and how much of it is finished.

    Raises:
        UserError: A run's config is wrong, or a folder holds another run.
    """
    table = plain_table(f"{suite.file.name} in {out}", "setting", "label", "strategy", "runs")
    table.add_column("finished", justify="right")
    cells = check_suite(suite, out)
    for (setting, label, tuning), group in groupby(
        cells, key=lambda cell: (cell.setting, cell.label, cell.tuning)
    ):
        runs = list(group)
        told = f"{len(runs)} to tune" if tuning else _seeds([r.config.run.seed for r in runs])
        done = sum(status(out / run.folder) == "completed" for run in runs)
        strategy = runs[0].config.strategy.name
        table.add_row(setting, label, strategy, told, f"{done}/{len(runs)}")
    return table


def _seeds(seeds: Sequence[int]) -> str:
    """Return seeds in few words.

    >>> _seeds([42]), _seeds([42, 43, 44]), _seeds([1, 3])
    ('seed 42', 'seeds 42–44', 'seeds 1, 3')
    """
    first, last = seeds[0], seeds[-1]
    if len(seeds) > 2 and list(seeds) == list(range(first, last + 1)):
        return f"seeds {first}–{last}"
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
