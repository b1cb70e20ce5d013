"""Every command in README and docs runs as written; those tested elsewhere are named here.

A page's files (blocks with a title) are written, then its commands run in order, in a folder of the
page's own. Pages may use what README's commands left, which run before them where that is so.
One page alone: ``pytest tests/e2e/test_readme.py -m slow -k tutorial.md``.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_flwr.config.load import load_config, parse_config
from atlas_flwr.config.suite import parse_suite
from strategies.registry import parse_options

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
README = PAGES["README.md"]
# `make` commands are what CI runs; `flwr run .` has a test of its own.
ELSEWHERE = ("make ", "flwr run . ")
PROGRAMS = {
    "atlas": [sys.executable, "-m", "atlas_flwr.apps.cli"],
    "python": [sys.executable],
}


def blocks(kind: str, text: str) -> list[str]:
    """Blocks of a kind, those with a title too; others with words after the kind are left out."""
    return re.findall(rf'^```{kind}(?: title="[^"]+")?\n(.*?)^```', text, flags=re.DOTALL | re.M)


def files(text: str) -> dict[str, str]:
    """Files a page tells its reader to save."""
    return dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```', text, flags=re.DOTALL | re.M))


def commands(text: str) -> list[tuple[str, int]]:
    """Each command with the exit code it is said to have, `  # exit code 3`, or 0.

    Blocks that open with `bash no-run: why` are left out.
    """
    lines = [line for line in "\n".join(blocks("bash", text)).splitlines() if line.strip()]
    told = (re.search(r"  # exit code (\d)", line) for line in lines)
    codes = (int(code[1]) if code else 0 for code in told)
    return [(line.split("  #")[0].strip(), code) for line, code in zip(lines, codes, strict=True)]


def to_run(text: str) -> list[tuple[str, int]]:
    return [
        (command, code) for command, code in commands(text) if not command.startswith(ELSEWHERE)
    ]


def run_page(page: str, folder: Path) -> None:
    for name, content in files(PAGES[page]).items():
        (folder / name).write_text(content, encoding="utf-8")
    for command, code in to_run(PAGES[page]):
        program, *words = shlex.split(command)
        done = subprocess.run(
            [*PROGRAMS[program], *words], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"{page}: {command}\n{done.stdout}\n{done.stderr}"


def made_by(text: str) -> set[str]:
    """Folders and files that a page's commands and titled blocks make."""
    return set(re.findall(r"--out (\S+)", text)) | set(files(text))


def needs_readme(page: str) -> bool:
    """Tell whether a page's commands name what README's made and its own don't."""
    words = {word for command, _ in to_run(PAGES[page]) for word in shlex.split(command)}
    return bool(words & (made_by(README) - made_by(PAGES[page])))


def test_what_is_not_run_has_a_reason() -> None:
    for page, text in PAGES.items():
        for words in re.findall(r"^```bash ([^\n]*)$", text, flags=re.MULTILINE):
            assert re.fullmatch(r"no-run: .{10,}", words), (page, words)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_run_somewhere(page: str) -> None:
    for command, _ in commands(PAGES[page]):
        known = command.startswith(ELSEWHERE) or command.split()[0] in PROGRAMS
        assert known, command


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page, text in PAGES.items():
        for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), (page, target)


@pytest.fixture(scope="module")
def after_readme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which README's commands have run."""
    folder = tmp_path_factory.mktemp("readme")
    run_page("README.md", folder)
    assert (folder / "runs" / "fedavg" / "report.html").is_file()
    assert (folder / "runs" / "compared" / "comparison.html").is_file()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if to_run(text)])
def test_commands_run_in_order(page: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    if page == "README.md":
        request.getfixturevalue("after_readme")
        return
    if needs_readme(page):
        shutil.copytree(request.getfixturevalue("after_readme"), tmp_path, dirs_exist_ok=True)
    run_page(page, tmp_path)


@pytest.mark.parametrize("text", [b for text in PAGES.values() for b in blocks("toml", text)])
def test_every_piece_of_an_experiment_is_valid(text: str, tmp_path: Path) -> None:
    if re.search(r"^seeds = ", text, flags=re.MULTILINE):
        parse_suite(text)
        return
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    missing = [] if "[data]" in text else ["data.tasks=['bbc']"]
    config = load_config(path, missing)
    assert config == parse_config(config.model_dump(by_alias=True))
    parse_options(config.strategy.name, config.strategy.options)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    made = {"docs/changelog.md", "docs/contributing.md"}  # pages of the site alone
    for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", PAGES[page]):
        path = (ROOT / page).parent / target
        assert path.exists() or path.resolve().relative_to(ROOT).as_posix() in made, target
