"""One run of a suite in a process of its own; started by `suite_crew`, not by people."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from atlas_flwr.engine.launch_signals import who_stopped
from atlas_flwr.engine.orphan import PARENT, watch_parent


def main() -> None:
    """Run what the one argument tells of, and write how it ended.

    The argument is a JSON object: ``config`` (the experiment's file), ``ended`` (the file to
    write), ``title`` and ``log`` (for traces), ``going_on`` (whether to go on with the run that
    lies there), ``argv`` (the suite's command, as typed).
    """
    watch_parent()
    # What this process starts watches this process.
    os.environ.pop(PARENT, None)
    told = json.loads(sys.argv[1])
    sys.argv = list(told["argv"])
    try:
        outcome: dict[str, Any] = {"error": _run(told), "stopped": False}
    except BaseException as error:
        outcome = {"error": who_stopped(error), "stopped": True}
        raise
    finally:
        _write(Path(told["ended"]), outcome)


def _run(told: dict[str, Any]) -> str | None:
    """Return the one line of the run's error, None where it completed."""
    from atlas_flwr.apps import guard  # noqa: F401, PLC0415 - checks
    from atlas_flwr.apps.resume import find_run  # noqa: PLC0415
    from atlas_flwr.apps.run import run_experiment  # noqa: PLC0415 - torch loads for seconds
    from atlas_flwr.apps.suites.crew import run_told  # noqa: PLC0415
    from atlas_flwr.config.load import load_config  # noqa: PLC0415

    config = load_config(Path(told["config"]))

    def run() -> None:
        going_on = find_run(Path(str(config.run.out))) if told["going_on"] else None
        run_experiment(config, lambda event: None, going_on)

    return run_told(run, told["title"], Path(told["log"]))


def _write(path: Path, outcome: dict[str, Any]) -> None:
    from atlas_flwr.results.writing import atomic_write  # noqa: PLC0415

    atomic_write(path, json.dumps(outcome) + "\n")


if __name__ == "__main__":
    main()
