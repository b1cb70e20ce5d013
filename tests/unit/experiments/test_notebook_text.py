"""The notebook and its text agree; what it installs, and from where."""

from __future__ import annotations

import zipfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jupytext
import nbformat
import pytest

from atlas_flwr.config.load import build_config
from experiments.colab import TITLES
from strategies.registry import parse_options

FOLDER = Path(__file__).resolve().parents[3] / "experiments"


@pytest.fixture(scope="module")
def text() -> Any:
    return jupytext.read(FOLDER / "atlas_colab.py")


def test_the_notebook_is_its_text_and_has_no_outputs(text: Any) -> None:
    """Mend it with ``jupytext --sync experiments/atlas_colab.py``."""
    notebook = nbformat.read(FOLDER / "atlas_colab.ipynb", as_version=4)
    nbformat.validate(notebook)
    told = [[(cell.cell_type, cell.source) for cell in each.cells] for each in (notebook, text)]
    assert told[0] == told[1]
    assert notebook.metadata.accelerator == "GPU"  # Colab then offers a GPU by itself
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None


def test_all_five_experiments_differ_in_the_method_alone(text: Any) -> None:
    cells = [cell.source for cell in text.cells if "run_quick_experiment(" in cell.source]
    assert len(cells) == len(TITLES)
    own = {"experiment_name", "use_lora", "lora_rank", "strategy", "options", "stop_after"}
    for cell, name in zip(cells, TITLES, strict=True):
        calls: list[dict[str, Any]] = []
        exec(cell, _fakes(calls))
        assert calls[0]["experiment_name"] == name
        assert calls[0]["shared"] == 1
        assert set(calls[0]) - {"shared"} <= own
        told = {"name": calls[0].get("strategy", "fedavg"), "options": calls[0].get("options", {})}
        config = build_config({"data": {"tasks": ["sst2"]}, "strategy": told}, FOLDER)
        parse_options(config.strategy.name, config.strategy.options)


def _fakes(calls: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what an experiment's cell finds in the notebook."""
    return {
        "GpuLog": nullcontext,
        "session": SimpleNamespace(left=lambda: "1h"),
        "SHARED": {"shared": 1},
        "RANKS": [4, 8, 16],
        "run_quick_experiment": lambda **told: calls.append(told),
    }


@pytest.fixture
def find_source(text: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the notebook's own way to find what was uploaded, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    (cell,) = (cell.source for cell in text.cells if "def find_source" in cell.source)
    names: dict[str, Any] = {"DRIVE": None, "Path": Path}
    exec("import shutil\n" + cell.partition("before = torch_version()")[0], names)
    return names


def code(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "pyproject.toml").write_text('[project]\nname = "atlas-flwr"\n')


def test_the_guides_zip_is_found_and_unpacked(find_source: Any, tmp_path: Path) -> None:
    find = find_source["find_source"]
    assert find() is None
    code(tmp_path / "made" / "ATLAS")
    with zipfile.ZipFile(tmp_path / "ATLAS.zip", "w") as archive:
        archive.write(tmp_path / "made/ATLAS/pyproject.toml", "ATLAS/pyproject.toml")
    assert find() == "ATLAS-unzipped/ATLAS"
    assert find() == "ATLAS-unzipped/ATLAS"  # again, over the first


def test_a_folder_the_drive_and_an_address_are_found(find_source: Any, tmp_path: Path) -> None:
    find = find_source["find_source"]
    (tmp_path / "ATLAS").mkdir()
    assert find() is None  # somebody else's folder of that name
    code(tmp_path / "drive" / "ATLAS")
    (tmp_path / "ATLAS").rmdir()
    find_source["DRIVE"] = tmp_path / "drive"
    assert find() == str(tmp_path / "drive" / "ATLAS")
    find_source["SOURCE"] = "git+https://example.org/atlas.git"
    assert find() == "git+https://example.org/atlas.git"
