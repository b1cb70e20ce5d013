"""What the terminal shows: progress while a run goes on, and its results at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from atlas_flwr.results.events import check_event
from atlas_flwr.results.lines import clusters_line, found_lines
from atlas_flwr.results.merges import last_merge
from atlas_flwr.results.ranked import ranks_line
from atlas_flwr.results.series import count, show, show_bytes, show_error, show_seconds
from atlas_flwr.results.store import REPORT, read_extra

BARS = "▁▂▃▄▅▆▇█"
_SHOWN = {
    "accuracy": "accuracy",
    "f1": "F1",
    "macro_f1": "macro-F1",
    "mcc": "MCC",
    "loss": "loss",
}
PHASE_WORDS = {
    "fingerprint": "fingerprinting",
    "score": "comparing models",
    "train": "training",
    "evaluate": "evaluating",
    "final": "scoring on the whole evaluation sets",
}


def sparkline(values: Sequence[float | None], width: int = 40) -> str:
    """Return the last values as bars between their lowest and highest; an absent one is a space.

    >>> sparkline([0.1, None, 0.5, 0.9])
    '▁ ▅█'
    """
    shown = list(values)[-width:]
    there = [value for value in shown if value is not None]
    low, high = min(there, default=0.0), max(there, default=0.0)
    top, span = len(BARS) - 1, high - low

    def bar(value: float | None) -> str:
        if value is None:
            return " "
        return BARS[int((value - low) / span * top + 0.5)] if span > 0 else BARS[top // 2]

    return "".join(bar(value) for value in shown)


def round_line(event: Mapping[str, Any], rounds: int) -> str:
    """Return a round's one line of plain text."""
    parts = [
        f"round {event['round']}/{rounds}",
        f"accuracy {show(event['accuracy'], 4)}",
        f"loss {show(event['loss'], 4)}",
        f"{event['time_seconds']:.1f} s",
        f"{event['communication_mb']:.1f} MB",
    ]
    if event.get("lost"):
        parts.append("lost " + ", ".join(str(partition) for partition in event["lost"]))
    return "  ".join(parts)


class LiveView(ABC):
    """What is redrawn below the lines of a terminal, between entering and leaving; else nothing.

    Args:
        console: Where to print.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, get_renderable=self.render, transient=True)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    @abstractmethod
    def render(self) -> RenderableType:
        """Return how things stand."""


class Progress(LiveView):
    """Shows events: a live display in a terminal, plain lines elsewhere.

    Use it as a context manager and give every event to `handle`.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console or Console())
        self.start: dict[str, Any] = {}
        self.accuracies: list[float | None] = []
        self.last_round: dict[str, Any] = {}
        self.phase = "starting"
        self.done, self.total = 0, 0

    def handle(self, event: Mapping[str, Any]) -> None:
        """Take one event in and show it.

        Raises:
            ValueError: The event is unknown or lacks a field.
        """
        check_event(event)
        getattr(self, f"_on_{event['event']}")(event)
        if self._live:
            self._live.refresh()

    def render(self) -> RenderableType:
        """Return the live display as it is now."""
        rounds = self.start.get("rounds", 1)
        grid = Table.grid(padding=(0, 2))
        head = Text(self.start.get("experiment", "starting"), style="bold")
        at = f"round {min(len(self.accuracies) + 1, rounds)}/{rounds}" if self.start else ""
        grid.add_row(head, ProgressBar(rounds, len(self.accuracies), width=30), at, self._doing())
        if not self.last_round:
            return grid
        curve = Text(self._curve(), style="green")
        last = self.last_round
        said = f"accuracy {show(last['accuracy'], 4)}  loss {show(last['loss'], 4)}"
        return Group(grid, Text.assemble("  ", curve, "  ", said))

    def _doing(self) -> str:
        return self.phase + (f"  {self.done}/{self.total} clients" if self.total else "")

    def _curve(self) -> str:
        unicode = (self.console.encoding or "").lower().startswith("utf")
        return sparkline(self.accuracies) if unicode else ""

    def _say(self, text: str, style: str = "") -> None:
        """Print one line; markup in it is text, and it is never wrapped or cut."""
        self.console.print(Text(text, style=style), soft_wrap=True)

    def _on_start(self, event: Mapping[str, Any]) -> None:
        self.start = dict(event)
        self.accuracies = list(event.get("resumed", []))
        tasks = ", ".join(event["tasks"])
        self._say(
            f"{event['experiment']}: {event['strategy']} on {event['model']}, "
            f"{count(event['clients'], 'client')}, {count(event['rounds'], 'round')}, "
            f"{event['engine']} engine, tasks {tasks}"
        )
        if "resumed" in event:
            self._say(f"resumed after round {len(self.accuracies)}")

    def _on_phase(self, event: Mapping[str, Any]) -> None:
        self.phase = PHASE_WORDS.get(event["phase"], event["phase"])
        self.done, self.total = 0, event["clients"]

    def _on_arrived(self, event: Mapping[str, Any]) -> None:
        self.done, self.total = event["done"], event["total"]

    def _on_client(self, event: Mapping[str, Any]) -> None:
        # Where they are judged together, all have arrived by then.
        self.done, self.total = max(self.done, event["done"]), event["total"]

    def _on_round(self, event: Mapping[str, Any]) -> None:
        self.accuracies.append(event["accuracy"])
        self.last_round = dict(event)
        self.total = 0
        self._say(round_line(event, self.start.get("rounds", event["round"])))

    def _on_note(self, event: Mapping[str, Any]) -> None:
        who = "server" if event["partition"] is None else f"client {event['partition']}"
        self._say(f"note  {who}: {event['text']}", "yellow")

    def _on_final(self, event: Mapping[str, Any]) -> None:
        self.phase, self.total = "done", 0
        worst = show(event["worst_client_accuracy"], 4)
        self._say(f"final  accuracy {show(event['accuracy'], 4)}  worst client {worst}")

    def _on_stop(self, event: Mapping[str, Any]) -> None:
        self._say(f"stopped  {event['text']}", "bold yellow")

    def _on_error(self, event: Mapping[str, Any]) -> None:
        self._say(f"error  {event['text']}", "bold red")


