"""A suite's pictures: convergence, final numbers, accuracy against bytes, clients, differences."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from atlas_flwr.errors import ResultError
from atlas_flwr.results.plots import STYLE, layout
from atlas_flwr.results.plots_lines import caption
from atlas_flwr.results.plots_maps import draw_heat_map, size_of
from atlas_flwr.results.suites.compared import Analysis
from atlas_flwr.results.suites.curves import bands, client_map
from atlas_flwr.results.suites.draw import (
    AXES,
    curve_size,
    draw_curves,
    draw_final,
    draw_forest,
    draw_front,
    row_size,
)
from atlas_flwr.results.suites.rows import SuiteRun, heading, words
from atlas_flwr.results.suites.targets import TARGETS
from atlas_flwr.results.writing import atomic_write

Form = Literal["png", "pdf", "svg"]
# No date: the same suite gives the same file.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}


@dataclass(frozen=True)
class Sheet:
    """Where pictures go and how.

    Attributes:
        folder: Where; files there of the same names are replaced.
        form: The format.
        dpi: Dots per inch, for PNG.
    """

    folder: Path
    form: Form = "png"
    dpi: int = 300

    def draw(self, name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Path:
        """Draw one picture into its file and return its path."""
        path = self.folder / f"{re.sub(r'[^A-Za-z0-9._-]', '-', name)}.{self.form}"
        with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
            figure = Figure(figsize=size, layout=layout())
            FigureCanvasAgg(figure)
            draw(figure)
            buffer = io.BytesIO()
            figure.savefig(buffer, format=self.form, dpi=self.dpi, metadata=_METADATA[self.form])
        atomic_write(path, buffer.getvalue())
        return path


def write_suite_plots(
    runs: Sequence[SuiteRun], found: Analysis, sheet: Sheet
) -> tuple[list[Path], list[str]]:
    """Draw all pictures of a suite.

    Args:
        runs: The runs of the analysis.
        found: Their numbers.
        sheet: Where and how.

    Returns:
        The files, and a sentence for each picture that could not be drawn.

    Raises:
        ResultError: The folder can't be written, or holds a run.
    """
    folder = sheet.folder
    if any((folder / name).exists() for name in ("summary.json", "config.toml")):
        raise ResultError(f"{folder}: holds a run; name another --out")
    paths, missing = list[Path](), list[str]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for setting in found.settings:
            own = [run for run in runs if run.setting == setting]
            ending = f"-{setting}" if len(found.settings) > 1 else ""
            paths += _by_round(own, found, sheet, setting, ending, missing)
            paths += _by_seed(found, sheet, setting, ending, missing)
        if any(line.against and line.against.n for line in found.lines.values()):
            size = row_size(sum(bool(ln.against) for ln in found.lines.values()), found)
            paths.append(
                sheet.draw(f"difference-{found.metric}", size, lambda f: draw_forest(f, found))
            )
        else:
            missing.append("differences: there is nothing to compare with the baseline")
    except OSError as error:
        raise ResultError(f"{folder}: can't be written ({error.strerror or error})") from error
    return paths, missing


def _by_round(
    runs: Sequence[SuiteRun],
    found: Analysis,
    sheet: Sheet,
    setting: str,
    ending: str,
    missing: list[str],
) -> list[Path]:
    """Draw what needs run directories."""
    key = TARGETS.get(found.metric, "accuracy")
    curves = bands(runs, key)
    if all(run.folder is None for run in runs):
        missing.append(f"{setting}: no run directory beside results.csv: no curves, no clients")
        return []
    drawn = {band.label for band in curves}
    if lost := [run.label for run in runs if run.folder and run.label not in drawn]:
        names = ", ".join(dict.fromkeys(lost))
        missing.append(f"{setting}: no round with a number of every seed: {names} not in curves")
    if gone := sum(run.folder is None for run in runs):
        missing.append(
            f"{setting}: {gone} of {len(runs)} runs have no run directory: not in curves"
        )
    size = curve_size(len(curves))
    own = f"own_{key}"  # of each client's own slice: what is measured every round
    title = f"{heading(own)}: {setting}"
    paths = []
    for axis in AXES if curves else ():
        draw_axis = partial(draw_curves, found=curves, axis=axis, title=title, unit=words(own))
        paths.append(sheet.draw(f"own-{key}-by-{axis}{ending}", size, draw_axis))
    clients = client_map(runs, setting)
    if clients is not None:

        def draw(figure: Figure) -> None:
            axes = figure.add_subplot()
            draw_heat_map(clients, axes)
            axes.set_title(clients.title, pad=22)
            caption(axes, clients.caption)

        paths.append(sheet.draw(f"clients{ending}", size_of(clients), draw))
    return paths


def _by_seed(
    found: Analysis, sheet: Sheet, setting: str, ending: str, missing: list[str]
) -> list[Path]:
    """Draw what a results.csv is enough for."""
    lines = [line for line in found.of(setting) if line.mean is not None]
    if not lines:
        missing.append(f"{setting}: no run has a number for {found.metric}")
        return []
    size = row_size(len(lines), found)
    paths = [
        sheet.draw(
            f"final-{found.metric}{ending}", size, lambda f: draw_final(f, lines, found, setting)
        )
    ]
    if any(line.up is not None and line.down is not None for line in lines):
        wide = (9.5, max(4.8, 1.6 + 0.21 * len(lines)))
        paths.append(
            sheet.draw(
                f"{found.metric}-against-bytes{ending}",
                wide,
                lambda f: draw_front(f, lines, found, setting),
            )
        )
    else:
        missing.append(f"{setting}: no bytes in results.csv: no picture against bytes")
    return paths
