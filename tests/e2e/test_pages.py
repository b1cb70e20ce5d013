"""The report and the comparison as a browser shows them: on a phone, on a desk, dark, printed."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import tiny_model, write_experiment

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--virtual-time-budget=4000", "--enable-logging=stderr"),
)
DARK = "--blink-settings=preferredColorScheme=0"
# A window can't be narrower than 500 pixels, a frame can; its media queries are the frame's.
FRAME = """<!DOCTYPE html><body style="margin:0"><pre id="said"></pre>
<iframe id="page" style="border:0" width="{width}" height="4000" srcdoc="{page}"></iframe>
<script>
const frame = document.getElementById("page");
frame.onload = () => {{
  const d = frame.contentDocument, out = [];
  for (const text of d.querySelectorAll("figure:not(.wide) svg text, .facts dd, h1, h2, .lead")) {{
    const box = text.closest("figure, .facts div, main").getBoundingClientRect();
    const own = text.getBoundingClientRect();
    if (own.right > box.right + 1 || own.left < box.left - 1) out.push(text.textContent);
  }}
  const said = {{
    wide: d.scrollingElement.scrollWidth, room: frame.contentWindow.innerWidth, out: out,
    back: frame.contentWindow.getComputedStyle(d.body).backgroundColor,
    figures: d.querySelectorAll("figure svg").length,
  }};
  document.getElementById("said").textContent = JSON.stringify(said);
}};
</script>"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None, reason="no Chromium here: install Debian's package 'chromium'"
    ),
]


def browse(tmp_path: Path, address: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(BROWSER), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", *words, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]) -> dict[str, Path]:
    """Give the page of an ATLAS run and of a comparison over two seeds, made by the programs."""
    home = tmp_path_factory.mktemp("pages")
    model = {"name": tiny_model(home / "model", "distilbert"), "max-length": 16, "head": "auto"}
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def atlas(*words: object) -> None:
        command = [sys.executable, "-m", "atlas_flwr.apps.cli", *map(str, words)]
        subprocess.run(command, cwd=home, env=env, check=True, capture_output=True, timeout=600)

    engine = {"kind": "inline", "device": "cpu", "workers": 1}
    runs = []
    for name, strategy, seed in (("a", "atlas", 1), ("b", "fedavg", 1), ("c", "fedavg", 2)):
        sections = {"run": {"seed": seed}, "strategy": {"name": strategy}, "engine": engine}
        file = write_experiment(home / f"{name}.toml", tree | {"model": model}, **sections)
        atlas("run", file, "--out", home / name)
        runs.append(home / name)
    atlas("compare", *runs, "--out", home / "comparison")
    return {"report": runs[0] / "report.html", "comparison": home / "comparison/comparison.html"}


@pytest.fixture
def seen(pages: dict[str, Path], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def look(name: str, width: int, *words: str) -> dict[str, Any]:
        page = html.escape(pages[name].read_text(encoding="utf-8"))
        frame = tmp_path / "frame.html"
        frame.write_text(FRAME.format(width=width, page=page), encoding="utf-8")
        done = browse(tmp_path, frame.as_uri(), "--dump-dom", *words)
        assert "CONSOLE" not in done.stderr, done.stderr
        told = re.search(r'<pre id="said">(.+?)</pre>', done.stdout)
        assert told, "the page did not load"
        return dict(json.loads(html.unescape(told[1])))

    return look


@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_screen(
    seen: Callable[..., dict[str, Any]], name: str, width: int
) -> None:
    light, dark = seen(name, width), seen(name, width, DARK)
    for told in (light, dark):
        assert told["room"] == width
        assert told["wide"] <= width
        assert told["out"] == []
        assert told["figures"] >= 2
    assert light["back"] != dark["back"]


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_it_prints(pages: dict[str, Path], tmp_path: Path, name: str) -> None:
    paper = tmp_path / "page.pdf"
    browse(tmp_path, pages[name].as_uri(), f"--print-to-pdf={paper}", "--no-pdf-header-footer")
    assert paper.read_bytes().startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) >= 1
