"""`atlas watch` as the terminal shows it: one run as a panel, several as a line each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from atlas_flwr.results.console import PHASE_WORDS, sparkline
from atlas_flwr.results.series import count, show, show_bytes, show_seconds
from atlas_flwr.results.watch import Seen

LOOKS = {"completed": "bold green", "stopped": "bold yellow", "failed": "bold red"}
QUIET = 60.0  # seconds without an event that are worth a word


def panel(seen: Seen, unicode: bool = True, writes: bool | None = None) -> RenderableType:
    """Return one run as some lines.

    Args:
        seen: How it stands.
        unicode: Whether bars can be printed.
        writes: Whether a process writes the run; None: not known.
    """
    config, rounds = seen.config, seen.rounds
    run, strategy = config.get("run", {}), config.get("strategy", {})
    model = Path(str(config.get("model", {}).get("name", "?"))).name
    head = Text.assemble(
        (seen.name, "bold"),
        f" · {strategy.get('name', '?')} on {model} · {count(run.get('clients', 0), 'client')}",
    )
    state = Table.grid(padding=(0, 2))
    bar = ProgressBar(max(seen.planned, 1), len(rounds), width=24) if unicode else ""
    at = len(rounds) if seen.status is not None else min(len(rounds) + 1, seen.planned)
    state.add_row(f"round {at}/{seen.planned}", bar, doing(seen, writes))
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, text in [("time", Text(_clock(seen, writes))), *_facts(seen, unicode)]:
        grid.add_row(name, text)
    return Group(head, state, grid)


def doing(seen: Seen, writes: bool | None = None) -> Text:
    """Return what a run does now, or how it ended."""
    if seen.status is not None:
        look = LOOKS.get(seen.status, "")
        return Text.assemble((seen.status, look), f": {seen.why}" if seen.why else "")
    if writes is False:
        return Text.assemble(
            ("no process writes it", "bold yellow"), f"; atlas resume {seen.folder} goes on"
        )
    word = PHASE_WORDS.get(seen.phase, seen.phase or "running")
    done = f" {seen.done}/{count(seen.total, 'client')}" if seen.total else ""
    return Text(word + done)


def _facts(seen: Seen, unicode: bool) -> list[tuple[str, Text]]:
    rounds = seen.rounds
    found: list[tuple[str, Text]] = []
    if rounds:
        last = rounds[-1]
        for name, key in (("accuracy", "accuracy"), ("loss", "loss"), ("training", "train_loss")):
            curve = sparkline([record.get(key) for record in rounds]) if unicode else ""
            style = "green" if key == "accuracy" else "cyan"
            found.append(
                (name, Text.assemble((curve, style), "  " if curve else "", _now(seen, key)))
            )
        tasks = [f"{task} {show(scores['accuracy'])}" for task, scores in last["by_task"].items()]
        tasks.append(f"worst client {show(last['worst_client_accuracy'])}")
        found.append(("tasks", Text("  ".join(tasks))))
        up, down = (sum(record[f"bytes_{way}"] for record in rounds) for way in ("up", "down"))
        peaks = [r["memory_mb"] for r in rounds if r["memory_mb"] is not None]
        peak = f"  ·  peak memory {show_bytes(max(peaks) * 1e6)}" if peaks else ""
        found.append(("moved", Text(f"{show_bytes(up)} up, {show_bytes(down)} down{peak}")))
        found += _clients(seen)
    if seen.final.get("accuracy") is not None:
        worst = show(seen.final.get("worst_client_accuracy"), 4)
        said = f"accuracy {show(seen.final['accuracy'], 4)}, worst client {worst}"
        found.append(("final", Text(said, style="bold")))
    found += [("note", Text(note, style="yellow")) for note in seen.notes]
    return found


def _clients(seen: Seen) -> list[tuple[str, Text]]:
    parts = []
    if seen.slowest is not None:
        who, seconds, middle = seen.slowest
        parts.append(f"client {who}: {show_seconds(seconds)} (median {show_seconds(middle)})")
    found = [("slowest", Text("  ".join(parts)))] if parts else []
    if lost := seen.rounds[-1].get("lost"):
        found.append(("absent", Text(", ".join(map(str, lost)), style="yellow")))
    return found


def _now(seen: Seen, key: str) -> str:
    values = [record.get(key) for record in seen.rounds]
    there = [value for value in values if value is not None]
    best = f"  (best {show(max(there), 4)})" if key == "accuracy" and len(there) > 1 else ""
    return show(values[-1], 4) + best


def _clock(seen: Seen, writes: bool | None) -> str:
    going, parts = seen.status is None and writes is not False, list[str]()
    if seen.seconds is not None:
        # A killed one's clock stands since its last word; one that ended has told its seconds.
        killed = writes is False and seen.status is None
        spent = seen.seconds - (seen.idle or 0.0) if killed else seen.seconds
        parts.append(show_seconds(spent) + (" so far" if going else ""))
    if going and seen.left is not None:
        parts.append(f"about {show_seconds(seen.left)} left in rounds")
    if seen.sessions > 1:
        parts.append(f"session {seen.sessions}")
    if going and seen.idle is not None and seen.idle > QUIET:
        parts.append(f"nothing new for {show_seconds(seen.idle)}")
    return "  ·  ".join(parts) or "–"


def lines(
    runs: Sequence[Seen], root: Path, unicode: bool, writes: Sequence[bool | None]
) -> RenderableType:
    """Return several runs, one line each, and what they are together."""
    done = sum(seen.status == "completed" for seen in runs)
    head = Text(f"{root.name}: {done} of {count(len(runs), 'run')} completed", style="italic")
    table = Table(box=None)
    table.add_column("run", overflow="fold", ratio=2, min_width=12)
    for name in ("round", "accuracy", "time", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", overflow="fold", ratio=2)
    for seen, alive in zip(runs, writes, strict=True):
        last = seen.final.get("accuracy")
        if last is None and seen.rounds:
            last = seen.rounds[-1]["accuracy"]
        curve = sparkline([r["accuracy"] for r in seen.rounds], 12) if unicode else ""
        killed = seen.status is None and alive is False
        said = Text("killed", style="bold yellow") if killed else doing(seen, alive)
        table.add_row(
            Text(str(seen.folder.relative_to(root))),
            f"{len(seen.rounds)}/{seen.planned}",
            f"{curve} {show(last)}".strip(),
            "–" if seen.seconds is None else show_seconds(seen.seconds),
            "–" if seen.left is None or killed else show_seconds(seen.left),
            said,
        )
    return Group(head, table)
