"""Merges as users see them: drawn values are the records', null is a gap, no numbers no figure."""

import csv
import io
import math
from itertools import groupby
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from rich.console import Console

from atlas_flwr.results.compare_output import comparison_table, write_comparison
from atlas_flwr.results.console import print_results
from atlas_flwr.results.figures import run_figures
from atlas_flwr.results.merges import YARDSTICK, last_merge, merge_figures
from atlas_flwr.results.plots import write_plots
from atlas_flwr.results.plots_lines import draw_lines
from atlas_flwr.results.record import Measured
from atlas_flwr.results.report import merge_table, write_report
from atlas_flwr.results.series import ROUNDING, show_error
from atlas_flwr.results.svg.draw import BOTTOM, TOP
from atlas_flwr.results.svg.parts import HEIGHT

MEASURES = ("aggregation_error", "truncation_error", "compression_error", "effective_rank")
NOTHING = dict.fromkeys(MEASURES)
errors = st.none() | st.just(0.0) | st.floats(1e-17, 1e-15) | st.floats(1e-5, 2.0)
records = st.lists(
    st.fixed_dictionaries(
        {
            "aggregation_error": errors,
            "truncation_error": st.none() | st.dictionaries(st.sampled_from("248"), errors),
            "compression_error": st.none() | st.fixed_dictionaries({"up": errors, "down": errors}),
            "effective_rank": st.none() | st.floats(1, 16),
        }
    ),
    max_size=6,
).map(lambda items: [{"round": i, **item} for i, item in enumerate(items, 1)])


def mixed(round_):
    """A run of three rounds with a gap everywhere; rank 16 receives all of it."""
    gap = round_ == 2
    return Measured(
        None if gap else 0.4 + 0.1 * round_,
        {"2": 0.5 / round_, "4": None if gap else 0.25 / round_, "16": 0.0},
        {"up": 0.25 * round_, "down": None if gap else 0.5},
        None if gap else 2.0 + round_,
    )


def exact(round_):
    """A run whose errors are all rounding."""
    return Measured(4.3e-16 / round_, {"2": 4.3e-16, "16": 4.4e-16}, None, 5.0)


def lines_of(figure):
    """The drawn points by line, without the yardstick."""
    named = groupby(figure.series, key=lambda s: s.name)
    return {
        name: [point for piece in pieces for point in piece.points]
        for name, pieces in named
        if "for scale" not in name
    }


def numbers(rounds, key, inner=None):
    """The records' own numbers, in order."""
    values = [(r["round"], r[key] if inner is None else (r[key] or {}).get(inner)) for r in rounds]
    return [(x, y) for x, y in values if y is not None]


def words(text):
    tree = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))
    return " ".join("".join(tree.find("body").itertext()).split())


@given(records)
@example([{"round": 1, **NOTHING, "truncation_error": {"2": 0.25, "4": 1e-5, "8": 0.0}}])
@example([{"round": 1, **NOTHING, "truncation_error": {"2": 0.25, "4": 1e-16, "8": 0.0}}])
def test_what_is_drawn_is_what_was_recorded(rounds):
    figures = {figure.name: lines_of(figure) for figure in merge_figures(rounds)}
    merge = figures.get("merge", {})
    assert merge.get("aggregation", []) == numbers(rounds, "aggregation_error")
    ranks = {rank for r in rounds for rank in r["truncation_error"] or {}}
    for rank in ranks:
        told = numbers(rounds, "truncation_error", rank)
        drawn = [
            points
            for name, points in merge.items()
            if name.startswith("truncation")
            and ("every rank" in name or rank in name.replace(",", "").split()[2:])
        ]
        if told:
            (points,) = drawn  # one line, alone or with ranks that differ from it by rounding
            assert [x for x, _ in points] == [x for x, _ in told]
            assert all(
                math.isclose(a, b, abs_tol=ROUNDING)
                for (_, a), (_, b) in zip(points, told, strict=True)
            )
    for way in ("up", "down"):
        told = numbers(rounds, "compression_error", way)
        assert figures.get("compression", {}).get(way, []) == told
    drawn = figures.get("effective-rank", {}).get("effective rank", [])
    assert drawn == numbers(rounds, "effective_rank")


@given(records)
def test_no_line_crosses_an_absent_number(rounds):
    measured = {r["round"] for r in rounds if r["aggregation_error"] is not None}
    for figure in merge_figures(rounds):
        for s in figure.series:
            assert s.points
            if s.name == "aggregation":
                first, last = s.points[0][0], s.points[-1][0]
                assert [x for x, _ in s.points] == list(range(first, last + 1))
                assert not measured & {first - 1, last + 1}  # each piece is as long as it can be


@given(records)
def test_a_figure_needs_a_number_and_tiny_errors_a_yardstick(rounds):
    figures = {figure.name: figure for figure in merge_figures(rounds)}
    for name, keys in {
        "merge": MEASURES[:2],
        "compression": MEASURES[2:3],
        "effective-rank": MEASURES[3:],
    }.items():
        values = [r[key] for r in rounds for key in keys]
        flat = [v for value in values for v in (value.values() if type(value) is dict else [value])]
        there = [v for v in flat if v is not None]
        assert (name in figures) == bool(there)
        if there and name != "effective-rank":
            scaled = any("for scale" in s.name for s in figures[name].series)
            assert scaled == (max(there) < YARDSTICK)


def test_runs_without_numbers_show_nothing_of_merges(make_run, tmp_path):
    run = make_run()
    assert [chart.title for chart in run_figures(run)][:3] == ["Accuracy", "Loss", "Clients"]
    assert "Merge" not in words(write_report(run).read_text())
    assert len(write_plots(run, tmp_path / "plots")) == 7
    older = [{k: v for k, v in r.items() if k not in MEASURES} for r in run.rounds]
    assert merge_figures(older) == []
    assert last_merge(older) == last_merge([]) == {}


