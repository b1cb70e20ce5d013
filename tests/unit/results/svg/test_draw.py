"""Charts: round ticks that cover the data, and elements that stay inside the picture."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.results.svg.draw import line_chart, strip_chart
from atlas_flwr.results.svg.parts import HEIGHT, WIDTH, Series, ticks

values = st.floats(-1e6, 1e6, allow_nan=False).map(lambda v: round(v, 4))


@given(values, values)
def test_ticks_cover_the_range_evenly(a, b):
    low, high = min(a, b), max(a, b)
    marks = ticks(low, high)
    step = marks[1] - marks[0]
    assert marks[0] <= low + 1e-6 * step
    assert marks[-1] >= high - 1e-6 * step
    assert 2 <= len(marks) <= 7
    assert all(y - x == pytest.approx(step) for x, y in pairwise(marks))


@given(st.lists(st.tuples(st.integers(1, 200), values), min_size=1, max_size=20))
def test_lines_stay_inside_the_picture(points):
    chart = line_chart("t", [Series("<&>", sorted(points))])
    ElementTree.fromstring(chart)
    for x, y in re.findall(r'cx="([-\d.]+)" cy="([-\d.]+)"', chart):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_a_chart_of_nothing_says_so():
    assert "nothing was measured" in line_chart("t", [])
    assert "nothing was measured" in strip_chart("t", [])
