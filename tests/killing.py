"""Runs that are killed: the command line in a process of its own, stopped at a named moment."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from atlas_flwr.apps.cli import main
from atlas_flwr.engine import files
from atlas_flwr.results.record import MEASURED_FIELDS
from runs import Run


def killed_at(point: str) -> Callable[[], None]:
    """Prepare a process to die when it passes a point."""

    def die(passed: str) -> None:
        if passed == point:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: files.WATCHERS.append(die)


def forked(words: Sequence[str | Path], prepare: Callable[[], None] = lambda: None) -> int:
    """Run ``atlas WORDS`` in a fork of this process, silently; return its pid."""
    if pid := os.fork():
        return pid
    code = 97  # neither an exit code of the command line nor a signal
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        sys.argv = ["atlas", *map(str, words)]
        prepare()
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a process; return its exit code, or the signal that killed it, negative."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kept(folder: Path) -> dict[str, Any]:
    """Everything a run leaves but for what clocks and memory counters say."""
    run = Run.read(folder)
    rows = run.clients.drop(columns=[c for c in MEASURED_FIELDS if c in run.clients])
    extra = [folder / name for name in ("clusters.json", "ranks.json")]
    return {
        "rounds": _bare(run.rounds),
        "summary": _bare(run.summary),
        "rows": rows.astype(object).where(pd.notna(rows), None).to_dict("records"),
        "tensors": run.tensors(),
        **{path.name: path.read_text() for path in extra if path.exists()},
    }


def _bare(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {k: _bare(v) for k, v in tree.items() if k not in MEASURED_FIELDS}
    return [_bare(each) for each in tree] if isinstance(tree, list) else tree


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, to show that nothing was touched."""
    files_ = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files_}
