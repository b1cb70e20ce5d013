"""A suite's tables for the terminal, for Markdown, for LaTeX, and all numbers as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import rich.table
import rich.text
from rich.console import Console, Group, RenderableType

from atlas_flwr.results.suites.compared import Analysis, Line
from atlas_flwr.results.suites.grids import Grid, Text, grids

BEST = "*"
"""Marks the best mean of a setting in plain text."""

_LATEX = {
    "\\": r"\textbackslash{}",
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",
    "]": "{]}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "⁶": r"\textsuperscript{6}",
}


def to_rich(found: Analysis) -> RenderableType:
    """Return the tables for the terminal."""
    shown: list[RenderableType] = []
    for grid in grids(found, BEST):
        table = rich.table.Table(
            title=rich.text.Text(grid.title, style="bold"),
            title_justify="left",
        )
        table.add_column(grid.columns[0], overflow="fold", min_width=10)
        for name in grid.columns[1:]:
            table.add_column(rich.text.Text(name), justify="right")
        for heading, rows in grid.sections:
            table.add_section()
            if heading is not None:
                table.add_row(rich.text.Text(heading, style="bold"))
            for row in rows:
                table.add_row(*map(_rich_cell, row))
        shown += [table, rich.text.Text(f"{grid.caption}\n", style="dim")]
    return Group(*shown)


def _rich_cell(cell: Text) -> rich.text.Text:
    # A file and many a terminal know no bold.
    return rich.text.Text(f"{cell.text} {BEST}", "bold") if cell.bold else rich.text.Text(cell.text)


def to_text(found: Analysis) -> str:
    """Return what the terminal shows, as wide as it needs, without colour."""
    console = Console(file=io.StringIO(), width=160, color_system=None)
    with console.capture() as captured:
        console.print(to_rich(found))
    return captured.get()


def to_markdown(found: Analysis) -> str:
    """Return the tables as GitHub's Markdown; a section's name is in the first column, in bold."""
    parts = []
    for grid in grids(found):
        lines = [f"**{_md(grid.title)}**", "", _md_row(map(_md, grid.columns))]
        lines.append(_md_row(["---", *["---:"] * (len(grid.columns) - 1)]))
        for heading, rows in grid.sections:
            if heading is not None:
                lines.append(_md_row([f"**{_md(heading)}**", *[""] * (len(grid.columns) - 1)]))
            lines += [_md_row(map(_md_cell, row)) for row in rows]
        parts.append("\n".join([*lines, "", _md(grid.caption)]))
    return "\n\n".join(parts) + "\n"


def _md_row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _md_cell(cell: Text) -> str:
    return f"**{_md(cell.text)}**" if cell.bold else _md(cell.text)


def _md(text: str) -> str:
    """Return text in which nothing is markup: marks are escaped."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def to_latex(found: Analysis) -> str:
    """Return the tables as LaTeX with booktabs; every name is escaped."""
    head = (
        "% \\usepackage{booktabs}\n% A wide table: put it into \\resizebox{\\linewidth}{!}{...}\n"
    )
    return head + "\n".join(_latex_table(grid) for grid in grids(found))


def _latex_table(grid: Grid) -> str:
    width = len(grid.columns)
    lines = [
        r"\begin{table}[tb]",
        r"\centering",
        rf"\caption{{{escape(grid.title)}. {escape(grid.caption)}}}",
        rf"\label{{tab:{grid.name}}}",
        rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
        r"\toprule",
        _latex_row([escape(name) for name in grid.columns]),
        r"\midrule",
    ]
    for index, (heading, rows) in enumerate(grid.sections):
        if heading is not None:
            lines += [r"\midrule"] if index else []
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\textbf{{{escape(heading)}}}}} \\")
        lines += [_latex_row([_latex_cell(cell) for cell in row]) for row in rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _latex_row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_cell(cell: Text) -> str:
    return rf"\textbf{{{escape(cell.text)}}}" if cell.bold else escape(cell.text)


def escape(text: str) -> str:
    r"""Return text in which LaTeX sees no command; ``[`` too, which after ``\\`` is a length.

    >>> escape("fed_avg & 50 % < ±")
    'fed\\_avg \\& 50 \\% \\textless{} $\\pm$'
    """
    return "".join(_LATEX.get(letter, letter) for letter in text)


def to_csv(found: Analysis) -> str:
    """Return one line for each label of each setting, every number in full precision."""
    rows = [_csv_row(found, line) for setting in found.settings for line in found.of(setting)]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _csv_row(found: Analysis, line: Line) -> dict[str, Any]:
    against, corrected, target = line.against, line.holm or {}, line.target

    def of(thing: Any, name: str) -> Any:
        return None if thing is None else getattr(thing, name)

    return {
        "metric": found.metric,
        **{key: getattr(line, key) for key in ("setting", "label", "strategy", "n")},
        **{key: getattr(line, key) for key in ("mean", "std", "best")},
        "baseline": found.baseline,
        "pairs": of(against, "n"),
        "dropped": of(against, "dropped"),
        "difference": of(against, "mean"),
        "confidence": found.confidence,
        "low": of(against, "low"),
        "high": of(against, "high"),
        "t_p": of(against, "t_p"),
        "t_p_holm": corrected.get("t"),
        "t_family": found.family["t"],
        "wilcoxon_p": of(against, "wilcoxon_p"),
        "wilcoxon_p_holm": corrected.get("wilcoxon"),
        "wilcoxon_family": found.family["wilcoxon"],
        **{k: of(against, k) for k in ("d_z", "g_z", "rank_biserial", "wins", "losses", "ties")},
        "worst_client_accuracy": line.worst,
        "bytes_up": line.up,
        "bytes_down": line.down,
        "target": found.target,
        "target_runs": of(target, "runs"),
        "target_reached": of(target, "reached"),
        "rounds_to_target": of(target, "rounds"),
        "bytes_to_target": of(target, "bytes"),
    }


FORMATS: dict[str, Callable[[Analysis], str]] = {
    "text": to_text,
    "md": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
}
BY_ENDING = {".md": "md", ".tex": "latex", ".csv": "csv"}
"""Formats by the ending of the file they are written to."""
