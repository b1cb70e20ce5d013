"""Commands that read what runs leave: compare, watch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from atlas_flwr.apps.commands.shared import app

PANEL = "Read results"


@app.command(rich_help_panel=PANEL)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories")],
    out: Annotated[Path, typer.Option(help="Where the comparison is written")] = Path("comparison"),
) -> None:
    """Draw several runs side by side: one axis only where they share the task set.

    Example: atlas compare runs/fedavg runs/local_only --out comparison
    """
    from atlas_flwr.results.compare_output import comparison_table, write_comparison  # noqa: PLC0415
    from atlas_flwr.results.store import read_run  # noqa: PLC0415

    found = write_comparison([read_run(folder) for folder in runs], out)
    console = Console()
    console.print(comparison_table(found))
    console.print(str(out.resolve() / "comparison.html"), style="bold", soft_wrap=True)


@app.command(rich_help_panel=PANEL)
def watch(
    folder: Annotated[Path, typer.Argument(help="Run directory, its mirror, or a suite's folder")],
    once: Annotated[bool, typer.Option("--once", help="Look once and end")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between looks")] = 1.0,
) -> None:
    """Look at a run, or at all runs of a folder, while they go on; Ctrl-C leaves them alone.

    Ends when they have: 0 completed, 1 failed, 3 stopped or killed.

    Example: atlas watch runs/demo-20260102-030405
    """
    from atlas_flwr.apps.watching import watch as look  # noqa: PLC0415

    raise typer.Exit(look(Console(), folder.expanduser().resolve(), once, interval))
