"""The notebook's comparison plots: like with like, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from atlas_flwr.results.compare_output import write_comparison
from atlas_flwr.results.plots import STYLE, layout, save
from atlas_flwr.results.plots_lines import shown_label
from atlas_flwr.results.plots_maps import MARKERS, QUIET
from atlas_flwr.results.series import PALETTE, curve, tasks_of
from experiments.colab.results import Done, mean_of, value_of


def write_plots(done: Sequence[Done], out: str | Path = "results") -> list[Path]:
    """Draw what the experiments share an axis for, and return the PNG files (160 dpi).

    ``convergence.png`` (accuracy, loss), ``memory.png``, ``communication.png`` (MB a round;
    accuracy by MB so far), ``final_accuracy.png``; and ``comparison/`` with a page.
    """
    out = Path(out)
    drawn = {
        "convergence": (2, (_accuracy, _loss)),
        "memory": (1, (_memory,)),
        "communication": (2, (_communication, _bought)),
        "final_accuracy": (1, (_final,)),
    }
    paths = []
    for name, (wide, panels) in drawn.items():
        with mpl.rc_context(STYLE):
            size = (7.0 * wide, 4.8 if wide > 1 else 0.62 * len(done) + 2.0)
            figure = Figure(figsize=size, layout=layout())
            FigureCanvasAgg(figure)
            for place, draw in enumerate(panels):
                draw(figure.add_subplot(1, wide, place + 1), done)
            if wide > 1:
                axes = figure.axes[-1]
                if axes.get_legend_handles_labels()[0]:  # something was measured
                    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
            paths.append(out / f"{name}.png")
            save(figure, paths[-1])
    write_comparison([each.run for each in done], out / "comparison")
    return paths


def _look(place: int) -> dict[str, Any]:
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}


def _lines(axes: Axes, done: Sequence[Done], key: str, title: str) -> None:
    for place, each in enumerate(done):
        points = curve(each.run.rounds, key)
        axes.plot(*zip(*points, strict=True), label=shown_label(each.title), **_look(place))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(title=title, xlabel="round", ylabel=f"{key}, clients' own validation rows")


def _accuracy(axes: Axes, done: Sequence[Done]) -> None:
    """Accuracy by round on the clients' own validation slices."""
    _lines(axes, done, "accuracy", f"Accuracy by round: {' + '.join(tasks_of(done[0].run))}")


def _loss(axes: Axes, done: Sequence[Done]) -> None:
    """Loss by round on the same slices."""
    _lines(axes, done, "loss", "Loss by round, on the same rows")


def _log(axes: Axes) -> None:
    """Make the x axis logarithmic, with plain numbers: styles here don't parse formulas."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _bars(
    axes: Axes,
    done: Sequence[Done],
    values: Sequence[float | None],
    form: str,
    log: bool = False,
    at: float | None = None,
) -> None:
    """Draw a bar for each experiment from the top down, its number beside it, or at one place."""
    drawn = [0.0 if value is None else value for value in values]
    colours = [PALETTE[place % len(PALETTE)] for place in range(len(done))]
    axes.barh([each.title for each in done], drawn, color=colours, height=0.62)
    if log and any(drawn):
        _log(axes)
        axes.set_xlim(min(v for v in drawn if v) / 3, max(drawn) * 4)
    elif any(drawn):
        axes.set_xlim(0, max(drawn) * 1.18)
    for place, value in enumerate(values):
        text = "not measured" if value is None else format(value, form)
        end = drawn[place] if at is None else at
        axes.annotate(text, (end, place), (5, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)


def _memory(axes: Axes, done: Sequence[Done]) -> None:
    """The highest peak of a client."""
    _bars(axes, done, [each.run.summary["peak_memory_mb"] for each in done], ",.0f")
    axes.set(title="Peak memory of a client", xlabel="MB, measured")
    if one_process(done):
        axes.figure.supxlabel(
            "Engine inline on a CPU: one process ran all of them, so a peak never falls from one "
            "to the next.",
            fontsize=9.5,
            color=QUIET,
        )


def one_process(done: Sequence[Done]) -> bool:
    """Tell whether the peaks are those of one process that ran one experiment after another."""
    run = done[0].run
    gpus = run.provenance.get("machine", {}).get("gpus")
    return run.summary["engine"] == "inline" and (
        not gpus or value_of(run, "engine.device") == "cpu"
    )


def _communication(axes: Axes, done: Sequence[Done]) -> None:
    """MB of an average round, on a logarithmic axis: a whole model is many adapters."""
    means = [mean_of([r["communication_mb"] for r in each.data["round_results"]]) for each in done]
    _bars(axes, done, means, ",.1f", log=True)
    axes.set(title="Bytes of a round, up and down", xlabel="MB, measured (log)")


def _bought(axes: Axes, done: Sequence[Done]) -> None:
    """Accuracy by MB so far."""
    for place, each in enumerate(done):
        so_far = np.cumsum([r["communication_mb"] for r in each.run.rounds])
        points = [(so_far[r - 1], y) for r, y in curve(each.run.rounds, "accuracy")]
        if points:
            x, y = zip(*points, strict=True)
            axes.plot(x, y, label=shown_label(each.title), **_look(place))
    _log(axes)
    axes.set(title="Accuracy by what was sent so far", xlabel="MB so far (log)", ylabel="accuracy")


def _final(axes: Axes, done: Sequence[Done]) -> None:
    """Accuracy on the whole evaluation sets: the mean over tasks, and each task."""
    _bars(axes, done, [each.data["final_accuracy"] for each in done], ".3f", at=1.0)
    for place, task in enumerate(tasks_of(done[0].run)):
        scores = [each.run.summary["final"]["by_task"].get(task, {}) for each in done]
        points = [(s["accuracy"], y) for y, s in enumerate(scores) if s.get("accuracy") is not None]
        if points:
            look: dict[str, Any] = {"marker": MARKERS[place % len(MARKERS)], "s": 46, "zorder": 3}
            look |= {"c": "white", "edgecolors": "#1f2933"}
            x, y = zip(*points, strict=True)
            axes.scatter(x, y, **look)
            axes.scatter([], [], label=task, **look)
    axes.set_xlim(0, 1.12)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set(title="Final accuracy, whole evaluation sets", xlabel="accuracy: bar mean, mark task")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
