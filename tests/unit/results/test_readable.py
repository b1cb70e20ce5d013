"""What a reader of the pictures must be able to tell apart, and numbers that must not mislead."""

import math
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from atlas_flwr.results.figures import Chart, drawn, placed, run_figures
from atlas_flwr.results.plots import draw_bytes, draw_memory
from atlas_flwr.results.plots_maps import draw_columns, draw_heat_map, draw_scatter
from atlas_flwr.results.scatter import APART, Scatter
from atlas_flwr.results.series import HEAT, HEAT_DARK
from atlas_flwr.results.shapes import FAINT, STRONG, Columns, Dot, Group, HeatMap, Scale
from atlas_flwr.results.svg.draw import line_chart
from atlas_flwr.results.svg.maps import heat_key
from atlas_flwr.results.svg.parts import Series


def square(values, **more):
    names = [str(i) for i in range(len(values))]
    scale, key = Scale(-1.0, 4.0, 0.0), [("even", 0.0), ("absent", None)]
    groups = [Group("cluster 0", len(values))]
    return HeatMap(
        *("m", "M", "", names, names, values, scale, key, "z", groups, groups), itself=True, **more
    )


def luminance(colour):
    """Return WCAG 2's relative luminance."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return float(np.dot((0.2126, 0.7152, 0.0722), parts))


@pytest.mark.parametrize(
    ("page", "ink", "colours"),
    [("#ffffff", "#1d2126", HEAT), ("#1b1f23", "#e9ebed", HEAT_DARK)],
    ids=["light", "dark"],
)
def test_numbers_can_be_read_on_every_shade(page, ink, colours):
    for colour in colours:
        for share in np.linspace(FAINT, 1.0, 50):
            mixed = (1 - share) * np.array(to_rgb(page)) + share * np.array(to_rgb(colour))
            text = page if share > STRONG else ink
            dark, light = sorted((luminance(mixed), luminance(to_rgb(text))))
            assert (light + 0.05) / (dark + 0.05) > 3.3


def test_numbers_in_dark_cells_are_light_in_both_kinds_of_picture():
    figure = square([[None, 4.0], [0.1, None]])
    axes = Figure(figsize=(7, 5)).add_subplot()
    draw_heat_map(figure, axes)
    colours = {t.get_text(): t.get_color() for t in axes.texts}
    assert colours["4"] == "white"
    assert colours["0"] != "white"
    svg = drawn(figure).svg
    assert svg.count('class="number strong"') == svg.count('class="number"') == 1


def test_the_threshold_the_diagonal_and_what_is_absent_look_different():
    figure = square([[None, None, 4.0], [None, None, -1.0], [4.0, -1.0, None]])
    assert figure.gaps() == [(0, 1, 1), (1, 0, 1)]
    key = dict(heat_key(figure))
    assert list(key) == ["even", "absent", "itself"]
    assert len(set(key.values())) == 3
    assert "--h0" in key["even"]
    assert "--h1" in key["even"]
    axes = Figure(figsize=(7, 5)).add_subplot()
    draw_heat_map(figure, axes)
    pixels = np.asarray(axes.images[0].get_array())
    assert pixels[0, 0] == pytest.approx(1.0)
    assert pixels[0, 1].max() < 0.9
    legend = axes.get_legend()
    assert [t.get_text() for t in legend.get_texts()] == list(key)
    # Cells are square, and names of groups do not touch the legend.
    axes.figure.draw_without_rendering()
    box = axes.get_window_extent()
    assert box.width == pytest.approx(box.height, rel=0.01)
    named = next(t for t in axes.texts if t.get_text() == "cluster 0")
    assert named.get_window_extent().x1 < legend.get_window_extent().x0


def test_a_scale_without_one_side_still_has_its_centre():
    assert Scale(0.0, 4.0, 0.0).shade(0.0) == ("s0", FAINT)
    assert Scale(0.0, 4.0, 0.0).halves(0.0) == [0.0]


def test_points_are_apart_near_their_numbers_on_axes_from_zero():
    groups = [Series(name, [(700.0, 900.0)] * 3, look) for name, look in (("a", "s0"), ("b", "s1"))]
    figure = Scatter("s", "S", "", ("x", "y"), [*groups, Series("c", [(100.0, 50.0)], "s2")])
    places = [point for group in figure.places() for point in group]
    assert places[0] == (700.0, 900.0)
    assert places[-1] == (100.0, 50.0)
    near = APART * figure.top
    assert all(math.dist(a, b) > 0.99 * near for a, b in combinations(places, 2))
    assert all(math.dist(at, (700, 900)) < 3 * near for at in places[:-1])
    axes = Figure().add_subplot()
    draw_scatter(figure, axes)
    assert axes.get_xlim() == axes.get_ylim() == (0.0, figure.top)
    offsets = np.concatenate([c.get_offsets() for c in axes.collections])
    np.testing.assert_allclose(offsets, places)


def test_a_clients_number_is_beside_its_marker_however_wide_the_picture():
    figure = Columns("c", "C", "", ["0", "1"], [[Dot("7", 0, "")], [Dot("8", 1, "")]], ["a", "b"])
    axes = Figure(figsize=(30, 3)).add_subplot()
    draw_columns(figure, axes)
    axes.figure.draw_without_rendering()
    for text, dots in zip(axes.texts, axes.collections, strict=True):
        at = axes.transData.transform(dots.get_offsets()[0])[0]
        assert 0 < text.get_window_extent().x0 - at < 15


def test_memory_starts_at_zero(run):
    axes = Figure().add_subplot()
    draw_memory(axes, run)
    low, high = axes.get_ylim()
    assert low == 0
    assert high > run.clients.peak_memory_mb.max()


def test_the_legend_of_bytes_names_what_moved_with_all_its_bytes(run):
    chart = next(chart for chart in run_figures(run) if chart.title == "Bytes")
    said = ["adapter, 900 B", "head, 21 B", "other, 9 B"]  # of 3 rounds, up and down
    assert [item.name for item in chart.legend] == said
    axes = Figure().add_subplot()
    draw_bytes(axes, run)
    assert [t.get_text() for t in axes.get_legend().get_texts()] == said


@pytest.mark.parametrize(
    ("wide", "lone"), [("", None), ("n", 0), ("nn", None), ("nwn", None), ("nnwnw", 3)]
)
def test_a_card_without_a_neighbour_is_as_wide_as_the_page(wide, lone):
    svgs = {"n": "<svg>", "w": '<svg style="min-width:900px">'}
    charts = placed([Chart("t", "", svgs[kind], []) for kind in wide])
    assert [i for i, chart in enumerate(charts) if chart.lone] == ([] if lone is None else [lone])


def test_tiny_numbers_on_an_axis_are_not_rounded_to_zero():
    svg = line_chart("t", [Series("a", [(0, 0.0), (1, -4e-5)])], axis="η")
    assert ">-0.00002</text>" in svg or ">-0.00004</text>" in svg
