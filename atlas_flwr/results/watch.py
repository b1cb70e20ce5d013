"""How a run stands, read from its directory, its mirror or what a killed one left; no writing."""

from __future__ import annotations

import json
import re
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from atlas_flwr.errors import ResultError
from atlas_flwr.payload import printable

NOTES = 4
EXITS = {"completed": 0, "failed": 1, "stopped": 3}
# Folders of a run directory that hold no other run.
_INSIDE = {"adapters", "models", "checkpoints", "plots", "vault", "trackers"}
_ASIDE = re.compile(r"seed-\d+\.failed-\d+")  # what a suite put away to run it again
_DEEP = 4
# What is read of a round.
_OF_A_ROUND = (
    *("time_seconds", "accuracy", "worst_client_accuracy", "by_task", "memory_mb"),
    *("bytes_up", "bytes_down"),
)


@dataclass(frozen=True)
class Seen:
    """A run as its files tell it now; what they don't tell is empty.

    Attributes:
        folder: Where it lies.
        config: Its configuration.
        rounds: Records of the rounds that ended.
        status: ``completed``, ``stopped`` or ``failed``; None while it goes on, or was killed.
        why: What ended it, in one line.
        final: ``summary.json``'s ``final``.
        seconds: Wall time so far, as far as it is known.
        phase: What it does now: ``train``, ``evaluate``…, with ``done`` of ``total`` clients.
        idle: Seconds since the last event; None where events are not kept.
        sessions: How often it was begun or gone on with.
        notes: Its last notes.
        slowest: The last round's slowest client and its seconds, and the median client's seconds.
        left: Seconds until the last round has ended, from the rounds so far.
    """

    folder: Path
    config: Mapping[str, Any]
    rounds: Sequence[Mapping[str, Any]] = ()
    status: str | None = None
    why: str = ""
    final: Mapping[str, Any] = field(default_factory=dict)
    seconds: float | None = None
    phase: str = ""
    done: int = 0
    total: int = 0
    idle: float | None = None
    sessions: int = 1
    notes: tuple[str, ...] = ()
    slowest: tuple[int, float, float] | None = None
    left: float | None = None

    @property
    def planned(self) -> int:
        """How many rounds it has in all."""
        return int(self.config.get("run", {}).get("rounds", len(self.rounds)))

    @property
    def name(self) -> str:
        """Its experiment's name."""
        return printable(self.config.get("run", {}).get("name", self.folder.name))


def look(folder: Path, now: float | None = None) -> Seen:
    """Return how a run stands.

    Args:
        folder: The run directory, or its mirror.
        now: Seconds of the clock.

    Raises:
        ResultError: It holds no run, or one whose config can't be read.
    """
    config = _config(folder)
    home = _records(folder)
    rounds = _lines(home / "rounds.jsonl")
    if any(key not in record for record in rounds for key in _OF_A_ROUND):
        raise ResultError(f"{home / 'rounds.jsonl'}: a line is no round's record")
    summary = _object(folder / "summary.json")
    seen: dict[str, Any] = {
        "rounds": rounds,
        "status": summary.get("status"),
        "final": summary.get("final") or {},
        "slowest": _slowest(home / "clients.parquet"),
    }
    events = folder / "events.jsonl"
    try:
        seen |= _told(_lines(events), time.time() if now is None else now)
    except (LookupError, TypeError) as error:
        raise ResultError(f"{events}: a line is not an event ({error!r})") from error
    session = seen.pop("session")
    before = sum(record["time_seconds"] for record in rounds[: seen.pop("kept")])
    if summary:
        seen |= {"seconds": summary.get("seconds"), "phase": "", "total": 0}
    elif session is not None:
        seen["seconds"] = before + session
    else:
        seen["seconds"] = sum(record["time_seconds"] for record in rounds)
    planned = int(config.get("run", {}).get("rounds", len(rounds)))
    since = seen.pop("since")
    if not summary and rounds and len(rounds) < planned:
        pace = median(record["time_seconds"] for record in rounds[-5:])
        seen["left"] = max(pace * (planned - len(rounds)) - (since or 0.0), 0.0)
    return Seen(folder, config, **seen)


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.toml"
    if not path.is_file():
        raise ResultError(f"{folder}: holds no run (no config.toml)")
    try:
        config = tomllib.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(config.get(key, {}), dict) for key in ("run", "strategy", "model")):
            raise ValueError("a section is missing")
        int(config.get("run", {}).get("rounds", 0))
    except (OSError, ValueError, TypeError) as error:
        raise ResultError(f"{path}: can't be read ({error})") from error
    return config


