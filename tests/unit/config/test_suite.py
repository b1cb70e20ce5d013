"""Suite files: what is laid over what, and overrides that survive their way through text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.config.load import parse_value
from atlas_flwr.config.overrides import combinations, flatten, override, slug
from atlas_flwr.config.suite_cells import Suite, load_suite
from atlas_flwr.errors import ConfigError

TEXT = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=8)
SCALARS = st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-z][a-z-]{0,5}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(VALUES)
def test_an_override_means_its_value(value: Any) -> None:
    text = override(("a.b", value))
    assert "\n" not in text
    found = parse_value(text.partition("=")[2])
    assert found == value
    assert type(found) is type(value)


def test_dotted_and_nested_keys_mean_the_same() -> None:
    nested = {"run": {"min_results": 2}, "strategy": {"options": {"mu": 0.1}}}
    dotted = {"run.min-results": 2, "strategy.options.mu": 0.1}
    assert flatten(nested) == flatten(dotted) == dotted
    # Names below a key are not ours to spell.
    assert flatten({"lora": {"rank_pattern": {"q_lin": 4}}}) == {"lora.rank-pattern.q_lin": 4}


def test_combinations_have_folders_of_their_own() -> None:
    grid = {"train.learning-rate": [3e-4, 1e-3], "lora.rank": [8, [2, 4]]}
    found = combinations(grid)
    assert len({slug(values) for values in found}) == len(found) == 4
    assert all("/" not in slug(values) and slug(values)[0] != "." for values in found)


def suite(folder: Path, *items: str, **keys: Any) -> Suite:
    base = {"data": {"tasks": ["sst2"]}, "train": {"batch-size": 1}, "run": {"rounds": 9}}
    (folder / "base.toml").write_text(tomli_w.dumps(base))
    file = {"name": "s", "base": "base.toml", "seeds": [1], "run": [{"strategy": "fedavg"}]}
    (folder / "s.toml").write_text(tomli_w.dumps(file | keys))
    return load_suite(folder / "s.toml", items=items)


def size_of(suite: Suite) -> int:
    (cell,) = suite.cells()
    return cell.config.train.batch_size


def test_the_nearer_override_wins(tmp_path: Path) -> None:
    """Base, then the suite's set, the setting's, the entry's, the command line's."""
    sets = [{"train.batch-size": size} for size in (2, 3, 4)]
    assert size_of(suite(tmp_path)) == 1
    assert size_of(suite(tmp_path, set=sets[0])) == 2
    keys: dict[str, Any] = {"set": sets[0], "setting": [{"name": "a", "set": sets[1]}]}
    assert size_of(suite(tmp_path, **keys)) == 3
    keys["run"] = [{"strategy": "fedavg", "set": sets[2]}]
    assert size_of(suite(tmp_path, **keys)) == 4
    assert size_of(suite(tmp_path, "train.batch-size=5", **keys)) == 5


def test_tuning_is_shorter_held_out_and_of_one_seed(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "tune": {"keys": {"train.learning-rate": [0.1, 0.2, 0.3]}, "seed": 7},
        "setting": [{"name": "a"}, {"name": "b", "holdout": 0.05}],
        "run": [
            {"strategy": "fedavg"},
            {"strategy": "fedprox", "only": ["a"], "tune": {"strategy.options.mu": [0.1]}},
            {"strategy": "local_only", "only": ["a"], "tune": {}},
        ],
    }
    cells = suite(tmp_path, **keys).tuning()
    found = [(c.setting, c.label, c.config.learning_rate, c.config.data.holdout) for c in cells]
    plain = [("a", "fedavg", rate, 0.2) for rate in (0.1, 0.2, 0.3)]
    small = [("b", "fedavg", rate, 0.05) for rate in (0.1, 0.2, 0.3)]
    assert found == [*plain, ("a", "fedprox", 0.001, 0.2), *small]
    assert {cell.config.run.seed for cell in cells} == {7}
    assert {cell.config.run.rounds for cell in cells} == {4}
    assert len({cell.folder for cell in cells}) == len(cells)
    assert cells[0].folder == Path("tune/a/fedavg/learning-rate=0.1/seed-7")
    chosen = suite(tmp_path, **keys).cells({("b", "fedavg"): {"train.learning-rate": 0.3}})
    rates = {(c.setting, c.label): c.config.learning_rate for c in chosen}
    assert rates[("b", "fedavg")] == 0.3
    assert rates[("a", "fedavg")] == 0.001
    assert {cell.config.data.holdout for cell in chosen} == {0.0}


def test_one_label_may_serve_two_settings(tmp_path: Path) -> None:
    entries = [
        {"name": "x", "strategy": "fedavg", "only": ["a"]},
        {"name": "x", "strategy": "fedprox", "only": ["b"]},
    ]
    settings = [{"name": "a"}, {"name": "b"}]
    cells = suite(tmp_path, setting=settings, run=entries).cells()
    assert [c.config.strategy.name for c in cells] == ["fedavg", "fedprox"]
    with pytest.raises(ConfigError, match=r"run.1.name: 'x' is named twice"):
        suite(tmp_path, setting=settings, run=[entries[0], {**entries[1], "only": ["a"]}])


FEDAVG = {"strategy": "fedavg"}
RATES = {"keys": {"train.learning-rate": [0.1, 0.2]}}


def test_what_is_tuned_as_another_is_not_tuned_and_takes_its_values(tmp_path: Path) -> None:
    """An ablation that had a rate of its own would differ in two things."""
    keys: dict[str, Any] = {
        "tune": RATES,
        "setting": [{"name": "a"}, {"name": "b", "tuned-as": "a"}],
        "run": [
            {"strategy": "fedavg"},
            {"name": "half", "strategy": "fedavg", "tuned-as": "fedavg"},
        ],
    }
    found = suite(tmp_path, **keys)
    assert {(cell.setting, cell.label) for cell in found.tuning()} == {("a", "fedavg")}
    cells = found.cells({("a", "fedavg"): {"train.learning-rate": 0.2}})
    assert len(cells) == 4
    assert {cell.config.learning_rate for cell in cells} == {0.2}
    assert {cell.tuned_as for cell in cells} == {("a", "fedavg")}
    only = load_suite(tmp_path / "s.toml", only=["half"])
    assert [cell.label for cell in only.tuning()] == ["fedavg", "fedavg"]
    within = load_suite(tmp_path / "s.toml", within=["b"])
    assert [(cell.setting, cell.label) for cell in within.cells()] == [
        *(("b", "fedavg"), ("b", "half"))
    ]
    assert {(cell.setting, cell.label) for cell in within.tuning()} == {("a", "fedavg")}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"run": [{"strategy": "fedavg", "tuned-as": "x"}]}, r"run.0.tuned-as: unknown name 'x'"),
        (
            {"run": [{"strategy": "fedavg", "tuned-as": "fedavg"}]},
            r"run.0.tuned-as: 'fedavg' is itself tuned as 'fedavg'",
        ),
        (
            {"setting": [{"name": "a"}, {"name": "b", "tuned-as": "a", "holdout": 0.1}]},
            r"setting.1.tuned-as: .* no holdout of its own",
        ),
        (
            {
                "setting": [{"name": "a"}, {"name": "b"}],
                "run": [
                    {"strategy": "fedavg", "only": ["a"]},
                    {"strategy": "fedprox", "tuned-as": "fedavg"},
                ],
            },
            r"tuned-as: 'fedprox' in 'b' takes what is chosen for 'fedavg' in 'b', where it does",
        ),
        (
            {
                "run": [
                    {"strategy": "fedavg"},
                    {"strategy": "fedprox", "tuned-as": "fedavg", "tune": {}},
                ]
            },
            r"run.1.tuned-as: .* no tune of its own",
        ),
    ],
)
def test_a_choice_that_nobody_makes_is_refused(
    tmp_path: Path, keys: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        suite(tmp_path, tune=RATES, **keys)
    if "setting" not in keys:
        with pytest.raises(ConfigError, match=r"run\.\d\.tun\S+: there is no \[tune\] table"):
            suite(tmp_path, **keys)
