"""The command line's app, and the arguments several commands share."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from atlas_flwr.config.load import load_config
from atlas_flwr.config.schema import Config

app = typer.Typer(
    name="atlas",
    help="Federated fine-tuning of transformers, on Flower. First time here: atlas run demo",
    epilog="Exit codes: 0 completed, 1 failed, 2 bad input, 3 stopped and resumable.",
    no_args_is_help=True,
    suggest_commands=False,  # click does that already
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"atlas-flwr {version('atlas-flwr')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None: ...


ENGINE = "ray: clients in processes of their own, at once; inline: in this one, in turn"
ExperimentFile = Annotated[
    Path, typer.Argument(help="Experiment file (TOML), or the name of a shipped one: demo")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=V", help="Override a key, e.g. --set run.rounds=3"),
]
Resume = Annotated[
    Literal["never", "auto"], typer.Option(help="auto: go on with the run in --out, if any")
]


def load(file: Path, overrides: list[str] | None, engine: str | None = None) -> Config:
    """Return the checked config behind a command's arguments."""
    from atlas_flwr.apps.catalogue import experiment_file  # noqa: PLC0415

    items = list(overrides or [])
    if engine is not None:
        items.append(f"engine.kind={engine}")
    return load_config(experiment_file(file), items)
