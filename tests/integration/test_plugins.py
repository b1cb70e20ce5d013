"""A package of the user's own, built from the page that shows it, runs a federation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from fakes import write_experiment
from runs import Run

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "strategy.md"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Build the page's wheel and unpack it, as pip does into an environment."""
    source = tmp_path / "source"
    source.mkdir()
    text = PAGE.read_text("utf-8")
    for name, content in re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', text, re.S | re.M):
        (source / name).write_text(content, encoding="utf-8")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("halfway_atlas-1.0-*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path / "site")
    return tmp_path / "site"


@pytest.mark.slow
def test_another_process_finds_an_installed_strategy(
    site: Path, run: Callable[..., Run], tree: dict[str, Any], tmp_path: Path, no_report: None
) -> None:
    mean = run("fedavg", run={"rounds": 1})
    chosen = {"name": "halfway", "options": {"share": 0.25}}
    file = write_experiment(tmp_path / "h.toml", tree, run={"rounds": 1}, strategy=chosen)
    out = tmp_path / "halfway"
    done = subprocess.run(
        [sys.executable, "-m", "atlas_flwr.apps.cli", "run", str(file), "--out", str(out)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended = Run.read(out)
    assert ended.summary["strategy"] == "halfway"
    assert '"halfway-atlas": "1.0"' in (out / "provenance.json").read_text()
    ours, whole = (
        load_file(r.folder / "adapters/global/adapter_model.safetensors") for r in (ended, mean)
    )
    for name, tensor in whole.items():
        if "lora_B" in name:  # it starts at zero
            assert ours[name] == pytest.approx(0.25 * tensor, rel=1e-5, abs=1e-9)
