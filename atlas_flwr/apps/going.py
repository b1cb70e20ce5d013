"""`atlas run` and `atlas resume`: a run begun or gone on with, and its results printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from atlas_flwr.apps.keeping import catch_up
from atlas_flwr.apps.prepare import resolve
from atlas_flwr.apps.resume import (
    check_engine,
    check_overrides,
    check_same,
    find_run,
    status_of,
    stored_config,
)
from atlas_flwr.apps.run import Launcher, run_experiment
from atlas_flwr.apps.server import disk_errors
from atlas_flwr.config.schema import Config
from atlas_flwr.results.console import Progress, print_results
from atlas_flwr.results.report import publish
from atlas_flwr.results.store import REPORT, read_run


def begin(console: Console, config: Config, deployed: Launcher | None = None) -> None:
    """Run an experiment, over a deployment if one is given, and print its results."""
    with Progress(console) as progress:
        folder = run_experiment(config, progress.handle, deployed=deployed)
    print_results(console, read_run(folder).summary, folder)


def go_on(
    console: Console,
    folder: Path,
    overrides: Sequence[str] = (),
    since: int | None = None,
    same_as: Config | None = None,
    deployed: Launcher | None = None,
) -> None:
    """Go on with a run and print its results; a finished one is said to be finished.

    Args:
        console: Where to print.
        folder: The run directory.
        overrides: ``a.b=value`` for keys that may differ on the way.
        since: The round to go on from; by default the last one committed.
        same_as: The experiment that the run must be of; what may differ is taken from it.
        deployed: Runs it on a deployment instead of the engine it names.

    Raises:
        ResultError: The run can't go on; nothing was written.
    """
    check_overrides(overrides)
    if status_of(folder) == "completed" and since is None:
        if same_as is not None:
            check_same(resolve(same_as), stored_config(folder))
        mend(folder)
        found = read_run(folder)
        console.print(f"{folder} is finished: nothing to go on with", soft_wrap=True)
        print_results(console, found.summary, folder)
        return
    check_engine(folder, deployed is not None)
    stopped = find_run(folder, overrides, since)
    if same_as is not None:
        check_same(resolve(same_as), stopped.config)
        stopped = replace(stopped, config=same_as)
    with Progress(console) as progress:
        run_experiment(stopped.config, progress.handle, stopped, deployed)
    print_results(console, read_run(folder).summary, folder)


def mend(folder: Path) -> None:
    """Finish what a kill cut short after a run's end: its page, its mirror."""
    if not (folder / REPORT).exists():
        publish(folder)
    with disk_errors(folder):
        catch_up(stored_config(folder), folder)
