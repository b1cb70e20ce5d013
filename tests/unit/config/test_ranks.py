"""Which rank a module has: endings at a dot, the longest wins, one that matches nothing stops."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import PydanticCustomError

from atlas_flwr.config.ranks import flat_pattern, module_ranks
from atlas_flwr.errors import ConfigError

BERT = [
    f"bert.encoder.layer.{i}.{part}"
    for i in range(2)
    for part in ("attention.self.query", "attention.self.value", "intermediate.dense")
]
steps = st.sampled_from(["a", "b", "ab", "q_lin"])
names = st.lists(st.lists(steps, min_size=1, max_size=4).map(".".join), min_size=1, unique=True)


def test_without_a_pattern_every_module_has_the_base_rank() -> None:
    assert module_ranks(8, {}, BERT) == dict.fromkeys(BERT, 8)


def test_an_ending_counts_at_a_dot_and_the_longest_wins() -> None:
    pattern = {"query": 4, "layer.1.attention.self.query": 2, "dense": 16}
    for endings in (pattern, dict(reversed(pattern.items()))):
        assert list(module_ranks(8, endings, BERT).values()) == [4, 8, 16, 2, 8, 16]
    with pytest.raises(ConfigError):
        module_ranks(8, {"uery": 4}, BERT)


@pytest.mark.parametrize(
    ("ending", "near"),
    [
        ("qurey", "(did you mean 'query'?)"),
        ("self.qurey", "(did you mean 'self.query'?)"),
        ("attention", "; the adapted modules end in dense, query, value"),
        ("", "; the adapted modules end in dense, query, value"),
    ],
)
def test_an_ending_that_matches_nothing_is_refused_in_one_line(ending: str, near: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        module_ranks(8, {"query": 4, ending: 4}, BERT)
    assert str(refusal.value).startswith(f"lora.rank-pattern: '{ending}' matches no adapted module")
    assert near in str(refusal.value)
    assert "\n" not in str(refusal.value)


@given(names, st.data())
def test_ranks_are_those_of_a_search_by_regular_expression(
    modules: list[str], data: st.DataObject
) -> None:
    """PEFT matches ``(.*\\.)?ending$``; of those that match, the longest is ours."""
    endings = sorted({".".join(m.split(".")[i:]) for m in modules for i in range(m.count(".") + 1)})
    chosen = data.draw(st.lists(st.sampled_from(endings), unique=True, max_size=4))
    pattern = {ending: i + 1 for i, ending in enumerate(chosen)}
    found = module_ranks(99, pattern, modules)
    assert list(found) == modules
    for name, rank in found.items():
        hits = [e for e in pattern if re.fullmatch(rf"(.*\.)?{re.escape(e)}", name)]
        assert rank == (pattern[max(hits, key=len)] if hits else 99)


def test_bare_dots_mean_what_quotes_mean() -> None:
    nested = {"attention": {"self": {"query": 4, "key": 2}}, "dense": 1}
    flat = {"attention.self.query": 4, "attention.self.key": 2, "dense": 1}
    assert flat_pattern(nested) == flat
    assert flat_pattern(flat) == flat
    assert flat_pattern(7) == 7
    with pytest.raises(PydanticCustomError, match=r"'a\.b' stands there twice"):
        flat_pattern({"a.b": 1, "a": {"b": 2}})
