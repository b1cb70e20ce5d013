"""The site builds strictly, needs nothing from elsewhere, and its tables are those of the code."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer

from atlas_flwr.apps import cli
from atlas_flwr.apps.commands.shared import app
from atlas_flwr.config.schema import Config
from strategies.facts import FACTS
from strategies.registry import STRATEGIES

ROOT = Path(__file__).resolve().parents[3]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def reference() -> Iterator[ModuleType]:
    sys.path.insert(0, str(DOCS))
    yield importlib.import_module("_reference")
    sys.path.remove(str(DOCS))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(out)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr.strip(), done.stderr  # a warning, or a note on a broken link
    pages = {p.relative_to(out).as_posix(): p.read_text("utf-8") for p in out.rglob("*.html")}
    assert "index.html" in pages
    assert not list(out.rglob("*.py"))
    return pages


# ------------------------------------------------------------------ the site


def test_pages_load_nothing_from_elsewhere(site: dict[str, str]) -> None:
    for page, text in site.items():
        loads = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"', text)
        loads += re.findall(
            r'<link[^>]* rel="(?:stylesheet|icon|preconnect|preload)[^>]* href="([^"]+)"', text
        )
        assert not [url for url in loads if "//" in url], page


def test_nothing_is_left_that_a_hook_should_have_made(site: dict[str, str]) -> None:
    for page, text in site.items():
        for mark in ("<!-- generated", "<!-- method", 'class="arithmatex"', "no-run:", "```"):
            assert mark not in text, (page, mark)
    equations = re.findall(r"<math.*?</math>", "".join(site.values()), flags=re.DOTALL)
    assert len(equations) > 60
    assert not [e for e in equations if "\\" in e or "$" in e]  # TeX that was not understood


def test_each_strategy_has_its_section(site: dict[str, str]) -> None:
    source = (DOCS / "explanation" / "methods.md").read_text("utf-8")
    assert sorted(re.findall(r"<!-- method: (\w+) -->", source)) == sorted(STRATEGIES)
    for name in STRATEGIES:
        assert f'id="{name}"' in site["explanation/methods.html"], name
        assert f"<code>{name}</code>" in site["reference/strategies.html"], name


def test_every_command_option_and_example_is_told(site: dict[str, str]) -> None:
    assert cli  # it adds the commands
    page = re.sub(r"<[^>]+>", "", site["reference/commands.html"])
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        assert f"atlas {name}" in page
        for parameter in command.params:
            names = parameter.opts if parameter.param_type_name == "option" else []
            assert all(option in page for option in names), (name, parameter.name)


# ------------------------------------------------------------------ the tables


def test_every_key_has_a_meaning(reference: ModuleType) -> None:
    for field, info in Config.model_fields.items():
        section = reference._section(info.annotation)
        for key, meaning in reference.keys_of(section, str(info.alias or field)):
            assert meaning, f"{key}: write a docstring below it"


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_option_has_a_meaning(reference: ModuleType, name: str) -> None:
    for key, meaning in reference.keys_of(STRATEGIES[name].options_type, ""):
        assert meaning, f"{name}: {key}"


def test_every_key_and_default_is_on_the_page(reference: ModuleType) -> None:
    page = reference.configuration()
    for field, info in Config.model_fields.items():
        section = reference._section(info.annotation)
        (part,) = re.findall(
            rf"^## `\[+{info.alias or field}\]+`\n(.*?)(?=^## |\Z)", page, re.S | re.M
        )
        schema = section.model_json_schema(by_alias=True)
        for key, told in schema["properties"].items():
            (row,) = re.findall(rf"^\| `{key}` \|.*$", part, flags=re.M)
            default = told.get("default")
            if isinstance(default, str | int | float) and not isinstance(default, bool):
                assert f"`{default}`" in row, row


# ------------------------------------------------------------------ README


def rows_of_readme() -> dict[str, list[str]]:
    """Cells of README's rows by strategy; a row may be of several."""
    text = (ROOT / "README.md").read_text("utf-8").split("## Strategies")[1]
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found |= {name: cells[1:] for name in re.findall(r"`(\w+)`", cells[0])}
    return found


def test_readme_names_every_strategy_once() -> None:
    rows = rows_of_readme()
    assert STRATEGIES.keys() <= rows.keys()


@pytest.mark.parametrize("name", [n for n, row in rows_of_readme().items() if len(row) == 4])
def test_readme_says_what_the_code_says(reference: ModuleType, name: str) -> None:
    _, exact, ranks, moved = rows_of_readme()[name]
    facts = FACTS[name]
    assert exact == facts.exact
    assert ranks == reference.ranks(STRATEGIES[name])
    told = facts.up if facts.up == facts.down else f"{facts.up} / {facts.down}"
    assert moved in (told, f"{facts.up} / {facts.down}"), name
