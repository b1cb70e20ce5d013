"""Commands that take a trained model out of a run directory: export, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from atlas_flwr.apps.commands.shared import app

PANEL = "Use the model"

Client = Annotated[int | None, typer.Option("--client", help="The model of this client")]
Cluster = Annotated[int | None, typer.Option("--cluster", help="The model of this cluster")]
Task = Annotated[str | None, typer.Option("--task", help="The model of this task")]
Global = Annotated[bool, typer.Option("--global", help="The one model of all clients")]


@app.command(rich_help_panel=PANEL)
def export(  # noqa: PLR0913, PLR0917 - its options
    run: Annotated[Path, typer.Argument(help="Run directory")],
    client: Client = None,
    cluster: Cluster = None,
    task: Task = None,
    everybody: Global = False,
    merge: Annotated[
        bool, typer.Option("--merge", help="Merge the adapter into the base model")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write \\[default: <experiment>-<model>]")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Also upload it to the hub")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Push to a private repo")] = False,
) -> None:
    """Write a trained model as a folder that transformers or PEFT opens, with a model card.

    Example: atlas export runs/demo-20260102-030405 --task bbc --merge --out bbc-classifier
    """
    if private and push is None:
        raise typer.BadParameter("--private says how to push; name the repository with --push")
    from atlas_flwr.apps.sharing.choose import Asked, held_models  # noqa: PLC0415
    from atlas_flwr.apps.sharing.model import export_model  # noqa: PLC0415 - torch loads for seconds
    from atlas_flwr.apps.sharing.push import check_push, push_folder  # noqa: PLC0415

    if push is not None:
        check_push(push)
    console = Console(soft_wrap=True, highlight=False)
    with held_models(run) as held:
        done = export_model(held, Asked(client, cluster, task, everybody), merge, out)
    console.print(str(done.folder.resolve()), style="bold", markup=False)
    console.print(done.told(), markup=False)
    if push is not None:
        console.print(push_folder(done, push, private), markup=False)


@app.command(rich_help_panel=PANEL)
def predict(  # noqa: PLR0913, PLR0917 - its options
    folder: Annotated[Path, typer.Argument(help="Run directory, or an exported folder")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts to classify")] = None,
    pair: Annotated[
        list[str] | None, typer.Option(help="Second text, for tasks with two; one for each text")
    ] = None,
    file: Annotated[
        str | None, typer.Option(help="Texts of a file: csv, jsonl, txt (a line each); - is stdin")
    ] = None,
    client: Client = None,
    cluster: Cluster = None,
    task: Task = None,
    everybody: Global = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Classify texts with a trained model.

    Example: atlas predict bbc-classifier "The match ended in a draw"
    """
    from atlas_flwr.apps.sharing.texts import read_texts  # noqa: PLC0415

    rows = read_texts(texts or [], pair or [], file)
    from atlas_flwr.apps.sharing.choose import Asked  # noqa: PLC0415
    from atlas_flwr.apps.sharing.predict import print_predictions  # noqa: PLC0415 - torch loads for seconds

    print_predictions(folder, rows, Asked(client, cluster, task, everybody), as_json)
