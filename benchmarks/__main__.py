"""``python -m benchmarks``: measure, print one table, write one JSON file."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from datasets import disable_progress_bars
from rich.console import Console
from rich.table import Table

from atlas_flwr.errors import UserError
from atlas_flwr.results.provenance import provenance
from benchmarks.aggregation import exact_memory, products, products_large, tally_memory
from benchmarks.commits import commit
from benchmarks.federated_round import inline_round, ray_round
from benchmarks.guide_round import guide_round
from benchmarks.measure import Ratio
from benchmarks.message import training_message
from benchmarks.sizes import QUICK, Size

OUT = Path(__file__).parent / "out"

BENCHMARKS: dict[str, Callable[[Size], Ratio]] = {
    "inline": inline_round,
    "ray": ray_round,
    "message": training_message,
    "guide": guide_round,
    "products": products,
    "products-4096": products_large,
    "tally-memory": tally_memory,
    "exact-memory": exact_memory,
    "commit": commit,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what is asked; 0 once measured, whether targets are met or not, 2 for bad input."""
    args = parse(argv)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything measured is on this machine
    disable_progress_bars()
    torch.set_num_threads(1)
    console = Console()
    size = Size(model=args.model)
    if args.glue:
        size = replace(size, task="sst2", root=str(args.glue.resolve()), rows=100, holdout=0.0)
    if args.quick:
        size = replace(size, **QUICK)
    ratios: list[Ratio] = []
    try:
        for name in args.only or BENCHMARKS:
            console.print(f"measuring: {name} ...", style="dim")
            ratios.append(BENCHMARKS[name](size))
    except UserError as error:
        console.print(f"error: {error}", style="red")
        return 2
    console.print(table(ratios, size))
    console.print(f"written to {write(ratios, size, OUT)}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run; its numbers say nothing")
    parser.add_argument("--glue", type=Path, help="folder with sst2/{train,validation}.parquet")
    parser.add_argument("--only", action="append", choices=list(BENCHMARKS), help="repeatable")
    parser.add_argument("--model", default=Size.model, help="model name or folder")
    return parser.parse_args(argv)


def table(ratios: Sequence[Ratio], size: Size) -> Table:
    """Return the ratios as one table."""
    shown = Table(title=f"{size.model} on {size.task}, A B A B ..., medians")
    shown.add_column("what ÷ by what")
    for heading in ("ratio", "min–max", "target", "seconds or MB"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for ratio in ratios:
        style = "green" if ratio.met else "red"
        shown.add_row(
            f"{ratio.top} ÷ {ratio.bottom}",
            f"[{style}]{ratio.median:.2f}[/]",
            f"{min(ratio.ratios):.2f}–{max(ratio.ratios):.2f}",
            f"{ratio.sense} {ratio.target}",
            f"{ratio.seconds(0):.2f} ÷ {ratio.seconds(1):.2f}",
        )
    return shown


def write(ratios: Sequence[Ratio], size: Size, folder: Path) -> Path:
    """Write the numbers with the machine and the versions they were taken on."""
    now = datetime.now(UTC)
    facts = provenance(sys.argv, seed=42)
    facts |= {
        "taken": now.isoformat(timespec="seconds"),
        "load_average": list(os.getloadavg()),
        "size": size.to_dict(),
        "ratios": [ratio.to_dict() for ratio in ratios],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")
    path = folder / f"{now:%Y-%m-%dT%H-%M-%SZ}.json"
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    raise SystemExit(main())
