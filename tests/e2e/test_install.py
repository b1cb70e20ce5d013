"""The wheel: what is in it, and whether it runs beside a folder that has our generic names."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from fakes import tiny_model, tiny_task, write_experiment
from runs import Run

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
# What the wheel's console script does.
ATLAS = "from atlas_flwr.apps.cli import main; main()"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with what is installed here; nothing is downloaded."""
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    words = ("wheel", str(ROOT), "--no-deps", "--no-build-isolation", "--quiet", "-w", str(folder))
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    words = ("install", "--no-deps", "--no-index", "--quiet", "--target", str(folder), str(wheel))
    subprocess.run([sys.executable, "-m", "pip", *words], check=True, timeout=300)
    return folder


def python(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run Python from a folder, the installed wheel before the checkout."""
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def decoy(tmp_path: Path) -> Path:
    """Make a folder of somebody else's, which has packages of our generic names."""
    for name in ("clients", "strategies", "experiments"):
        (tmp_path / "theirs" / name).mkdir(parents=True)
        (tmp_path / "theirs" / name / "__init__.py").write_text("MINE = 'not yours'\n")
    return tmp_path / "theirs"


def test_the_wheel_holds_the_packages_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if ".dist-info" not in top} == {
        *("atlas_flwr", "clients", "strategies", "experiments"),
    }
    assert {"experiments/demo.toml", "atlas_flwr/py.typed", "clients/lora.py"} <= set(names)
    tracked = {
        str(path.relative_to(ROOT))
        for package in ("atlas_flwr", "clients", "strategies", "experiments")
        for path in (ROOT / package).rglob("*.py")
    }
    assert tracked <= set(names)
    assert not [name for name in names if name.endswith((".pyc", ".parquet", ".safetensors"))]


def test_the_installed_wheel_runs(site: Path, tmp_path: Path) -> None:
    said = python(site, tmp_path, "-c", ATLAS, "list")
    assert said.returncode == 0, said
    assert "fedavg" in said.stdout
    assert "demo" in said.stdout


def test_a_folder_with_our_names_is_told_apart(site: Path, decoy: Path) -> None:
    """Python puts ``-m``'s and ``-c``'s folder first, so their packages win: say so and stop."""
    for words in (("-m", "atlas_flwr.apps.cli"), ("-c", ATLAS)):
        said = python(site, decoy, *words, "list")
        assert said.returncode == 1, said
        (line,) = said.stderr.splitlines()
        assert line.startswith("error: ")
        assert str(decoy) in line
        assert str(site) in line
        assert "Traceback" not in said.stderr


def test_the_program_ignores_the_folder_it_is_called_from(site: Path, decoy: Path) -> None:
    """A console script's folder is its own: a run from a folder with decoys is a run."""
    tiny = decoy.parent
    tree = {
        "run": {"rounds": 1, "clients": 2},
        "model": {"name": tiny_model(tiny / "model"), "max-length": 16},
        "data": {"tasks": ["two"], "samples-per-client": 16},
        "task": [tiny_task(tiny / "two")],
        "engine": {"device": "cpu"},
    }
    file = write_experiment(tiny / "e.toml", tree)
    script = tiny / "bin" / "atlas"
    script.parent.mkdir()
    script.write_text(ATLAS)
    for engine in ("inline", "ray"):
        words = (str(script), "run", str(file), "--out", str(tiny / engine), "--engine", engine)
        said = python(site, decoy, *words)
        assert said.returncode == 0, said
    ray, inline = Run.read(tiny / "ray"), Run.read(tiny / "inline")
    assert ray.tensors() == inline.tensors()
