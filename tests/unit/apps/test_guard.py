"""A stranger's package of one of our generic names is refused before it is imported."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

from atlas_flwr.apps import guard
from atlas_flwr.errors import AtlasError


def look(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    """Make the guard find packages as an import would with the folders first on the path."""
    path = [*map(str, folders), *sys.path]
    monkeypatch.setattr(guard, "find_spec", lambda name: PathFinder.find_spec(name, path))


@pytest.mark.parametrize("name", ["clients", "strategies"])
@pytest.mark.parametrize("file", ["{}/__init__.py", "{}.py"])
def test_both_paths_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str
) -> None:
    decoy = tmp_path / file.format(name)
    decoy.parent.mkdir(exist_ok=True)
    decoy.write_text("raise SystemExit('imported')")
    look(monkeypatch, tmp_path)
    with pytest.raises(AtlasError) as told:
        guard.assert_one_checkout()
    home = Path(guard.__file__).parents[2]
    assert f"'{name}'" in str(told.value)
    assert str(decoy) in str(told.value)
    assert str(home) in str(told.value)


def test_a_folder_that_is_no_package_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients" / "list.txt").write_text("mine")
    look(monkeypatch, tmp_path)
    guard.assert_one_checkout()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "find_spec", lambda name: None)
    with pytest.raises(AtlasError, match="'clients' is missing"):
        guard.assert_one_checkout()
