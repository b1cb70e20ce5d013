"""Keep the log of a failed run, and find in it the one line the user needs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from atlas_flwr.engine.launch_area import Area

LOG_NAME = "engine.log"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RAY_PREFIX = re.compile(r"^\([\w.]+ pid=\d+[^)]*\) ?")
_ERROR_LINE = re.compile(r"^(?P<kind>[A-Za-z_][\w.]*)(?::(?P<text>.*))?$")
_TRACEBACK = "Traceback (most recent call last):"
# What Flower and Ray raise around the error that matters.
_WRAPPERS = ("An error was encountered. Ending simulation.",)


def failure_line(log: str) -> str:
    r"""Return the last error that a traceback in `log` ends with, as `Name: message`.

    The ServerApp's error goes before one that Ray relays from a worker. Module paths are dropped
    from the name, and Flower's own wrappers are passed over.
    Returns an empty string when the log holds no traceback.

    >>> failure_line("Traceback (most recent call last):\n  File ...\na.b.ConfigError: no 'x'\n")
    "ConfigError: no 'x'"
    """
    server, worker = "", ""
    inside = False
    for coloured in log.splitlines():
        raw = _COLOUR.sub("", coloured)
        line = _RAY_PREFIX.sub("", raw)
        if line.strip() == _TRACEBACK:
            inside = True
        elif inside and line.strip() and not line.startswith((" ", "\t")):
            inside = False
            if found := _named(line.rstrip()):
                server, worker = (found, worker) if line == raw else (server, found)
    return server or worker


def _named(line: str) -> str:
    """Return a traceback's last line without its module path; empty for a wrapper's."""
    match = _ERROR_LINE.match(line)
    text = (match["text"] or "").strip() if match else ""
    if match is None or text in _WRAPPERS:
        return ""
    name = match["kind"].rsplit(".", 1)[-1]
    return f"{name}: {text}" if text else name


def keep_log(area: Area, out: Path, run_log: str) -> Path:
    """Write what the daemon, the run and Ray printed into `<out>/engine.log` and return its path.

    Args:
        area: The run's folders.
        out: The run directory; made if it is not there.
        run_log: What the ServerApp and the clients printed, as Flower kept it.
    """
    out.mkdir(parents=True, exist_ok=True)
    kept = out / LOG_NAME
    with kept.open("w", encoding="utf-8") as file:
        for title, text in (
            ("the run", run_log),
            ("SuperLink", _read(area.log)),
            *((f"SuperNode: {path.stem}", _read(path)) for path in _node_logs(area)),
            *((f"Ray: {path.name}", _read(path)) for path in _ray_errors(area)),
        ):
            if text.strip():
                file.write(f"===== {title}\n{_COLOUR.sub('', text).rstrip()}\n")
    return kept


def _node_logs(area: Area) -> list[Path]:
    """Return what each SuperNode of a deployment printed."""
    return sorted(area.root.glob("node-*.log"))


def _ray_errors(area: Area) -> list[Path]:
    """Return the error streams of Ray's own processes (workers' are in the run's log already)."""
    logs = area.root.glob("ray/session_2*/logs/*.err")
    return sorted(path for path in logs if not path.name.startswith("worker-"))


def _read(path: Path) -> str:
    """Return a log's text, or nothing when it was never begun."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
