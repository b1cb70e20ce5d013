"""Installed packages may bring strategies; what can't be taken is one line under its own name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from atlas_flwr.apps.catalogue import describe_catalogue
from atlas_flwr.errors import ConfigError
from atlas_flwr.results.provenance import provenance
from strategies import plugins, registry
from strategies.base import Method

GOOD = "from strategies.fedavg import FedAvg\nclass Mine(FedAvg):\n    summary = 'mine'\n"
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a package with one entry point where Python finds it, as pip would."""

    def put(package: str, code: str, name: str = "mine", value: str | None = None) -> None:
        site, module = tmp_path / package, package.replace("-", "_")
        info = site / f"{module}-1.5.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(code)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(
            f"[atlas_flwr.strategies]\n{name} = {value or f'{module}:Mine'}\n"
        )
        monkeypatch.syspath_prepend(site)
        monkeypatch.delitem(sys.modules, module, raising=False)

    return put


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, type[Method]]]:
    """Read the table anew, as the next process does; the old one is back afterwards."""

    def read() -> dict[str, type[Method]]:
        table = dict(registry.STRATEGIES)
        monkeypatch.setattr(registry, "REFUSED", plugins.add_to(table))
        monkeypatch.setattr(registry, "STRATEGIES", table)
        return table

    return read


def refusal(name: str) -> str:
    with pytest.raises(ConfigError) as error:
        registry.parse_options(name, {})
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("strategy.name: ")
    return str(error.value)


def test_without_packages_the_table_is_ours() -> None:
    assert not registry.REFUSED
    ours = (method.__module__ for method in registry.STRATEGIES.values())
    assert all(module.startswith("strategies.") for module in ours)


def test_a_package_brings_a_strategy(install: Install, taken: Callable[[], dict]) -> None:
    install("good-one", GOOD)
    table = taken()
    assert table["mine"].summary == "mine"
    assert not registry.REFUSED
    registry.parse_options("mine", {})
    assert provenance([], 1)["versions"]["good-one"] == "1.5"
    with pytest.raises(ConfigError, match=r"did you mean 'mine'\?"):
        registry.parse_options("mime", {})


def test_one_of_our_names_is_refused_and_both_owners_told(
    install: Install, taken: Callable[[], dict]
) -> None:
    install("bold-one", GOOD, "fedavg")
    assert taken()["fedavg"].__module__ == "strategies.fedavg"  # tables go on as they were
    said = refusal("fedavg")
    assert "atlas-flwr" in said
    assert "bold-one 1.5" in said
    registry.parse_options("fedprox", {})  # whoever doesn't ask for it is not stopped


def test_two_packages_of_one_name_are_both_refused(
    install: Install, taken: Callable[[], dict]
) -> None:
    install("one-a", GOOD)
    install("one-b", GOOD)
    assert "mine" not in taken()
    assert "one-a 1.5 and in one-b 1.5" in refusal("mine")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_module_anywhere", "ModuleNotFoundError"),
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("def (", "SyntaxError"),
        ("Other = 1", "AttributeError"),
        ("class Mine: pass", "no subclass of strategies.base.Method"),
        ("Mine = 3", "no subclass of strategies.base.Method"),
        (f"{GOOD}    options_type = dict\n", "no subclass of strategies.base.Options"),
    ],
)
def test_a_broken_package_is_one_line_under_its_name(
    install: Install, taken: Callable[[], dict], code: str, words: str
) -> None:
    install("broken-one", code)
    assert "mine" not in taken()
    said = refusal("mine")
    assert words in said
    assert "'mine' of broken-one 1.5 (broken_one:Mine)" in said
    registry.parse_options("fedavg", {})


def test_a_name_that_no_command_could_hold_is_refused(
    install: Install, taken: Callable[[], dict]
) -> None:
    install("odd-one", GOOD, "Über Mine")
    assert "Über Mine" not in taken()
    assert "lower-case letters" in refusal("Über Mine")


def test_the_list_tells_what_was_refused(
    install: Install, taken: Callable[[], dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    install("broken-one", "import no_such_module_anywhere")
    monkeypatch.setattr("atlas_flwr.apps.catalogue.STRATEGIES", taken())
    monkeypatch.setattr("atlas_flwr.apps.catalogue.REFUSED", registry.REFUSED)
    names = list(describe_catalogue().renderables[0].columns[0].cells)  # type: ignore[attr-defined]
    assert names[-1] == "mine"
