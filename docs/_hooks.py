"""What MkDocs does with the pages beside turning them into HTML; everything happens offline.

- `<!-- generated: NAME -->` becomes a table made from the code (`_reference.py`), and
  `<!-- method: NAME -->` what the method's class says of itself.
- Links to files of the repository outside docs/ lead to copies of them.
- `bash no-run: why` becomes a code block with its reason below.
- Equations become MathML, which browsers draw without a script.
"""

from __future__ import annotations

import html
import posixpath
import re
from pathlib import Path
from typing import Any

import _reference
from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
# Files outside docs/ that are pages of the site.
PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_LINK = re.compile(r"(\]\()((?:\.\./)*[^)#\s:]+)([^)]*\))")
_MARK = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
_METHOD = re.compile(r"^<!-- method: ([a-z_]+) -->$", re.MULTILINE)
_NO_RUN = re.compile(r"^```bash no-run: ([^\n]+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EQUATION = re.compile(
    r'<(span|div) class="arithmatex">\\[\(\[](.*?)\\[\)\]]</\1>', re.DOTALL | re.MULTILINE
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files that lie outside docs/."""
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
    for page in [file for file in files if file.is_documentation_page()]:
        for _, link, _ in _LINK.findall(page.content_string):
            outside = _outside(page.src_uri, link)
            if outside is None or outside in PAGES:
                continue
            target = f"files/{outside}"
            if not files.get_file_from_path(target):
                # A page of the repository stays the text it is.
                text = (ROOT / outside).read_text(encoding="utf-8")
                name = target.replace(".md", ".txt")
                files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put generated tables in, turn links outwards to copies, tell why a block is not run."""
    if page.file.src_uri not in PAGES.values():
        markdown = _LINK.sub(lambda link: _copied(page.file.src_uri, link), markdown)
    else:
        markdown = _LINK.sub(lambda link: _from_root(page.file.src_uri, link), markdown)
    markdown = _MARK.sub(lambda mark: _reference.TABLES[mark[1]](), markdown)
    markdown = _METHOD.sub(lambda mark: _reference.method_text(mark[1]), markdown)
    return _NO_RUN.sub(_with_reason, markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turn equations into MathML."""
    return _EQUATION.sub(lambda found: equation(found[2], found[1] == "div"), content)


def equation(escaped: str, block: bool) -> str:
    """Return one equation as MathML, in a box of its own if it is a block."""
    tex = html.unescape(escaped).strip()
    math = convert(tex, display="block" if block else "inline")
    return f'<div class="equation">{math}</div>' if block else math


def _outside(page: str, link: str) -> str | None:
    """Return the repository path of a link that leaves docs/, else None."""
    if page in PAGES.values():
        source = link
    else:
        source = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if source.startswith("docs/") or not (ROOT / source).is_file() else source


def _copied(page: str, link: re.Match[str]) -> str:
    """Return a link of a page to a file outside docs/ as one to its copy."""
    outside = _outside(page, link[2])
    if outside is None:
        return link[0]
    target = PAGES.get(outside, f"files/{outside}".replace(".md", ".txt"))
    return f"{link[1]}{posixpath.relpath(target, posixpath.dirname(page) or '.')}{link[3]}"


def _from_root(page: str, link: re.Match[str]) -> str:
    """Return a link of a page that lies in the root as seen from docs/."""
    if link[2].startswith("docs/"):
        return f"{link[1]}{link[2].removeprefix('docs/')}{link[3]}"
    return _copied(page, link)


def _with_reason(block: re.Match[str]) -> str:
    return f'```bash\n{block[2]}```\n\n<p class="why-not">Not run by the tests: {block[1]}.</p>'