def runs_in(folder: Path) -> list[Path]:
    """Return the run directories in a folder, itself or up to four folders below, in order.

    Raises:
        ResultError: There is none.
    """
    if not folder.is_dir():
        raise ResultError(f"{folder}: no such folder; name a run directory or a suite's folder")
    found = list(_runs(folder, _DEEP))
    if not found:
        raise ResultError(f"{folder}: holds no run yet (no config.toml in it or below)")
    return found


def runs_below(folder: Path) -> str:
    """Return "; it has runs below: name one, e.g. X", or nothing: the end of a refusal."""
    found = list(_runs(folder, _DEEP)) if folder.is_dir() else []
    return f"; it has runs below: name one, e.g. {found[0]}" if found else ""


def _runs(folder: Path, deep: int) -> list[Path]:
    if (folder / "config.toml").is_file():
        return [folder]
    if not deep:
        return []
    try:
        found = [p for p in folder.iterdir() if p.is_dir() and p.name not in _INSIDE]
    except OSError:  # gone since, or not ours to read: no run that can be shown
        return []
    below = sorted(p for p in found if not _ASIDE.fullmatch(p.name))
    return [run for each in below for run in _runs(each, deep - 1)]


def _records(folder: Path) -> Path:
    """Return where a run's records lie: in a mirror that is not finished, in its last commit."""
    if (folder / "rounds.jsonl").exists():
        return folder
    commits = [
        path
        for path in (folder / "checkpoints").glob("round-*")
        if path.name.removeprefix("round-").isdecimal()
    ]
    return max(commits, key=lambda path: int(path.name[6:]), default=folder)


def _told(events: Sequence[Mapping[str, Any]], now: float) -> dict[str, Any]:
    """Return what events say of the present: the phase, the clock and the notes."""
    seen: dict[str, Any] = {"phase": "", "done": 0, "total": 0, "why": "", "idle": None}
    seen |= {"session": None, "kept": 0, "since": None, "sessions": 0, "notes": ()}
    notes: list[str] = []
    for event in events:
        match event.get("event"):
            case "start":
                notes.clear()
                seen["session"] = seen["since"] = event.get("time")
                seen |= {"kept": len(event.get("resumed", ())), "why": "", "phase": "starting"}
                seen["sessions"] += 1
            case "phase":
                seen |= {"phase": event["phase"], "done": 0, "total": event["clients"]}
            case "arrived" | "client":
                seen |= {"done": max(seen["done"], event["done"]), "total": event["total"]}
            case "round":
                seen |= {"since": event.get("time"), "total": 0, "phase": "saving"}
            case "note":
                who = "server" if event["partition"] is None else f"client {event['partition']}"
                notes.append(printable(f"{who}: {event['text']}"))
            case "stop" | "error":
                seen["why"] = printable(event["text"])
    last = events[-1].get("time") if events else None
    for key, moment in (("session", seen["session"]), ("since", seen["since"]), ("idle", last)):
        seen[key] = None if moment is None else max(now - moment, 0.0)
    return seen | {"notes": tuple(notes[-NOTES:]), "sessions": max(seen["sessions"], 1)}


def _slowest(path: Path) -> tuple[int, float, float] | None:
    """Return the slowest client of the last round, its seconds, and the median client's."""
    try:
        table = pq.read_table(path, columns=["round", "partition", "seconds", "phase"])
    except (OSError, pa.ArrowException):  # none yet, or on its way to a drive
        return None
    rows = [row for row in table.to_pylist() if row["seconds"] is not None]
    rows = [row for row in rows if row["phase"] != "final"]
    last = max((row["round"] for row in rows), default=0)
    spent: dict[int, float] = {}
    for row in rows:
        if row["round"] == last:
            spent[row["partition"]] = spent.get(row["partition"], 0.0) + row["seconds"]
    if not spent:
        return None
    who = max(spent, key=lambda partition: spent[partition])
    return who, spent[who], median(spent.values())


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return a file's whole lines as objects; the last one may still be on its way."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ResultError(f"{path}: can't be read ({error})") from error
    try:
        found = [json.loads(line) for line in text.split(b"\n")[:-1]]
    except ValueError as error:
        raise ResultError(f"{path}: a line is not JSON ({error})") from error
    if not all(isinstance(each, dict) for each in found):
        raise ResultError(f"{path}: a line is no JSON object")
    return found


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: can't be read ({error})") from error
    return found if isinstance(found, dict) else {}
