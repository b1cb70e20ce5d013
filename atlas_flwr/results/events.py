"""What a run tells while it goes on: one JSON object a line in ``events.jsonl``.

======  =====================================================================================
event   fields
======  =====================================================================================
start   experiment, strategy, model, engine, rounds, clients (a number), tasks (names), and
        ``resumed``: the accuracies of the rounds that had ended before
phase   round, phase, clients (how many are asked)
arrived done, total: replies that wait for the others, to be judged together
client  round, phase, partition, done, total
round   the round's record (`RoundRecord.to_dict`)
note    partition (null for the server), text
final   ``summary.json``'s ``final``: accuracy, loss, worst_client_accuracy, by_task, …
stop    text, one line: stopped on purpose, to be resumed
error   text, one line
======  =====================================================================================
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from atlas_flwr.errors import ResultError

EVENT_FIELDS: Mapping[str, tuple[str, ...]] = {
    "start": ("experiment", "strategy", "model", "engine", "rounds", "clients", "tasks"),
    "phase": ("round", "phase", "clients"),
    "arrived": ("done", "total"),
    "client": ("round", "phase", "partition", "done", "total"),
    "round": ("round", "accuracy", "loss", "time_seconds", "communication_mb"),
    "note": ("partition", "text"),
    "final": ("accuracy", "loss", "worst_client_accuracy", "by_task"),
    "stop": ("text",),
    "error": ("text",),
}


def check_event(event: Mapping[str, Any]) -> None:
    """Check that an event has a known name and its fields.

    Raises:
        ValueError: Names what is unknown or missing.
    """
    name = event.get("event")
    if not isinstance(name, str) or name not in EVENT_FIELDS:
        raise ValueError(f"event '{name}' is none of {', '.join(EVENT_FIELDS)}")
    missing = [key for key in EVENT_FIELDS[name] if key not in event]
    if missing:
        raise ValueError(f"event '{name}' lacks {', '.join(missing)}")


def append_event(path: Path, event: Mapping[str, Any]) -> None:
    """Append one event as a line; lines of several processes never mix.

    Raises:
        ValueError: The event is unknown, lacks a field or holds a number that is not finite.
    """
    check_event(event)
    line = json.dumps(dict(event), allow_nan=False, ensure_ascii=False) + "\n"
    # One write to a file opened for appending is what keeps lines whole.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def cut_events(path: Path) -> int:
    """Drop a last line without its end, which a full disk or a dead machine leaves behind.

    Called before a session adds its first line, which would else stand behind half a line and
    could not be read. Returns the bytes that are left.
    """
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        end = file.read().rfind(b"\n") + 1
        file.truncate(end)
    return end


def follow_events(
    path: Path, stop: Callable[[], bool], interval: float = 0.1, position: int = 0
) -> Iterator[dict[str, Any]]:
    """Yield events as they are appended, until ``stop()`` is true and the file is read out.

    The file may not exist yet. A last line without its end is left for the next look.

    Args:
        path: ``events.jsonl``.
        stop: Whether nothing more will be written; asked before each look.
        interval: Seconds between looks.
        position: Bytes that have been read before.

    Raises:
        ResultError: A whole line is not an event.
    """
    while True:
        last = stop()
        if path.exists():
            with path.open("rb") as file:
                file.seek(position)
                found = file.read()
            whole = found[: found.rfind(b"\n") + 1]
            position += len(whole)
            for line in whole.splitlines():
                yield _parsed(path, line)
        if last:
            return
        time.sleep(interval)


def _parsed(path: Path, line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
        check_event(event)
    except (ValueError, AttributeError) as error:
        raise ResultError(f"{path}: a line is not an event ({error})") from error
    return dict(event)
