"""Predicted against measured peak memory, in processes of their own."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from benchmarks.memory import SETTINGS, TARGET, Peak, Setting, calibrated, measure, table

PARTS = {"weights": 100, "head": 1, "adapter": 2, "activations": 400, "workspace": 97}


def test_the_two_numbers_come_from_two_allocators() -> None:
    left = Peak(SETTINGS[0], PARTS, 900)
    assert (left.predicted, left.tensors, left.ratio) == (600, 503, 600 / 900)
    assert calibrated(left, Peak(SETTINGS[0], PARTS, 700)) == (700 - 503, 200 / 400)
    assert table([left, left]).row_count == 2


# What is the calibrating setting proves nothing: it is not among these.
@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc",
    reason="the heap's slack was measured on glibc",
)
@pytest.mark.parametrize(
    "setting",
    [Setting("minilm", 16, 32, 8), Setting("minilm", 32, 64, 4), Setting("distilbert", 16, 32, 8)],
    ids=str,
)
def test_the_peak_is_predicted_within_the_target(setting: Setting, tmp_path: Path) -> None:
    assert setting != SETTINGS[0]
    assert measure(setting, tmp_path).ratio == pytest.approx(1, abs=TARGET)
