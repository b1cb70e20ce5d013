"""The tables of README and of the ATLAS page are those of the committed rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.tables import summary, tables

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "atlas.md"


@pytest.mark.parametrize(
    "table",
    tables(),
    ids=[
        f"{name}{tasks}"
        for name in (
            *("even, six seeds", "even, three seeds", "even, one seed"),
            *("skewed, six seeds", "skewed, three seeds"),
        )
        for tasks in ("", ", task by task")
    ]
    + ["own slices on a CPU"],
)
def test_the_page_has_the_numbers_of_the_rows(table: str) -> None:
    assert len(table.splitlines()) > 4
    assert table in PAGE.read_text(encoding="utf-8")


def test_readme_has_the_numbers_of_the_rows() -> None:
    assert len(summary().splitlines()) == 6
    assert summary() in (ROOT / "README.md").read_text(encoding="utf-8")
