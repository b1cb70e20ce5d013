"""The two text sets that come as ordinary wheels; their files are read, their code is not run."""

from __future__ import annotations

import csv
import importlib.metadata
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from atlas_flwr.data.files import first_line
from atlas_flwr.data.tasks import TaskSpec
from atlas_flwr.errors import DataError


def packaged_path(spec: TaskSpec) -> Path:
    """Return the file or folder that holds a packaged task's rows, without importing the package.

    Raises:
        DataError: The package or its data is not installed.
    """
    assert spec.package is not None
    assert spec.path is not None
    found = importlib.util.find_spec(spec.package)
    folders = (found.submodule_search_locations if found else None) or []
    for folder in folders:
        path = Path(folder) / spec.path
        if path.exists():
            return path
    raise DataError(
        f"data.tasks: '{spec.name}' needs the package '{spec.package}'; "
        "pip install 'atlas-flwr[packaged]'"
    )


def packaged_version(spec: TaskSpec) -> str:
    """Return the installed version of a packaged task's package.

    Raises:
        DataError: The package is not installed.
    """
    assert spec.package is not None
    packaged_path(spec)
    return importlib.metadata.version(spec.package)


def read_packaged(spec: TaskSpec) -> tuple[list[tuple[str, ...]], list[int]]:
    """Return the distinct texts of a packaged task and their labels, in file order.

    Of copies with one label the first stays; texts whose copies contradict each other go.

    Raises:
        DataError: The package is not installed, can't be read, or holds an unknown label.
    """
    path = packaged_path(spec)
    names = spec.label_names
    assert names is not None
    try:
        rows = list(_documents(path) if path.is_dir() else _csv_rows(path, spec))
    except (OSError, csv.Error) as error:
        raise DataError(f"{path}: can't be read: {first_line(error)}") from error
    unknown = {label for _, label in rows} - {*names}
    if unknown or not rows:
        raise DataError(
            f"{path}: expected labels {', '.join(names)}; found {sorted(unknown) or 'no rows'}; "
            f"reinstall {spec.package}"
        )
    return _distinct([((text,), names.index(label)) for text, label in rows])


def row_key(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Return what two rows that differ in case or white space alone have in common.

    >>> row_key(("A  b ",)) == row_key(("a B",))
    True
    """
    return tuple(" ".join(text.casefold().split()) for text in texts)


def _distinct(
    rows: list[tuple[tuple[str, ...], int]],
) -> tuple[list[tuple[str, ...]], list[int]]:
    labels_of: dict[tuple[str, ...], set[int]] = {}
    first: dict[tuple[str, ...], tuple[str, ...]] = {}
    for texts, label in rows:
        key = row_key(texts)
        labels_of.setdefault(key, set()).add(label)
        first.setdefault(key, texts)
    kept = [key for key, labels in labels_of.items() if len(labels) == 1 and any(key)]
    return [first[key] for key in kept], [min(labels_of[key]) for key in kept]


def _documents(folder: Path) -> Iterable[tuple[str, str]]:
    """Yield ``(document, topic)`` from one folder a topic, in sorted order."""
    for topic in sorted(p for p in folder.iterdir() if p.is_dir()):
        for file in sorted(topic.glob("*.txt")):
            content = file.read_bytes()
            try:
                text = content.decode("utf-8")
            except UnicodeDecodeError:
                text = content.decode("latin-1")  # every byte has a meaning there: can't fail
            yield text, topic.name


def _csv_rows(file: Path, spec: TaskSpec) -> Iterable[tuple[str, str]]:
    """Yield ``(text, label)`` from a latin-1 csv with a header."""
    with file.open(encoding="latin-1", newline="") as lines:
        for row in csv.DictReader(lines):
            yield row.get(spec.text[0]) or "", row.get(spec.label) or ""
