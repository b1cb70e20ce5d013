"""What the server makes of the clients' greetings; what does not fit together is refused."""

from __future__ import annotations

from typing import Any

import pytest

from atlas_flwr.apps.facts import facts_of
from atlas_flwr.config.load import parse_config
from atlas_flwr.config.schema import Config
from atlas_flwr.errors import ConfigError
from atlas_flwr.holding import Holding

TASK = {"name": "ward", "path": "/not/here", "text": "note", "label": "ill"}


def config(strategy: str = "fedavg", tasks: tuple[str, ...] = ("ward",)) -> Config:
    tree: dict[str, Any] = {
        "run": {"clients": 2},
        "data": {"tasks": tasks},
        "task": [TASK],
        "model": {"max-length": 32},
        "strategy": {"name": strategy},
    }
    return parse_config(tree)


def own(rows: int = 24, task: str = "ward", labels: tuple[str, ...] = ("no", "yes")) -> Holding:
    return Holding(True, True, rows, 5, task, labels)


def test_rows_and_classes_come_from_the_clients() -> None:
    facts = facts_of(config(), {1: own(30), 0: own(12)})
    assert [r.train for r in facts.rows] == [12, 30]
    assert facts.tasks["ward"].label_names == ("no", "yes")
    assert facts.tasks["ward"].num_labels == 2
    assert facts.longest == (32, 32)
    assert not facts.dealt
    assert facts.own_vaults == {0, 1}


def test_a_known_task_needs_no_names_and_one_client_can_name_for_all() -> None:
    facts = facts_of(config(tasks=("sst2",)), {0: own(task="", labels=()), 1: own(3, "", ())})
    assert facts.tasks["sst2"].label_names == ("negative", "positive")
    facts = facts_of(config(), {0: own(task="", labels=()), 1: own()})
    assert facts.tasks["ward"].label_names == ("no", "yes")


@pytest.mark.parametrize(
    ("held", "strategy", "words"),
    [
        ({0: own(), 1: Holding()}, "fedavg", ["partitions [0] read", "partitions [1] have none"]),
        ({0: own(), 1: own(labels=("no", "si"))}, "fedavg", ["partition 1", "'si'", "partition 0"]),
        ({0: own(), 1: own(task="b")}, "fedavg", ["partition 1 holds rows of task 'b'", "'ward'"]),
        ({0: own(labels=()), 1: own(labels=())}, "fedavg", ["names its classes", "shard.json"]),
        ({0: own(), 1: own()}, "centralised", ["strategy.name", "pools"]),
    ],
)
def test_clients_that_do_not_fit_are_named(
    held: dict[int, Holding], strategy: str, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        facts_of(config(strategy), held)
    for word in words:
        assert word in str(error.value)
