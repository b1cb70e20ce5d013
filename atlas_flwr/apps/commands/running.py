"""Commands that run experiments: run, resume, suite, check, list."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from atlas_flwr.apps.commands.shared import (
    ENGINE,
    ExperimentFile,
    Overrides,
    Resume,
    app,
    load,
)
from atlas_flwr.config.load import with_out

PANEL = "Run"


@app.command(rich_help_panel=PANEL)
def run(
    file: ExperimentFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory \\[default: runs/<name>-<UTC time>]")
    ] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE)] = None,
    resume: Resume = "never",
) -> None:
    """Run an experiment and write its run directory.

    Example: atlas run demo --set run.rounds=3 --engine inline
    """
    config = load(file, overrides, engine)  # first: a typing mistake is told at once
    if resume == "auto" and not (out or config.run.out):
        raise typer.BadParameter("--resume auto needs a directory: name it with --out")
    config = with_out(config, str(out) if out else None)
    from atlas_flwr.apps.going import begin, go_on  # noqa: PLC0415 - torch loads for seconds

    console, folder = Console(), Path(str(config.run.out))
    if resume == "auto" and (folder / "config.toml").exists():
        go_on(console, folder, same_as=config)
    else:
        begin(console, config)


@app.command("resume", rich_help_panel=PANEL)
def resume_(
    folder: Annotated[Path, typer.Argument(help="Run directory, or its mirror")],
    overrides: Overrides = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE)] = None,
    since: Annotated[
        int | None, typer.Option("--from", help="Round to go on from \\[default: the last]")
    ] = None,
) -> None:
    """Go on with a run that was stopped, killed or failed, from its last commit.

    Example: atlas resume runs/demo-20260102-030405
    """
    from atlas_flwr.apps.going import go_on  # noqa: PLC0415 - torch loads for seconds

    items = list(overrides or [])
    if engine is not None:
        items += [f"engine.kind={engine}", *(["engine.workers=1"] if engine == "inline" else [])]
    go_on(Console(), folder.expanduser().resolve(), items, since)


@app.command(rich_help_panel=PANEL)
def suite(  # noqa: PLR0913, PLR0917 - options
    file: Annotated[
        Path, typer.Argument(help="Suite file (TOML), or the name of a shipped one: suite_glue")
    ],
    overrides: Overrides = None,
    seeds: Annotated[
        str | None, typer.Option(help="Instead of the file's, e.g. 1..6 or 42,43")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option(help="Run this setting only; may be repeated")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Run this label only; may be repeated")
    ] = None,
    tune: Annotated[bool, typer.Option(help="Choose the keys of \\[tune] first")] = True,
    choices: Annotated[
        Path | None, typer.Option(help="A tuned.json: what it has chosen is not tuned again")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Say what would run")] = False,
    out: Annotated[Path | None, typer.Option(help="Suite folder \\[default: runs/<name>]")] = None,
    engine: Annotated[str | None, typer.Option(help=ENGINE)] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time, each in its process")] = 1,
) -> None:
    """Run strategies over settings and seeds; the same command goes on where it stopped.

    Example: atlas suite suite_glue --seeds 1..3 --jobs 2 --set data.root=/data/glue
    """
    from atlas_flwr.apps.suites.file import load, suite_folder  # noqa: PLC0415

    items = [*(overrides or []), *([f"engine.kind={engine}"] if engine else [])]
    parts: dict[str, Sequence[str]] = {"only": only or [], "within": setting or []}
    chosen = load(file, seeds=seeds, items=items, tuned=tune, choices=choices, **parts)
    from atlas_flwr.apps.suites.check import describe_suite  # noqa: PLC0415
    from atlas_flwr.apps.suites.run import run_suite  # noqa: PLC0415 - torch loads for seconds

    folder = suite_folder(chosen, out)
    if check:
        Console().print(describe_suite(chosen, folder))
    else:
        run_suite(chosen, folder, Console(), jobs)


@app.command(rich_help_panel=PANEL)
def check(file: ExperimentFile, overrides: Overrides = None) -> None:
    """Check an experiment, its data and its model, and say what would run.

    Example: atlas check demo --set data.partitioner=dirichlet
    """
    config = load(file, overrides)
    from atlas_flwr.apps.describe import describe_experiment  # noqa: PLC0415

    Console().print(describe_experiment(config))


@app.command("list", rich_help_panel=PANEL)
def list_() -> None:
    """List strategies, tasks, models and shipped experiments."""
    from atlas_flwr.apps.catalogue import describe_catalogue  # noqa: PLC0415

    Console().print(describe_catalogue())
