"""Robust and private runs from the command line: what they tell, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from atlas_flwr.aggregation.noise import epsilon
from runs import Run

pytestmark = pytest.mark.usefixtures("no_report")


def test_a_private_run_opens_with_its_price_and_tells_what_each_round_spent(
    run: Callable[..., Run],
) -> None:
    found = run(strategy={"name": "dp_fedavg", "options": {"noise-multiplier": 4.0}})
    events = map(json.loads, (found.folder / "events.jsonl").read_text().splitlines())
    notes = [event["text"] for event in events if event["event"] == "note"]
    whole = epsilon(4.0, 2, 1e-5)
    assert any(f"privacy after 2 rounds: ε zero_out {whole['zero_out']:.3g}" in n for n in notes)
    for line in found.rounds:
        assert line["epsilon"] == pytest.approx(dict(epsilon(4.0, line["round"], 1e-5)))
    assert found.summary["bytes"]["by_kind"]["adapter"] > 0


def test_a_robust_run_tells_how_much_of_whom_was_let_in(run: Callable[..., Run]) -> None:
    for line in run(strategy={"name": "norm_clip"}).rounds:
        assert sorted(line["shares"]) == ["0", "1", "2"]
        assert max(line["shares"].values()) == 1.0
        assert line["epsilon"] is None


def test_a_rule_that_three_clients_can_t_feed_is_refused(refused: Callable[..., None]) -> None:
    words = ("strategy.options.num-malicious", "1 needs 5 answers", "'global'")
    refused(*words, strategy={"name": "multikrum", "options": {"num-malicious": 1}})
    words = ("strategy.options.beta", "0.2 cuts nothing of the 2 answers")
    refused(*words, run={"fraction": 0.6}, strategy={"name": "fedtrimmedavg"})
