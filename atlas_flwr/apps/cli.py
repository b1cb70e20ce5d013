"""The command line: parsing, exit codes and what is printed; no logic of its own.

Exit codes: 0 completed, 1 failed, 2 bad input (one line, nothing overwritten), 3 stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from click.exceptions import ClickException, NoArgsIsHelpError
from rich.console import Console

from atlas_flwr.config.load import load_config, with_out
from atlas_flwr.config.schema import Config
from atlas_flwr.errors import AtlasError, RunStopped

app = typer.Typer(
    name="atlas",
    help="Federated fine-tuning of transformers, on Flower.",
    no_args_is_help=True,
    suggest_commands=False,  # click does that already
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

_INTERRUPTED = 130  # what Typer makes of Ctrl-C

ExperimentFile = Annotated[
    Path, typer.Argument(help="Experiment file (TOML), or the name of a shipped one: demo")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=V", help="Override a key, e.g. --set run.rounds=3"),
]


@app.command()
def run(
    file: ExperimentFile,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="Run directory [default: runs/<name>-<UTC time>]")
    ] = None,
    engine: Annotated[str | None, typer.Option(help="ray or inline")] = None,
    resume: Annotated[
        Literal["never", "auto"], typer.Option(help="auto: go on with the run in --out, if any")
    ] = "never",
) -> None:
    """Run an experiment and write its run directory.

    Example: atlas run demo --set run.rounds=3 --engine inline
    """
    config = _load(file, overrides, engine)  # first: a typing mistake is told at once
    if resume == "auto" and not (out or config.run.out):
        raise typer.BadParameter("--resume auto needs a directory: name it with --out")
    config = with_out(config, str(out) if out else None)
    from atlas_flwr.apps.going import begin, go_on  # noqa: PLC0415 - torch loads for seconds

    console, folder = Console(), Path(str(config.run.out))
    if resume == "auto" and (folder / "config.toml").exists():
        go_on(console, folder, same_as=config)
    else:
        begin(console, config)


@app.command("resume")
def resume_(
    folder: Annotated[Path, typer.Argument(help="Run directory, or its mirror")],
    overrides: Overrides = None,
    engine: Annotated[str | None, typer.Option(help="ray or inline")] = None,
    since: Annotated[
        int | None, typer.Option("--from", help="Round to go on from [default: the last]")
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


@app.command()
def up(
    file: ExperimentFile,
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option(help="SuperNodes \\[default: run.clients]")] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with client-0, client-1, …, as atlas shards writes")
    ] = None,
    tls: Annotated[bool, typer.Option("--tls", help="TLS, and SuperNodes with keys")] = False,
    resume: Annotated[
        Literal["never", "auto"], typer.Option(help="auto: go on with the run in --out, if any")
    ] = "never",
) -> None:
    """Run an experiment as a deployment on this machine: a SuperLink and a SuperNode per client.

    Example: atlas up demo --nodes 2 --tls --set run.rounds=1
    """
    size = [f"run.clients={nodes}"] if nodes is not None else []
    config = _load(file, [*(overrides or []), *size], "ray")
    if resume == "auto" and not (out or config.run.out):
        raise typer.BadParameter("--resume auto needs a directory: name it with --out")
    config = with_out(config, str(out) if out else None)
    from atlas_flwr.apps.up import bring_up  # noqa: PLC0415 - torch loads for seconds

    bring_up(Console(), config, data, tls, resume == "auto")


@app.command()
def shards(
    file: ExperimentFile,
    out: Annotated[Path, typer.Option(help="Folder of the clients' folders")],
    overrides: Overrides = None,
    full: Annotated[bool, typer.Option(help="Also the whole evaluation set, for tests")] = True,
) -> None:
    """Write each client's rows into a folder of its own, as a simulation deals them.

    Example: atlas shards demo --out shards --no-full
    """
    config = _load(file, overrides)
    from atlas_flwr.apps.shards import write_shards  # noqa: PLC0415 - torch loads for seconds

    for folder in write_shards(config, out, full):
        Console().print(str(folder), soft_wrap=True, highlight=False)


@app.command()
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


@app.command()
def suite(
    file: Annotated[
        Path, typer.Argument(help="Suite file (TOML), or the name of a shipped one: suite_glue")
    ],
    overrides: Overrides = None,
    seeds: Annotated[str | None, typer.Option(help="Instead of the file's, e.g. 42,43")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Run this label; may be repeated")] = None,
    tune: Annotated[bool, typer.Option(help="Choose the keys of \\[tune] first")] = True,
    check: Annotated[bool, typer.Option("--check", help="Say what would run")] = False,
    out: Annotated[Path | None, typer.Option(help="Suite folder \\[default: runs/<name>]")] = None,
    engine: Annotated[str | None, typer.Option(help="ray or inline")] = None,
) -> None:
    """Run strategies over settings and seeds; the same command goes on where it stopped.

    Example: atlas suite suite_glue --seeds 42,43 --set data.root=/data/glue
    """
    from atlas_flwr.apps.suite_file import load, suite_folder  # noqa: PLC0415

    items = [*(overrides or []), *([f"engine.kind={engine}"] if engine else [])]
    chosen = load(file, seeds=seeds, only=only or [], items=items, tuned=tune)
    from atlas_flwr.apps.suite import run_suite  # noqa: PLC0415 - torch loads for seconds
    from atlas_flwr.apps.suite_check import describe_suite  # noqa: PLC0415

    folder = suite_folder(chosen, out)
    if check:
        Console().print(describe_suite(chosen, folder))
    else:
        run_suite(chosen, folder, Console())


@app.command()
def check(file: ExperimentFile, overrides: Overrides = None) -> None:
    """Check an experiment, its data and its model, and say what would run.

    Example: atlas check demo --set data.partitioner=dirichlet
    """
    config = _load(file, overrides)
    from atlas_flwr.apps.describe import describe_experiment  # noqa: PLC0415

    Console().print(describe_experiment(config))


@app.command("list")
def list_() -> None:
    """List strategies, tasks, models and shipped experiments."""
    from atlas_flwr.apps.catalogue import describe_catalogue  # noqa: PLC0415

    Console().print(describe_catalogue())


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


def _load(file: Path, overrides: list[str] | None, engine: str | None = None) -> Config:
    """Return the checked config behind a command's arguments."""
    from atlas_flwr.apps.catalogue import experiment_file  # noqa: PLC0415

    items = list(overrides or [])
    if engine is not None:
        items.append(f"engine.kind={engine}")
    return load_config(experiment_file(file), items)


def main() -> None:
    """Run the command line; errors raised on purpose become one line and an exit code."""
    try:
        from atlas_flwr.apps import guard  # noqa: F401, PLC0415 - checks; its error is one line

        # Typer's own handling would draw a box of five lines around a wrong word.
        code = app(standalone_mode=False)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except ClickException as error:
        _say(f"{error.format_message()} See 'atlas --help'.")
        sys.exit(error.exit_code)
    except RunStopped as error:
        _say(str(error), "stopped")
        sys.exit(error.exit_code)
    except AtlasError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    if code == _INTERRUPTED:
        _say("stopped by Ctrl-C before anything was written", "stopped")
        sys.exit(3)
    sys.exit(code or 0)


def _say(text: str, kind: str = "error") -> None:
    line = " ".join(text.split())
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"{kind}: {line}", markup=False)


if __name__ == "__main__":
    main()
