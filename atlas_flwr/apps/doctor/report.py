"""`atlas doctor`: what of this machine an experiment needs, each with its mend."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from atlas_flwr.apps.doctor import machine, network, packages
from atlas_flwr.apps.doctor.checks import Check, fail, ok, warn

_STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}
_GROUPS: Sequence[tuple[str, Sequence[Callable[[], list[Check]]]]] = (
    (
        "Software",
        (packages.python, packages.packages, packages.extras),
    ),
    ("Models and data", (packages.packaged,)),
    (
        "Machine",
        (
            *(machine.gpu, machine.precision, machine.cpu),
            *(machine.memory, machine.shared_memory, machine.disk),
            *(machine.files, machine.clock),
        ),
    ),
    ("Network", (network.ports, network.hub)),
)


def examine(deep: bool = False) -> dict[str, list[Check]]:
    """Return all findings by group; nothing is written outside the temporary folder.

    Args:
        deep: Also run a tiny experiment on Ray and Flower, about a minute.
    """
    found = {name: [c for look in looks for c in _looked(look)] for name, looks in _GROUPS}
    return {**found, "Round trip": [round_trip()]} if deep else found


def _looked(look: Callable[[], list[Check]]) -> list[Check]:
    """Return a look's findings; one that breaks is a finding, and the others are still made."""
    try:
        return look()
    except Exception as error:  # what it looks at is broken, in whatever way
        why = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        name, mend = look.__name__.replace("_", " "), "mend what it says, and ask again"
        return [warn(name, f"can't be looked at: {type(error).__name__}: {why}", mend)]


def round_trip() -> Check:
    """Run two clients for a round on Flower's Ray engine, in the temporary folder."""
    import subprocess  # noqa: PLC0415 - for this alone

    small = ("run.rounds=1", "run.clients=2", "data.samples-per-client=10", "model.max-length=8")
    with tempfile.TemporaryDirectory(prefix="atlas-doctor-") as folder:
        words = [
            *(sys.executable, "-m", "atlas_flwr.apps.cli", "run", "demo", "--engine", "ray"),
            *(word for item in (*small, "data.tasks=['tweets']") for word in ("--set", item)),
            *("--out", str(Path(folder) / "run")),
        ]
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=600, check=False, cwd=folder
            )
        except subprocess.TimeoutExpired:
            mend = "look whether other work takes all cores; try atlas run demo --engine inline"
            return fail("Ray and Flower", "two clients had not trained after 10 minutes", mend)
    if done.returncode == 0:
        return ok("Ray and Flower", "two clients trained for a round")
    said = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
    mend = "mend what it says; atlas run demo --engine inline needs no Ray"
    return fail("Ray and Flower", said, mend)


def run_doctor(console: Console, deep: bool, as_json: bool) -> bool:
    """Print the findings; return whether nothing fails."""
    found = examine(deep)
    checks = [check for group in found.values() for check in group]
    healthy = all(check.status != "fail" for check in checks)
    if as_json:
        told = {"healthy": healthy, "platform": platform.platform()}
        groups = {name: [asdict(check) for check in group] for name, group in found.items()}
        console.file.write(json.dumps({**told, "checks": groups}, indent=2) + "\n")
    else:
        console.print(rendered(found))
    return healthy


def rendered(found: dict[str, list[Check]]) -> RenderableType:
    """Return the findings as tables, a group each, and what they come to."""
    tables: list[RenderableType] = []
    for name, checks in found.items():
        table = Table.grid(padding=(0, 2))
        table.add_column(width=4)
        table.add_column(width=max(len(c.name) for group in found.values() for c in group))
        table.add_column(ratio=1)
        for check in checks:
            told = Text(check.told)
            if check.fix:
                told.append(f"\n→ {check.fix}", style="italic")
            mark = Text(check.status, style=f"bold {_STYLES[check.status]}")
            table.add_row(mark, Text(check.name), told)
        tables += [Text(name, style="bold"), table, Text("")]
    checks = [check for group in found.values() for check in group]
    fails, warns = (sum(c.status == status for c in checks) for status in ("fail", "warn"))
    if fails:
        end = Text(f"{fails} must be mended", style="bold red")
    else:
        end = Text("Nothing stands in the way", style="bold green")
    end.append(f"; {warns} worth a look" if warns else "", style="default")
    return Group(*tables, end)