def test_page_and_png_show_the_same_numbers(make_run, tmp_path):
    run = make_run(measured=mixed)
    charts = {chart.title: chart for chart in run_figures(run)}
    for figure in merge_figures(run.rounds):
        axes = Figure().add_subplot()
        draw_lines(figure, axes, run)
        png = [tuple(zip(*line.get_data(), strict=True)) for line in axes.get_lines()[1:]]
        assert png == [tuple(s.points) for s in figure.series]
        assert axes.get_ylim()[0] <= 0
        chart = ElementTree.fromstring(charts[figure.title].svg)
        said = [title.text for title in chart.iter("{http://www.w3.org/2000/svg}title")]
        assert said == [s.label(i) for s in figure.series for i in range(len(s.points))]
        assert charts[figure.title].svg.count("<polyline") == len(figure.series)
        names = dict.fromkeys(s.name for s in figure.series) if figure.named else []
        assert [item.name for item in charts[figure.title].legend] == list(names)
        legend = axes.get_legend()
        assert [text.get_text() for text in (legend.get_texts() if legend else ())] == list(names)
    files = {path.name for path in write_plots(run, tmp_path / "plots")}
    assert {"merge.png", "effective-rank.png", "compression.png"} <= files


def test_rounding_lies_on_zero_and_ranks_that_hide_each_other_share_a_line(make_run):
    run = make_run(measured=exact)
    (merge, rank) = merge_figures(run.rounds)
    assert [s.name for s in merge.series] == [
        *("aggregation", "truncation, every rank", "0.001, for scale"),
    ]
    assert not rank.named
    chart = next(chart for chart in run_figures(run) if chart.title == "Merge")
    zero = HEIGHT - BOTTOM
    dots = [float(dot.get("cy")) for dot in ElementTree.fromstring(chart.svg).iter() if
            dot.get("cy")]  # fmt: skip
    assert dots == [zero] * 3
    assert f",{TOP:.1f}" in chart.svg  # the yardstick reaches the top
    assert "e-" not in "".join(ElementTree.fromstring(chart.svg).itertext()).partition("agg")[0]
    single = merge_figures([{"round": 1, "truncation_error": {"8": 0.5}}])
    assert [s.name for s in single[0].series] == ["truncation, rank 8"]


@pytest.mark.parametrize("rounds", [1, 3, 30])
def test_one_round_and_many_are_drawn(make_run, tmp_path, rounds):
    run = make_run(rounds=rounds, measured=mixed if rounds > 1 else exact)
    assert "Merge" in words(write_report(run).read_text())
    assert len(write_plots(run, tmp_path / "plots")) == (10 if rounds > 1 else 7)


def test_the_table_holds_the_last_round_and_dashes_what_it_lacks(make_run):
    run = make_run(rounds=2, measured=mixed)
    table = merge_table(run.rounds)
    assert dict(table.rows) == {
        "aggregation error": "–",
        "truncation error, rank 2": "0.250",
        "truncation error, rank 4": "–",
        "truncation error, rank 16": "0",
        "compression error, up": "0.500",
        "compression error, down": "–",
        "effective rank": "–",
    }
    said = words(write_report(run).read_text())
    assert "Merge, last round" in said
    assert "truncation error, rank 20.250" in said  # the cells' words, side by side


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((None, "–"), (0.0, "0"), (1e-16, "1e-16"), (4.52e-16, "5e-16"), (2.34e-4, "2.3e-4")),
        *((0.001, "0.001"), (0.25312, "0.253"), (1234.5, "1,234.500")),
    ],
)
def test_errors_are_short_at_every_size(value, text):
    assert show_error(value) == text


def test_the_comparison_has_the_last_rounds_error_in_every_format(make_run, tmp_path):
    runs = [make_run("a", name="a", measured=exact), make_run("b", name="b")]
    runs.append(make_run("c", name="c", measured=mixed))
    found = write_comparison(runs, tmp_path / "out")
    with (tmp_path / "out" / "comparison.csv").open() as file:
        cells = [row["aggregation_error"] for row in csv.DictReader(file)]
    assert [float(cells[0]), cells[1], float(cells[2])] == [
        *(runs[0].rounds[-1]["aggregation_error"], "", runs[2].rounds[-1]["aggregation_error"]),
    ]
    page = (tmp_path / "out" / "comparison.html").read_text()
    table = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n")).find(".//table")
    head, *body = [[cell.text for cell in row] for row in table.iter("tr")]
    assert [row[head.index("error")] for row in body] == ["1e-16", "–", "0.700"]
    out = io.StringIO()
    Console(file=out, width=80).print(comparison_table(found))
    lines = [line for line in out.getvalue().splitlines() if line[:3] in ("│ a", "│ b", "│ c")]
    assert [line.split("│")[5].strip() for line in lines] == ["1e-16", "–", "0.700"]
    assert all(line.split("│")[7].strip() == "9.0 s" for line in lines)  # nothing is cut off


def test_the_terminal_ends_with_the_last_merge_where_there_is_one(make_run):
    said = []
    for name, measured in {"a": mixed, "b": lambda _: Measured()}.items():
        out, run = io.StringIO(), make_run(name, measured=measured)
        print_results(Console(file=out, width=80), run.summary, run.path)
        said.append(out.getvalue())
    assert "last merge: error 0.700  ·  truncation up to 0.167  ·  effective rank 5.0" in said[0]
    assert "last merge" not in said[1]
