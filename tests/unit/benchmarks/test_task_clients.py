"""Clients that fingerprints are judged on: what is dealt is what the setting says."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from benchmarks.task_clients import SETTINGS, Client, Features, Setting, deal


@pytest.fixture(scope="module")
def features() -> Features:
    """Return rows whose first feature tells the task and row, the second the class."""
    names = {name for setting in SETTINGS for name in setting.sources}
    found: Features = {}
    for index, name in enumerate(sorted(names)):
        classes = {"bbc": 5, "tweets": 3}.get(name, 2)
        y = np.arange(2400) % classes
        found[name] = np.stack([10_000 * index + np.arange(2400.0), y], axis=1), y
    return found


def rows(clients: list[Client]) -> Iterator[float]:
    for client in clients:
        yield from client.features[:, 0].tolist()


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: f"{s.name}-{s.rows}-{s.alpha}")
def test_each_row_is_dealt_once_under_the_name_its_task_gives_it(
    setting: Setting, features: Features
):
    clients = deal(setting, features, seed=3)
    assert [c.task for c in clients] == [t for t in setting.tasks for _ in range(setting.each)]
    dealt = list(rows(clients))
    assert len(set(dealt)) == len(dealt) == setting.rows * len(clients)
    for client in clients:
        assert client.classes == setting.classes > client.labels.max()
        if setting.shuffled:
            continue
        shift = client.task.endswith("-flipped")
        assert ((client.features[:, 1] + shift) % setting.classes == client.labels).all()


def test_a_draw_is_its_seeds(features: Features):
    setting = SETTINGS[1]
    one, same, other = (list(rows(deal(setting, features, seed))) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_without_skew_classes_come_as_they_are_in_the_task(features: Features):
    setting = next(s for s in SETTINGS if s.classes == 5 and s.alpha is None)
    counts = [np.bincount(c.labels, minlength=5) for c in deal(setting, features, seed=0)]
    assert np.ptp(counts, axis=1).max() <= 1 + setting.classes // 2  # rounding is class 0's
