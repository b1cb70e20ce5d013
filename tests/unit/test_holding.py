"""What a client says it holds arrives as it was said; what can't be read is refused."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto

from atlas_flwr.errors import WireError
from atlas_flwr.greeting import OWN_ROWS, ROWS, pack_hello, read_declared, read_hello
from atlas_flwr.holding import Holding, add_holding, read_holding


@pytest.mark.parametrize(
    "holding",
    [Holding(), Holding(own_vault=True), Holding(True, True, 24, 0, "entail", ("non", "ouï"))],
)
def test_a_greeting_is_read_as_it_was_said(holding: Holding) -> None:
    content = add_holding(pack_hello(3, {ROWS: 24, OWN_ROWS: 5}), holding)
    back = recorddict_from_proto(recorddict_to_proto(content))
    assert read_holding(back) == holding
    assert (read_hello(back), read_declared(back)) == (3, {ROWS: 24, OWN_ROWS: 5})


def test_who_says_nothing_holds_nothing_of_its_own() -> None:
    assert read_holding(pack_hello(0)) == Holding()


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("train-rows", -1, "rows must be"),
        ("train-rows", 1.5, "rows must be"),
        ("score-rows", True, "rows must be"),
        ("own-rows", 1, "can't be read"),
        ("task", 3, "task"),
        ("labels", "[1, 2]", "names"),
        ("labels", "{}", "names"),
        ("labels", "[" * 5000, "can't be read"),
        ("labels", '"' + "x" * 20_000 + '"', "can't be read"),
    ],
)
def test_what_cannot_be_read_is_refused(key: str, value: object, word: str) -> None:
    content = add_holding(RecordDict(), Holding(True, True, 2, 1, "a", ("x", "y")))
    content["home"] = ConfigRecord({**content["home"], key: value})
    with pytest.raises(WireError, match=word):
        read_holding(content)
