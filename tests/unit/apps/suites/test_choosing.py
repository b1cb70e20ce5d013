"""Which value tuning chooses, and how runs that did not finish are put aside."""

from __future__ import annotations

from pathlib import Path

import pytest

from atlas_flwr.apps.suites.folders import set_aside
from atlas_flwr.apps.suites.run import choose


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
