"""The Colab notebook, executed from top to bottom, offline."""

from __future__ import annotations

import csv
import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nbformat
import pytest

from experiments.colab import TITLES
from experiments.colab.results import COLUMNS
from experiments.guided import ROUND_KEYS
from fakes import tiny_model, tiny_task
from guide import atlas_set

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = (
    "model.name=minilm;model.max-length=16;data.tasks=['bbc','tweets'];run.rounds=2;run.clients=3;"
    "data.samples-per-client=32;engine.kind=inline;engine.device=cpu"
)


def execute(folder: Path, told: str, source: Path | None = None) -> Any:
    """Execute the notebook in a folder as Jupyter does; return it with its outputs."""
    notebook = folder / "atlas_colab.ipynb"
    shutil.copy(source or ROOT / "experiments" / "atlas_colab.ipynb", notebook)
    done = subprocess.run(
        [sys.executable, "-m", "jupyter", "execute", "--inplace", notebook.name],
        cwd=folder,
        env={**os.environ, "ATLAS_SET": told},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return nbformat.read(notebook, as_version=4)


def printed(notebook: Any) -> str:
    """Return what all cells wrote."""
    outputs = (out for cell in notebook.cells for out in cell.get("outputs", ()))
    return "".join(out.text for out in outputs if out.output_type == "stream")


def tables(notebook: Any) -> list[str]:
    """Return the tables that cells showed."""
    outputs = (out for cell in notebook.cells for out in cell.get("outputs", ()))
    return [out.data["text/html"] for out in outputs if "text/html" in out.get("data", {})]


def assert_guide_is_kept(folder: Path, notebook: Any, rounds: int) -> None:
    """Check everything the guide promises of ``results/``."""
    results = folder / "results"
    for name in TITLES:
        told = json.loads((results / f"{name}.json").read_text())
        assert told["experiment_name"] == name
        assert [tuple(each) for each in told["round_results"]] == [ROUND_KEYS] * rounds
        assert 0 <= told["final_accuracy"] <= 1
    with (results / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [row["Experiment"] for row in rows] == list(TITLES.values())
    assert len({row["Task"] for row in rows}) == 1  # like with like
    for name in ("convergence", "memory", "communication", "final_accuracy"):
        width, dots = png(results / f"{name}.png")
        assert width > 1000
        assert dots / 39.37 > 150
    with zipfile.ZipFile(folder / "results.zip") as archive:
        inside = archive.namelist()
    assert {f"results/{name}.json" for name in TITLES} < set(inside)
    assert "results/runs/exp4_atlas/report.html" in inside
    assert not [name for name in inside if "/checkpoints/" in name or "/models/" in name]
    said = printed(notebook)
    assert said.count("[INIT] Using device: cpu") == len(TITLES)
    assert said.count(f"[ROUND 1/{rounds}]\n") == len(TITLES)
    shown = tables(notebook)
    assert len(shown) == 1 + len(TITLES)
    for evidence in shown[1:]:
        assert "by torch's cross_entropy" in evidence.replace("&#x27;", "'")
        assert "<td>False</td>" not in evidence


def png(path: Path) -> tuple[int, int]:
    """Return a PNG's width and its dots a metre."""
    data = path.read_bytes()
    (width,) = struct.unpack(">I", data[16:20])
    at = data.index(b"pHYs") + 4
    return width, struct.unpack(">I", data[at : at + 4])[0]


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path) -> None:
    tasks = [
        tiny_task(tmp_path / "tasks" / "two", "csv", seed=1),
        tiny_task(tmp_path / "tasks" / "three", "parquet", num_labels=3, seed=3),
    ]
    small = ("run.rounds=1", "run.clients=3", "train.batch-size=8")
    told = atlas_set(tiny_model(tmp_path / "model"), tasks, *small)
    assert_guide_is_kept(tmp_path, execute(tmp_path, told), rounds=1)


@pytest.mark.slow
def test_the_notebook_runs_on_real_text_and_after_a_lost_session(tmp_path: Path) -> None:
    notebook = execute(tmp_path, PACKAGED)
    assert_guide_is_kept(tmp_path, notebook, rounds=2)
    # The session is lost in experiment 4, between its run and its file; the rest had not begun.
    for name in ("exp4_atlas.json", "exp5_multitask.json", "summary.csv"):
        (tmp_path / "results" / name).unlink()
    (tmp_path / "results/runs/exp4_atlas/summary.json").unlink()
    shutil.rmtree(tmp_path / "results/runs/exp5_multitask")
    again = execute(tmp_path, PACKAGED)
    said = printed(again)
    assert said.count("is finished: its results are read") == 3
    assert "[INIT] Going on after round 2" in said
    assert said.count("[ROUND 1/2]") == 1  # the fifth's


@pytest.mark.slow
def test_the_guides_zip_is_installed_and_torch_stays(tmp_path: Path) -> None:
    """What pip would fetch is there already; it installs into a folder of its own."""
    pytest.importorskip("hatchling")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with zipfile.ZipFile(tmp_path / "ATLAS.zip", "w") as archive:
        for name in files.splitlines():
            if (ROOT / name).is_file():
                archive.write(ROOT / name, f"ATLAS/{name}")
    source = nbformat.read(ROOT / "experiments" / "atlas_colab.ipynb", as_version=4)
    first = next(i for i, cell in enumerate(source.cells) if "def find_source" in cell.source)
    site = tmp_path / "site"
    here = nbformat.v4.new_code_cell(
        "import os, sys\n"
        f"os.environ |= {{'PIP_TARGET': {str(site)!r}, 'PIP_NO_DEPS': '1', 'PIP_NO_INDEX': '1', "
        f"'PIP_NO_BUILD_ISOLATION': '0'}}\nsys.path.insert(0, {str(site)!r})"
    )
    end = nbformat.v4.new_code_cell(
        "import experiments, real_training\nprint(experiments.__file__)"
    )
    settings = source.cells[first + 2]
    source.cells = [here, *source.cells[: first + 1], settings, end]
    nbformat.write(source, tmp_path / "short.ipynb")
    said = printed(execute(tmp_path, "", tmp_path / "short.ipynb"))
    assert "from ATLAS-unzipped/ATLAS; torch " in said
    assert f"{site}/experiments/__init__.py" in said
    assert (site / "experiments" / "atlas_colab.ipynb").is_file()


@pytest.mark.slow
@pytest.mark.ray
def test_experiments_run_on_flowers_engine_inside_a_notebook(tmp_path: Path) -> None:
    tasks = [tiny_task(tmp_path / "tasks" / "two", "csv", seed=1)]
    told = atlas_set(tiny_model(tmp_path / "model"), tasks, "run.rounds=1", "engine.kind=ray")
    source = nbformat.v4.new_notebook()
    call = (
        "from experiments.real_training import run_quick_experiment\n"
        "told = run_quick_experiment('exp2_lora_fl', num_clients=2, use_lora=True)\n"
        "print(len(told['round_results']), 'round')"
    )
    source.cells = [nbformat.v4.new_code_cell(call)]
    nbformat.write(source, tmp_path / "short.ipynb")
    said = printed(execute(tmp_path, told, tmp_path / "short.ipynb"))
    assert "[ROUND 1/1]" in said
    assert "1 round" in said


@pytest.mark.slow
def test_a_mistake_is_one_line_and_stops_the_cells_below(tmp_path: Path) -> None:
    cells = (
        "from experiments.colab import plain_errors\n"
        "from experiments.real_training import run_quick_experiment\nplain_errors()",
        "run_quick_experiment('a', task_name='sst-2')",
        "print('went on')",
    )
    source = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(source, tmp_path / "e.ipynb")
    words = ("-m", "jupyter", "execute", "--inplace", "e.ipynb")
    done = subprocess.run(
        [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "did you mean 'sst2'" in done.stderr
    assert "went on" not in done.stderr + done.stdout
