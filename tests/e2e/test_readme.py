"""Every command in README and docs runs as written; those tested elsewhere are named here."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from atlas_flwr.config.load import load_config, parse_config
from strategies.registry import parse_options

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path: path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
README = PAGES[ROOT / "README.md"]
# `make` commands are what CI runs; `flwr run .` has a test of its own.
ELSEWHERE = ("make ", "flwr run . ")


def blocks(kind: str) -> list[str]:
    texts = PAGES.values()
    return [b for text in texts for b in re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)]


def commands() -> dict[str, int]:
    """Each command with the exit code it is said to have, `  # exit code 3`, or 0.

    Blocks that open with `bash no-run: why` are left out.
    """
    lines = [line for line in "\n".join(blocks("bash")).splitlines() if line.strip()]
    told = (re.search(r"  # exit code (\d)", line) for line in lines)
    codes = (int(code[1]) if code else 0 for code in told)
    return {line.split("  #")[0].strip(): code for line, code in zip(lines, codes, strict=True)}


def test_what_is_not_run_has_a_reason() -> None:
    for page, text in PAGES.items():
        for words in re.findall(r"^```bash ([^\n]*)$", text, flags=re.MULTILINE):
            assert re.fullmatch(r"no-run: .{10,}", words), (page, words)


def test_every_command_is_run_somewhere() -> None:
    assert len(commands()) >= 6
    for command in commands():
        assert command.startswith(("atlas ", *ELSEWHERE)), command


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.slow
def test_atlas_commands_run_in_order(tmp_path: Path) -> None:
    for command, code in commands().items():
        if command.startswith(ELSEWHERE):
            continue
        words = [sys.executable, "-m", "atlas_flwr.apps.cli", *shlex.split(command)[1:]]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs" / "fedavg" / "report.html").is_file()
    assert (tmp_path / "runs" / "compared" / "comparison.html").is_file()


@pytest.mark.parametrize("text", blocks("toml"))
def test_every_piece_of_an_experiment_is_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text, encoding="utf-8")
    missing = [] if "[data]" in text else ["data.tasks=['bbc']"]
    config = load_config(path, missing)
    assert config == parse_config(config.model_dump(by_alias=True))
    parse_options(config.strategy.name, config.strategy.options)


def test_links_lead_somewhere() -> None:
    for page, text in PAGES.items():
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (page.parent / target).exists(), target
