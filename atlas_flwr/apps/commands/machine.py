"""Commands about the machine: doctor."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from atlas_flwr.apps.commands.shared import app

PANEL = "Machine"


@app.command(rich_help_panel=PANEL)
def doctor(
    deep: Annotated[
        bool, typer.Option("--deep", help="Also run two clients on Ray and Flower: a minute")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Look at what this machine has for experiments, and say how to mend what it lacks.

    Example: atlas doctor --deep
    """
    from atlas_flwr.apps.doctor.report import run_doctor  # noqa: PLC0415 - torch loads for seconds

    if not run_doctor(Console(), deep, as_json):
        raise typer.Exit(1)
