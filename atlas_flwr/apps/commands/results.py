"""Commands that read what runs left: compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from atlas_flwr.apps.commands.shared import app


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run directories")],
    out: Annotated[Path, typer.Option(help="Where the comparison is written")] = Path("comparison"),
) -> None:
    """Draw several runs side by side: one axis only where they share the task set.

    Example: atlas compare runs/fedavg runs/local_only --out comparison
    """
    from atlas_flwr.results.compare import comparison_table, write_comparison  # noqa: PLC0415
    from atlas_flwr.results.store import read_run  # noqa: PLC0415

    found = write_comparison([read_run(folder) for folder in runs], out)
    console = Console()
    console.print(comparison_table(found))
    console.print(str(out.resolve() / "comparison.html"), style="bold", soft_wrap=True)
