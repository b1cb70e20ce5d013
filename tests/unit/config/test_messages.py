"""Beginners' mistakes in an experiment file: the one line says what to write instead."""

from __future__ import annotations

from typing import Any

import pytest

from atlas_flwr.config.load import build_config, parse_config
from atlas_flwr.errors import ConfigError

DATA = {"data": {"tasks": ["bbc"]}}


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"rounds": 3, **DATA}, "rounds: unknown key (did you mean 'run.rounds'?)"),
        ({"learning-rate": 1, **DATA}, "(did you mean 'train.learning-rate'?)"),
        ({"runn": {}, **DATA}, "runn: unknown key (did you mean 'run'?)"),
        ({"zzz": 1, **DATA}, "zzz: unknown key; known: run, model, data"),
        # The key above all sections is the mistake, not the section that is therefore missing.
        ({"rounds": 3}, "rounds: unknown key"),
        ({}, 'data: is required, e.g. [data] tasks = ["bbc", "tweets"]'),
        ({"data": {}}, 'data.tasks: is required, e.g. [data] tasks = ["bbc", "tweets"]'),
        ({"data": {"tasks": "bbc"}}, "data.tasks: should be a list, e.g. [\"bbc\"], got 'bbc'"),
        ({"task": {"name": "mine"}, **DATA}, "task: is a list of tables: write [[task]]"),
        ({"run": {"name": "my run"}, **DATA}, "run.name: should be letters, digits"),
    ],
)
def test_the_line_says_what_to_write(tree: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(tree)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_word_where_a_list_belongs_is_refused_on_the_command_line_too(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r'data\.tasks: should be a list, e\.g\. \["bcc"\]'):
        build_config({}, tmp_path, ["data.tasks=bcc"])
