"""What a client says beside its partition when it is greeted: the rows it holds at home.

In a simulation the server deals the rows and knows them; in a deployment each client has a folder
of its own, and the server learns from here how many rows there are and what their classes are
called. No row and no text is told.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from flwr.app import ConfigRecord, RecordDict

from atlas_flwr.errors import WireError

_HOME = "home"
_LONGEST = 10_000  # characters: names of classes, not a place for anything else


@dataclass(frozen=True)
class Holding:
    """What one client has at home.

    Attributes:
        own_rows: Whether it reads a folder of its own; else the run's data are dealt to it.
        own_vault: Whether what must stay private lies on a disk of its own.
        train_rows: Rows it trains on; 0 where they are dealt.
        score_rows: Rows of its own slice.
        task: The task its folder is of; empty where the folder doesn't say.
        labels: Names of its classes in the order of their numbers; empty likewise.
    """

    own_rows: bool = False
    own_vault: bool = False
    train_rows: int = 0
    score_rows: int = 0
    task: str = ""
    labels: tuple[str, ...] = ()


def add_holding(content: RecordDict, holding: Holding) -> RecordDict:
    """Return the answer to a greeting with what the client holds put in."""
    content[_HOME] = ConfigRecord(
        {
            "own-rows": holding.own_rows,
            "own-vault": holding.own_vault,
            "train-rows": holding.train_rows,
            "score-rows": holding.score_rows,
            "task": holding.task,
            "labels": json.dumps(holding.labels),
        }
    )
    return content


def read_holding(content: RecordDict) -> Holding:
    """Return what a client holds; nothing of its own where it doesn't say.

    Raises:
        WireError: What it says is of another type, negative or too long.
    """
    record = content.config_records.get(_HOME)
    if record is None:
        return Holding()
    told = dict(record)
    labels = _labels(told.get("labels"))
    own_rows, own_vault, task = (told.get(name) for name in ("own-rows", "own-vault", "task"))
    if not isinstance(own_rows, bool) or not isinstance(own_vault, bool):
        raise WireError("hello: whether rows and vault are the client's own can't be read")
    if not isinstance(task, str) or len(task) > _LONGEST:
        raise WireError("hello: the task must be a name")
    rows = _count(told.get("train-rows")), _count(told.get("score-rows"))
    return Holding(own_rows, own_vault, *rows, task, labels)


def _count(told: object) -> int:
    if not isinstance(told, int) or isinstance(told, bool) or told < 0:
        raise WireError(f"hello: rows must be an integer >= 0, got {told!r}")
    return told


def _labels(text: object) -> tuple[str, ...]:
    """Return names of classes from their JSON."""
    try:
        if not isinstance(text, str) or len(text) > _LONGEST:
            raise ValueError("too long, or no text")
        names = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WireError(f"hello: labels can't be read ({error})") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise WireError("hello: labels must be a list of names")
    return tuple(names)
