"""Seeds as typed, how long the rest of a suite takes, and what its lines and its screen say."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from atlas_flwr.apps.suites.file import read_seeds
from atlas_flwr.apps.suites.view import Pace, SuiteView, work_of
from atlas_flwr.config.load import parse_config
from atlas_flwr.config.suite_cells import Cell
from atlas_flwr.errors import ConfigError


def cell(label: str, seed: int = 1, rounds: int = 4) -> Cell:
    config = parse_config(
        {
            "run": {"rounds": rounds, "clients": 2, "seed": seed},
            "data": {"tasks": ["bbc"], "samples-per-client": 10},
        }
    )
    return Cell("s", label, config, Path("s", label, f"seed-{seed}"))


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(view: SuiteView, width: int = 120) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(view.render())
    return console.export_text()


# ---------------------------------------------------------------- seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("42", (42,)),
        ("42,43", (42, 43)),
        ("1..6", (1, 2, 3, 4, 5, 6)),
        ("1..3,7", (1, 2, 3, 7)),
        (" 1 .. 2 , 5", (1, 2, 5)),
        ("3..3", (3,)),
    ],
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: tuple[int, ...]) -> None:
    assert read_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "numbers and ranges"),
        ("1,", "numbers and ranges"),
        ("1...3", "numbers and ranges"),
        ("1..", "numbers and ranges"),
        ("-1", "numbers and ranges"),
        ("²", "numbers and ranges"),
        ("6..1", "ends before it begins"),
        ("1..3,2", "twice"),
        ("0..99999999", "more than 1000"),
        ("4294967296", "below 2"),
    ],
)
def test_what_is_no_seed_is_refused(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_seeds(text)


# ---------------------------------------------------------------- time


def test_a_label_goes_at_its_own_median_and_others_at_all_of_them() -> None:
    pace = Pace()
    assert pace.seconds([("a", 10.0)], 1) is None
    for seconds in (1.0, 2.0, 9.0):
        pace.learn("slow", 1.0, seconds)
    pace.learn("quick", 1.0, 0.5)
    assert pace.seconds([("slow", 10.0)], 1) == 20.0
    assert pace.seconds([("quick", 10.0)], 2) == 2.5
    assert pace.seconds([("new", 10.0)], 1) == 15.0


@given(st.integers(1, 9), st.integers(1, 9))
def test_work_is_rounds_by_clients_by_rows(rounds: int, other: int) -> None:
    assert work_of(cell("a", rounds=rounds)) == rounds * 2 * 10
    assert work_of(cell("a"), other) == other * 2 * 10


def test_the_time_left_falls_with_every_round() -> None:
    clock, cells = Clock(), [cell("a", seed) for seed in (1, 2, 3)]
    view = SuiteView(Console(file=io.StringIO()), cells, jobs=1, clock=clock)
    view.begin(cells[0])
    assert view.eta() is None
    assert "ETA after the first run" in shown(view)
    clock.now = 40.0
    view.end(cells[0], "0.5 in 40 s", seconds=40.0)
    assert view.eta() == pytest.approx(80.0)
    view.begin(cells[1])
    assert view.eta() == pytest.approx(80.0)
    view.event(cells[1], {"event": "round", "round": 3, "accuracy": 0.625})
    assert view.eta() == pytest.approx(50.0)
    view.end(cells[1], "failed: x", "bold red")
    view.begin(cells[2])
    text = shown(view)
    assert "2/3 runs" in text
    assert "40.0 s so far" in text
    assert "1 failed" in text
    assert "about 40.0 s left" in text


def test_a_run_that_went_on_counts_only_the_rounds_it_ran() -> None:
    cells = [cell("a", 1), cell("a", 2)]
    view = SuiteView(Console(file=io.StringIO()), cells)
    view.begin(cells[0])
    view.event(cells[0], {"event": "start", "resumed": [0.1, 0.2]})
    view.end(cells[0], "0.5", seconds=20.0)  # two of four rounds
    assert view.eta() == pytest.approx(40.0)


# ---------------------------------------------------------------- lines


def lines(jobs: int) -> list[str]:
    file = io.StringIO()
    cells = [cell("a"), cell("[b]")]
    view = SuiteView(Console(file=file, width=20), cells, jobs)
    with view:
        view.begin(cells[0])
        if jobs > 1:
            view.begin(cells[1])
            view.end(cells[1], "0.2 in 1 s")
            view.end(cells[0], "0.1 in 2 s")
        else:
            view.end(cells[0], "0.1 in 2 s")
            view.begin(cells[1])
            view.end(cells[1], "0.2 in 1 s")
    return file.getvalue().splitlines()


def test_lines_are_whole_one_a_run() -> None:
    assert lines(1) == ["[1/2] s/a seed 1 … 0.1 in 2 s", "[2/2] s/[b] seed 1 … 0.2 in 1 s"]
    assert lines(2) == ["[1/2] s/[b] seed 1 … 0.2 in 1 s", "[2/2] s/a seed 1 … 0.1 in 2 s"]


@pytest.mark.parametrize("width", [50, 80, 140])
def test_the_screen_says_what_goes_on(width: int) -> None:
    cells = [cell("fedavg"), cell("local")]
    view = SuiteView(Console(file=io.StringIO(), width=width), cells, jobs=2)
    for each in cells:
        view.begin(each)
    view.event(cells[0], {"event": "phase", "phase": "train"})
    events: list[dict[str, Any]] = [{"event": "round", "round": 2, "accuracy": 0.5}]
    view.event(cells[0], events[0])
    text = shown(view, width)
    assert "0/2 runs" in text
    assert "round 3/4" in text
    assert "0.500" in text
    assert "round 1/4" in text
    assert ("training" in text) == (width == 140)
