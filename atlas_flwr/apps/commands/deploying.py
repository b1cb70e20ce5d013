"""Commands for a deployment: up, shards, certs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from atlas_flwr.apps.commands.shared import ExperimentFile, Overrides, Resume, app, load
from atlas_flwr.config.load import with_out

PANEL = "Deploy"


@app.command(rich_help_panel=PANEL)
def up(
    file: ExperimentFile,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(help="SuperNodes \\[default: run.clients]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with client-0, client-1, …, as atlas shards writes")
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="TLS, and SuperNodes with keys")] = False,
    resume: Resume = "never",
) -> None:
    """Run an experiment as a deployment on this machine: a SuperLink and a SuperNode per client.

    Example: atlas up demo --nodes 2 --tls --set run.rounds=1
    """
    size = [f"run.clients={nodes}"] if nodes is not None else []
    config = load(file, [*(overrides or []), *size], "ray")
    if resume == "auto" and not (out or config.run.out):
        raise typer.BadParameter("--resume auto needs a directory: name it with --out")
    config = with_out(config, str(out) if out else None)
    from atlas_flwr.apps.up import bring_up  # noqa: PLC0415 - torch loads for seconds

    bring_up(Console(), config, data, tls, resume == "auto")


@app.command(rich_help_panel=PANEL)
def shards(
    file: ExperimentFile,
    out: Annotated[Path, typer.Option(help="Folder of the clients' folders")],
    overrides: Overrides = None,
    full: Annotated[bool, typer.Option(help="Also the whole evaluation set, for tests")] = True,
) -> None:
    """Write each client's rows into a folder of its own, as a simulation deals them.

    Example: atlas shards demo --out shards --no-full
    """
    config = load(file, overrides)
    from atlas_flwr.apps.shards import write_shards  # noqa: PLC0415 - torch loads for seconds

    for folder in write_shards(config, out, full):
        Console().print(str(folder), soft_wrap=True, highlight=False)


@app.command(rich_help_panel=PANEL)
def certs(
    folder: Annotated[Path, typer.Argument(help="Where certificates and keys are written")],
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address of the SuperLink; may be repeated")
    ] = None,
    nodes: Annotated[int, typer.Option(min=0, help="Key pairs for so many SuperNodes")] = 0,
    days: Annotated[int, typer.Option(min=1, max=36500, help="How long certificates hold")] = 365,
) -> None:
    """Make an authority, the SuperLink's certificate, and keys of SuperNodes.

    Example: atlas certs keys --host superlink.example.org --nodes 3
    """
    from atlas_flwr.apps.certs import write_keys  # noqa: PLC0415

    for path in write_keys(folder, host or [], nodes, days):
        Console().print(str(path), soft_wrap=True, highlight=False)