def print_results(console: Console, summary: Mapping[str, Any], path: Path) -> None:
    """Print the final table, costs, clusters, ranks, the report and, last of all, the directory.

    Raises:
        ResultError: ``clusters.json`` or ``ranks.json`` is there but broken.
    """
    console.print(results_table(summary))
    clusters, ranks = (read_extra(path / f"{name}.json") for name in ("clusters", "ranks"))
    for line in (clusters_line(clusters), *found_lines(clusters), ranks_line(ranks)):
        if line:
            console.print(Text(line), soft_wrap=True)
    # A path that is cut in two can't be copied.
    if (path / REPORT).exists():
        console.print(Text(f"report: {path / REPORT}"), soft_wrap=True)
    console.print(Text(str(path), style="bold"), soft_wrap=True)


def results_table(summary: Mapping[str, Any]) -> RenderableType:
    """Return each task's final scores, the worst client, and below them what the run cost."""
    final = summary["final"]
    title = Text(f"{summary['experiment']} · {summary['strategy']} · {summary['status']}")
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("task", overflow="fold")
    tasks = final["by_task"]
    # F1 of the second class is of tasks with two; a column that nobody has is left out.
    shown = [m for m in _SHOWN if m in final or any(s[m] is not None for s in tasks.values())]
    for metric in shown:
        table.add_column(_SHOWN[metric], justify="right", no_wrap=True)
    for task, scores in tasks.items():
        table.add_row(Text(task), *(show(scores[metric], 4) for metric in shown))
    table.add_section()
    total = (show(final[metric], 4) if metric in final else "" for metric in shown)
    table.add_row("mean over tasks", *total, style="bold")
    table.add_row("worst client", show(final["worst_client_accuracy"], 4))
    lines = [f"{count(summary['rounds_completed'], 'round')} in {show_seconds(summary['seconds'])}"]
    moved = summary["bytes"]
    lines.append(f"{show_bytes(moved['up'])} up, {show_bytes(moved['down'])} down")
    if summary["peak_memory_mb"] is not None:
        lines.append(f"{summary['peak_memory_mb']:,.0f} MB at peak")
    merge = _merge_line(summary["round_results"])
    return Group(table, Text("  ·  ".join(lines)), *([Text(merge)] if merge else []))


def _merge_line(rounds: Sequence[Mapping[str, Any]]) -> str:
    """Return the last round's measures of its merge in one line; empty if there is none."""
    found = {name: value for name, value in last_merge(rounds).items() if value is not None}
    truncation = [value for name, value in found.items() if name.startswith("truncation")]
    parts = []
    if (error := found.get("aggregation error")) is not None:
        parts.append(f"error {show_error(error)}")
    if truncation:
        parts.append(f"truncation up to {show_error(max(truncation))}")
    if (rank := found.get("effective rank")) is not None:
        parts.append(f"effective rank {rank:.1f}")
    return "last merge: " + "  ·  ".join(parts) if parts else ""
