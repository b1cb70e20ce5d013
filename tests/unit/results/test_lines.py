"""What the terminal says of clusters that were found."""

from __future__ import annotations

from typing import Any

import pytest

from atlas_flwr.results.lines import found_lines, mixes_line


def mixes(learned: bool = True, **apart: float) -> dict[str, Any]:
    return {"label_mixes": {"apart": apart, "learned": learned}}


def test_label_mixes_that_differ_are_told_with_what_to_do() -> None:
    said = mixes_line(mixes(a=0.05, b=0.62, c=0.3))
    assert said.startswith("label mixes differ by up to 0.62 in cluster b:")
    assert "train.logit-adjustment = 1" in said


@pytest.mark.parametrize("told", [{}, mixes(), mixes(a=0.19), mixes(learned=False, a=0.9)])
def test_nothing_is_told_where_nothing_is_to_do(told: dict[str, Any]) -> None:
    assert mixes_line(told) == ""


def test_lines_come_together_and_empty_ones_do_not() -> None:
    assert found_lines({}) == []
    told = {"eta": {"0": 1.0}, "privacy": {"epsilon": 2.0, "delta": 1e-5, "times": 2}}
    assert [line.split()[0] for line in found_lines(told | mixes(a=0.5))] == [
        *("η", "fingerprints:", "label"),
    ]
