"""The house rules that a machine can check: arrows, lengths, and what the pure rooms may import."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("atlas_flwr", "strategies", "clients", "experiments")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# A room may import only rooms of a lower number, or itself.
LEVELS: dict[str, float] = {
    "atlas_flwr": 1.5,  # the public surface: everything below it, nothing above
    "atlas_flwr.errors": 0,
    "atlas_flwr.types": 0,
    "atlas_flwr.flat": 0.5,
    "atlas_flwr.seeding": 1,
    "atlas_flwr.config": 1,
    "atlas_flwr.payload": 0.5,
    "atlas_flwr.greeting": 0.6,
    "atlas_flwr.holding": 0.6,
    "atlas_flwr.host": 0.5,
    "atlas_flwr.wire": 1,
    "atlas_flwr.aggregation": 2,
    "atlas_flwr.fingerprint": 2,
    "atlas_flwr.clustering": 2.5,  # compares fingerprints
    "atlas_flwr.ranks": 2,
    "atlas_flwr.data.partition": 2,
    "atlas_flwr.data.tasks": 2,
    "atlas_flwr.results.record": 2,
    "atlas_flwr.results.rows": 2,
    "atlas_flwr.data": 3,
    "atlas_flwr.models": 3,
    "atlas_flwr.results": 3,
    "atlas_flwr.training": 4,  # trains what models hold
    "atlas_flwr.fingerprint.gradients": 4.4,  # reads rows as training does
    "atlas_flwr.fingerprint.features": 4.5,
    "strategies": 5,
    "clients": 5,
    "atlas_flwr.engine": 6,
    "atlas_flwr.apps": 7,
    "experiments": 8,
}
# What a room may import from outside, where that is restricted.
PURE = {
    "atlas_flwr.flat",
    "atlas_flwr.aggregation",
    "atlas_flwr.fingerprint",
    "atlas_flwr.clustering",
    "atlas_flwr.ranks",
    "atlas_flwr.data.partition",
    "atlas_flwr.results.record",
    "atlas_flwr.results.rows",
}
HEAVY = {"torch", "flwr", "transformers", "peft", "datasets", "pandas", "pyarrow", "ray"}
NO_TORCH = {"strategies", "atlas_flwr.config", "atlas_flwr.wire", "atlas_flwr.results"}
RECORDS = {
    *("atlas_flwr.payload", "atlas_flwr.greeting", "atlas_flwr.holding", "atlas_flwr.wire"),
}
FLOWER_ROOMS = RECORDS | {"atlas_flwr.engine", "atlas_flwr.apps", "clients"}
FLOWER_FILES = {
    "strategies.rounds.exchange",
    "strategies.rounds.federation",
    "strategies.rounds.firewall",
    "strategies.rounds.gate",
    "strategies.rounds.nodes",
    "strategies.rounds.promises",
}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    names = module.split(".")
    for size in range(len(names), 0, -1):
        if (room := ".".join(names[:size])) in LEVELS:
            return room
    raise AssertionError(f"{module} belongs to no room; add it to LEVELS")


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(imported: str) -> bool:
    return imported.split(".", maxsplit=1)[0] in PACKAGES


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_follow_the_arrows(path: Path) -> None:
    room = room_of(module_of(path))
    for imported in filter(ours, imports_of(path)):
        other = room_of(imported)
        siblings = other.rpartition(".")[0] == room.rpartition(".")[0] == "atlas_flwr.results"
        lower = LEVELS[other] < LEVELS[room] or (siblings and LEVELS[other] == LEVELS[room])
        assert other == room or lower, f"{room} imports {imported}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_rooms_import_only_what_they_may(path: Path) -> None:
    module = module_of(path)
    room = room_of(module)
    tops = {imported.split(".")[0] for imported in imports_of(path)}
    if room in PURE:
        assert not tops & HEAVY
    if room in NO_TORCH:
        assert "torch" not in tops
    if room not in FLOWER_ROOMS and module not in FLOWER_FILES:
        assert "flwr" not in tops
    assert not tops & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}


def test_the_package_never_imports_its_apps() -> None:
    assert not any("apps" in name for name in imports_of(ROOT / "atlas_flwr" / "__init__.py"))


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node, clean=False) or ""
            code = node.end_lineno - node.lineno + 1 - len(doc.splitlines())
            assert code <= 40, f"{node.name} has {code} lines"
