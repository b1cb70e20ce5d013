"""Commands that read what suites left: table and plot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from atlas_flwr.apps.commands.shared import app
from atlas_flwr.errors import ResultError

PANEL = "Read results"

Suites = Annotated[
    list[Path], typer.Argument(help="Folders that atlas suite wrote, or results.csv files")
]
Metric = Annotated[
    str, typer.Option(help="accuracy, worst_client_accuracy, loss, bytes, … (a column)")
]
Baseline = Annotated[
    str | None, typer.Option(help="Label to compare with \\[default: the suite's first]")
]
Settings = Annotated[list[str] | None, typer.Option(help="This setting only; may be repeated")]
Labels = Annotated[list[str] | None, typer.Option(help="This label only; may be repeated")]


@app.command(rich_help_panel=PANEL)
def table(
    suites: Suites,
    metric: Metric = "accuracy",
    baseline: Baseline = None,
    setting: Settings = None,
    only: Labels = None,
    target: Annotated[
        float | None, typer.Option(help="Rounds and bytes until this is reached, e.g. 0.70")
    ] = None,
    form: Annotated[
        Literal["text", "md", "latex", "csv"] | None,
        typer.Option(
            "--format", help="How to write it \\[default: by --out's ending .md, .tex, .csv; text]"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file \\[default: print]")] = None,
) -> None:
    """Compare a suite's strategies over seeds: means, differences, tests, cost.

    Example: atlas table runs/glue --baseline fedavg --target 0.7 --out glue.tex
    """
    from atlas_flwr.results.suites import formats  # noqa: PLC0415 - pandas
    from atlas_flwr.results.suites.compared import analyse  # noqa: PLC0415
    from atlas_flwr.results.suites.rows import chosen, read_suites  # noqa: PLC0415

    runs = chosen(read_suites(suites), setting or [], only or [])
    found = analyse(runs, metric, baseline, target)
    if form in (None, "text") and out is None:
        Console().print(formats.to_rich(found))
        return
    ending = out.suffix.lower() if out else ""
    text = formats.FORMATS[form or formats.BY_ENDING.get(ending, "text")](found)
    if out is None:
        typer.echo(text, nl=False)
        return
    from atlas_flwr.results.writing import atomic_write  # noqa: PLC0415

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(out, text)
    except OSError as error:
        raise ResultError(f"{out}: can't be written ({error.strerror or error})") from error
    Console().print(str(out.resolve()), style="bold", soft_wrap=True)


@app.command(rich_help_panel=PANEL)
def plot(
    suites: Suites,
    out: Annotated[Path, typer.Option(help="Folder for the pictures")],
    metric: Metric = "accuracy",
    baseline: Baseline = None,
    setting: Settings = None,
    only: Labels = None,
    dpi: Annotated[int, typer.Option(min=50, max=1200, help="Dots per inch, for png")] = 300,
    form: Annotated[Literal["png", "pdf", "svg"], typer.Option("--format", help="Format")] = "png",
) -> None:
    """Draw a suite: convergence with bands, seeds, accuracy against bytes, clients, differences.

    Example: atlas plot runs/glue --out figures --baseline fedavg --format pdf
    """
    from atlas_flwr.results.suites.compared import analyse  # noqa: PLC0415
    from atlas_flwr.results.suites.plots import Sheet, write_suite_plots  # noqa: PLC0415
    from atlas_flwr.results.suites.rows import chosen, read_suites  # noqa: PLC0415 - pandas

    runs = chosen(read_suites(suites), setting or [], only or [])
    found = analyse(runs, metric, baseline)
    paths, missing = write_suite_plots(runs, found, Sheet(out, form, dpi))
    console = Console()
    for line in missing:
        console.print(f"left out  {line}", style="yellow", soft_wrap=True, markup=False)
    for path in paths:
        console.print(str(path.resolve()), style="bold", soft_wrap=True, markup=False)
