"""What tests of deployments share: the page's commands, a clone, and what must equal what."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runs import Run

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
SECONDS = 400.0


def on_page(kind: str) -> list[str]:
    """Return the page's blocks of a kind whose opening line ends as given."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)


def plain_commands() -> list[str]:
    """Return the page's commands for several machines, in its order."""
    return [line for b in on_page(r"bash no-run: tests/e2e/[^\n]*") for line in b.splitlines()]


def checkout(folder: Path) -> Path:
    """Copy what a clone would hold."""
    words = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def assert_same(found: Run, expected: Run) -> None:
    """Check that two runs differ in clocks, memory, and where private parts lie."""
    assert found.measured() == expected.measured()
    theirs = expected.tensors()
    assert {path: data for path, data in theirs.items() if path in found.tensors()} == (
        found.tensors()
    )
    assert found.rows().equals(expected.rows())
    for mine, other in zip(found.rounds, expected.rounds, strict=True):
        for way in ("by_kind_up", "by_kind_down"):
            for kind in ("adapter", "head", "weights", "fingerprint"):
                assert mine[way][kind] == other[way][kind]


def inline(program: Callable[..., Any], file: Path, out: Path) -> Run:
    """Run an experiment in this process's children, without Flower."""
    said = program("run", file, "--out", out, "--engine", "inline", "--set", "engine.workers=1")
    assert said.returncode == 0, said
    return Run.read(out)
