"""Which value tuning chooses, and how runs that did not finish are put aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from atlas_flwr.apps.suites.files import SuiteFiles, at_the_end
from atlas_flwr.apps.suites.folders import set_aside
from atlas_flwr.apps.suites.run import choose
from atlas_flwr.config.suite_cells import Suite, load_suite
from atlas_flwr.errors import ResultError


@pytest.mark.parametrize(
    ("accuracies", "chosen"),
    [
        ([0.1, 0.2, 0.3], 2),
        ([0.5, 0.5, 0.5], 1),
        ([0.5, 0.1, 0.5], 0),
        ([0.5, 0.5, 0.1], 1),
        ([None, None, 0.0], 2),
        ([None, None], None),
    ],
)
def test_the_highest_score_then_the_middle(
    accuracies: list[float | None], chosen: int | None
) -> None:
    scores = [{"values": {"k": i}, "accuracy": score} for i, score in enumerate(accuracies)]
    assert choose(scores) == (None if chosen is None else {"k": chosen})


@pytest.mark.parametrize(
    ("tried", "chosen", "told"),
    [
        ([1, 2, 3], 3, True),
        ([2, 3, 1], 1, True),
        ([1, 2, 3], 2, False),
        ([1, 2], 2, False),  # both are ends
        ([3, 3, 1], 3, False),
        (["a", "b", "c"], "a", False),
        ([False, True, 2], True, False),
    ],
)
def test_a_choice_at_the_end_of_its_grid(tried: list[Any], chosen: Any, told: bool) -> None:
    scores = [{"values": {"k": value, "other": 0}} for value in tried]
    assert at_the_end({"k": chosen, "other": 0}, scores) == (["k"] if told else [])


def test_what_is_put_aside_never_lands_on_another(tmp_path: Path) -> None:
    folder = tmp_path / "seed-1"
    assert set_aside(folder) is None
    folder.mkdir()
    assert set_aside(folder) is None
    for number in (1, 2):
        folder.mkdir(exist_ok=True)
        (folder / "x").write_text(str(number))
        assert set_aside(folder) == tmp_path / f"seed-1.failed-{number}"
    assert (tmp_path / "seed-1.failed-1" / "x").read_text() == "1"


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    (tmp_path / "base.toml").write_text('[run]\nname = "b"\n')
    (tmp_path / "s.toml").write_text(
        'name = "s"\nbase = "base.toml"\nseeds = [1]\n[[run]]\nstrategy = "fedavg"\n'
    )
    return load_suite(tmp_path / "s.toml")


@pytest.mark.parametrize(
    "text",
    [
        '{"pairs": 3}',
        '{"pairs": {"a/b": []}}',
        '{"pairs": {"a/b": {"scores": [{"path": "x"}]}}}',
        '{"pairs": {"a/b": {"scores": 3}}}',
        "[]",
        "{",
    ],
)
def test_a_file_of_scores_that_no_suite_wrote_is_one_line(
    suite: Suite, tmp_path: Path, text: str
) -> None:
    (tmp_path / "tuned.json").write_text(text)
    with pytest.raises(ResultError, match=r"tuned\.json: .*move it away"):
        SuiteFiles(suite, tmp_path)
    assert (tmp_path / "tuned.json").read_text() == text
