"""Values to a tree and tensors and back: the same, to the bit."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.engine.codec import decode, encode
from atlas_flwr.types import LoraFactors, ModelParts

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.integers() | st.text(), inner)
    ),
    max_leaves=20,
)


def through(value: object, *types: type) -> object:
    """The value through JSON, as from a file."""
    tree, tensors = encode(value)
    return decode(json.loads(json.dumps(tree, allow_nan=False)), tensors, types)


@given(PLAIN)
def test_plain_values_come_back_with_types_and_order(value: object) -> None:
    assert repr(through(value)) == repr(value)


@given(st.frozensets(st.text()))
def test_sets_come_back(value: frozenset[str]) -> None:
    assert through(value) == value


def test_a_model_comes_back_in_c_order() -> None:
    a = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    factors = LoraFactors(a, np.empty((0, 2)), 0.1)
    back = through(ModelParts(adapter={"m.q": factors}), ModelParts, LoraFactors)
    assert isinstance(back, ModelParts)
    got = back.adapter["m.q"]
    np.testing.assert_array_equal(got.a, a)
    assert got.a.flags.c_contiguous
    assert (got.a.dtype, got.b.shape, got.b.dtype, got.scale) == ("float32", (0, 2), "float64", 0.1)


def test_shared_tensors_are_stored_once_and_shared_again() -> None:
    tensor = np.ones(3)
    tree, tensors = encode({"x": tensor, "y": [tensor]})
    assert list(tensors) == ["x"]
    back = decode(tree, tensors, ())
    assert back["x"] is back["y"][0]


def test_numbers_that_are_not_finite_come_back() -> None:
    back = through({"up": math.inf, "none": math.nan})
    assert repr(back) == "{'up': inf, 'none': nan}"


def test_what_is_no_value_is_refused_with_its_place() -> None:
    with pytest.raises(TypeError, match=r"/a/1: a object can't be stored"):
        encode({"a": [1, object()]})


@pytest.mark.parametrize(
    "tree",
    [{"tensor": "gone"}, {"of": "Popen", "fields": {}}, {"map": 3}, {"x": 1}, [1]],
)
def test_a_tree_of_unknown_things_is_refused(tree: object) -> None:
    with pytest.raises(ValueError, match="can't be read"):
        decode(tree, {}, ())


def test_a_field_of_a_later_version_is_refused_by_name() -> None:
    tree = {"of": "ModelParts", "fields": {"router": 1}}
    with pytest.raises(ValueError, match="ModelParts has no field 'router'"):
        decode(tree, {}, (ModelParts,))
