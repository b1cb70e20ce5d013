"""Headers read without an array: what NumPy writes passes, what doesn't add up is refused."""

from __future__ import annotations

import io
import pickle
import time
import tracemalloc

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atlas_flwr.errors import WireError
from atlas_flwr.greeting import pack_hello, read_declared, read_hello
from atlas_flwr.payload import DTYPES, Promise, check_payload, check_promise, printable, shown
from hostile import header

SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@given(st.sampled_from(sorted(DTYPES)), SHAPES)
def test_whatever_flower_writes_passes(dtype: str, shape: tuple[int, ...]) -> None:
    check_payload("a", Array(np.zeros(shape, dtype)))


@given(st.binary(max_size=300))
def test_no_bytes_do_harm(data: bytes) -> None:
    """Random bytes, and random bytes after a good beginning, are refused or what they say."""
    for given_ in (data, header("(3,)")[: len(data)] + data):
        with pytest.raises(WireError):
            check_payload("a", Array("float32", (3, 1), "numpy.ndarray", given_))


@given(st.integers(0, 129), st.integers(0, 255))
def test_one_changed_byte_of_a_header_is_refused_or_read_as_numpy_does(at: int, byte: int) -> None:
    data = bytearray(Array(np.arange(3, dtype=np.float32)).data)
    data[at] = byte
    array = Array("float32", (3,), "numpy.ndarray", bytes(data))
    try:
        check_payload("a", array)
    except WireError:
        return
    assert np.load(io.BytesIO(bytes(data)), allow_pickle=False).shape == (3,)


@pytest.mark.parametrize(
    "data",
    [
        header("(1000000000000,)"),
        header("(99999999999999999999,)"),
        header("(-1,)"),
        header("(1, 1, 1, 1, 1, 1, 1, 1, 1)"),
        header("(3,)", "|O", pickle.dumps([1])),
        header("(3,)", ">f4", b"\0" * 12),
        header("(3,)", "<f4", b"\0" * 8),
        header("__import__('os')"),
        b"\x93NUMPY\x02\x00" + b"\xff\xff\xff\x7f",
        pickle.dumps({}),
    ],
)
def test_bombs_cost_nothing(data: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(WireError, match="can't be read"):
        check_payload("a", Array("float32", (3,), "numpy.ndarray", data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000


@pytest.mark.parametrize("shape", ["1" * 90, "1," * 90, "1 " * 90, "1, " * 90, "(" + "1, " * 90])
def test_a_header_is_refused_in_one_pass(shape: str) -> None:
    """Digits that can be read in many ways must not all be tried."""
    began = time.perf_counter()
    with pytest.raises(WireError, match="can't be read"):
        check_payload("a", Array("float32", (3,), "numpy.ndarray", header(shape)))
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("shape", ["(03,)", "(3)", "(3 ,)", "(3,  1)", "(3,1)", "(3, 1,)", "(,)"])
def test_no_other_way_to_write_a_shape_passes(shape: str) -> None:
    body = b"\0" * 12
    told = (3, 1) if "1" in shape else (3,)
    with pytest.raises(WireError, match="none that NumPy writes"):
        check_payload("a", Array("float32", told, "numpy.ndarray", header(shape, body=body)))


def test_promises() -> None:
    exact, free = Promise((2, 3)), Promise((4, 3), free=0, least=1)
    assert exact.fits((2, 3))
    assert not any(exact.fits(shape) for shape in [(3, 2), (2, 3, 1), (6,), (1, 3), ()])
    assert [rank for rank in range(6) if free.fits((rank, 3))] == [1, 2, 3, 4]
    assert exact.most_bytes() >= len(Array(np.zeros((2, 3), np.float32)).data)
    with pytest.raises(WireError, match="dtype 'float64', expected 'float32'"):
        check_promise("a", Array(np.zeros((2, 3))), exact)
    with pytest.raises(WireError, match=r"shape \(1, 3\), expected \(2, 3\)"):
        check_promise("a", Array(np.zeros((1, 3), np.float32)), exact)


def test_others_words_are_one_line_without_escapes() -> None:
    assert printable("a\x1b[2J\0b\nc\u202ed") == "a?[2J?b?c?d"
    assert len(printable("x" * 10**6)) == 500


def test_what_others_chose_is_cut_before_it_is_written_out() -> None:
    assert shown(True) == "True"
    assert shown("a\n") == r"'a\n'"
    for value in (b"\0" * 10**6, "x" * 10**6, [1.5] * 10**6):
        assert len(shown(value)) == 100
    with pytest.raises(WireError) as error:
        read_hello(RecordDict({"hello": ConfigRecord({"partition-id": "x" * 10**6})}))
    assert len(str(error.value)) < 200


def test_hello_tells_rows_where_they_are_known() -> None:
    assert read_declared(pack_hello(3)) == {}
    told = pack_hello(3, {"rows": 120, "own-rows": 0})
    assert (read_hello(told), read_declared(told)) == (3, {"rows": 120, "own-rows": 0})


@pytest.mark.parametrize("value", [-1, 1.0, True, "3", [1]])
def test_a_hello_of_anything_else_is_refused(value: object) -> None:
    with pytest.raises(WireError, match="hello"):
        read_hello(RecordDict({"hello": ConfigRecord({"partition-id": value})}))
    with pytest.raises(WireError, match="hello"):
        read_declared(RecordDict({"hello": ConfigRecord({"partition-id": 1, "rows": value})}))
