"""Where a result comes from: source commit, versions, machine, seed. No names, no secrets."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import psutil

import atlas_flwr

PACKAGES = (
    *("atlas-flwr", "flwr", "torch", "transformers", "peft", "datasets", "ray", "numpy"),
    *("safetensors", "scikit-learn"),
)
STRATEGY_PLUGINS = "atlas_flwr.strategies"
"""Group of the entry points by which other packages bring strategies (`strategies.plugins`)."""


def provenance(argv: Sequence[str], seed: int) -> dict[str, Any]:
    """Return ``provenance.json``'s content.

    ``commit`` and ``dirty`` are null when the package does not run from a git checkout; a package
    that is not installed has a null version. In ``argv`` the home folder is written ``~`` and the
    token of Flower's processes ``***``.

    Args:
        argv: The command as typed.
        seed: The run's seed.
    """
    source = Path(atlas_flwr.__file__).resolve().parents[1]
    commit = said("git", "-C", str(source), "rev-parse", "HEAD") if _is_checkout(source) else None
    changes = said("git", "-C", str(source), "status", "--porcelain") if commit else None
    return {
        "argv": [without_home(word) for word in without_token(argv)],
        "seed": seed,
        "commit": commit,
        "dirty": bool(changes) if changes is not None else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in (*PACKAGES, *_plugins())},
        "machine": {
            "platform": platform.platform(),
            "cpu": _cpu_name(),
            "cpu_count": psutil.cpu_count(),
            "ram_gb": round(psutil.virtual_memory().total / 1e9, 1),
            "gpus": (said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or "")
            .strip()
            .splitlines(),
        },
    }


def without_home(text: str) -> str:
    """Return the text with the user's home folder written ``~``: it usually holds their name."""
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def without_token(argv: Sequence[str]) -> list[str]:
    """Return a command with what it says after ``--token`` written ``***``.

    Flower starts its server process with the run's token in its command; reports are made to be
    shared.

    >>> without_token(["flwr-simulation", "--token", "0d0d", "--insecure"])
    ['flwr-simulation', '--token', '***', '--insecure']
    """
    before = ["", *argv]
    hidden = [
        "***" if last == "--token" else word for last, word in zip(before, argv, strict=False)
    ]
    return ["--token=***" if word.startswith("--token=") else word for word in hidden]


def _is_checkout(folder: Path) -> bool:
    # Not `git rev-parse` alone: an installed package may lie inside somebody else's repository.
    return (folder / ".git").exists()


def _plugins() -> list[str]:
    """Return the installed packages that bring strategies: what a run did may be theirs."""
    found = entry_points(group=STRATEGY_PLUGINS)
    return sorted({point.dist.name for point in found if point.dist})


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def said(program: str, *arguments: str) -> str | None:
    """Return what a program printed; ``None`` when it is not there or failed."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    """Return the processor's name; its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
