"""Plots: real pictures for full, tiny and gappy runs, and Matplotlib's settings untouched."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.image import imread

from atlas_flwr.results.plots import write_plots

NAMES = ["accuracy.png", "loss.png", "clients.png", "bytes.png", "memory.png"]
SPREADS = ["spread.png", "spread-tasks.png"]


def without_scores(rows):
    return [dataclasses.replace(r, accuracy=None, loss=None, peak_memory_mb=None) for r in rows]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, [*NAMES, *SPREADS]),
        ({"rounds": 1, "per_task": 1, "tasks": ("_a$b$",)}, NAMES),
        ({"rounds": 2, "change": without_scores}, NAMES),
    ],
    ids=["full", "one round, one client", "nothing measured"],
)
def test_all_pictures_are_drawn(make_run, tmp_path, options, names):
    before = dict(mpl.rcParams)
    paths = write_plots(make_run(**options), tmp_path / "plots")
    assert [path.name for path in paths] == names
    for path in paths:
        pixels = imread(path)
        assert min(pixels.shape[:2]) >= 4.5 * 150
        assert len(np.unique(pixels[..., :3].sum(axis=2))) > 20  # drawn on, and in colour
    assert dict(mpl.rcParams) == before


def test_the_same_run_gives_the_same_file(run, tmp_path):
    first, second = (write_plots(run, tmp_path / name)[0].read_bytes() for name in "ab")
    assert first == second
