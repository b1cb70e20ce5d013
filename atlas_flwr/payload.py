"""What an array's bytes would become, told from its header: before anything is decoded.

Flower carries an array as the bytes of a ``.npy`` file with a dtype and a shape told beside them.
Whoever wrote them chose all three. Here the header is read with a fixed pattern, no array is made,
and what does not fit together to the byte is refused: nothing is unpickled, and no header makes the
reader set aside more memory than came.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from flwr.app import Array

from atlas_flwr.errors import WireError

# What travels: factors, heads and weights (float32), fingerprints (16, 32, 64), bitmaps, counts.
DTYPES = {"float16": "<f2", "float32": "<f4", "float64": "<f8", "uint8": "|u1", "int64": "<i8"}
_ITEMS = {"float16": 2, "float32": 4, "float64": 8, "uint8": 1, "int64": 8}
_MAGIC = b"\x93NUMPY\x01\x00"
_LONGEST = 512  # bytes of a header; NumPy writes 118 for any array of ours
_WORDS = re.compile(
    rb"\{'descr': '([<|]\w\d)', 'fortran_order': False, "
    rb"'shape': \((|%(n)s,|%(n)s(?:, %(n)s){1,7})\), \} *\n" % {b"n": rb"(?:0|[1-9]\d{0,11})"}
)  # as NumPy writes it and in one way only: what doesn't match fails in one pass


@dataclass(frozen=True)
class Promise:
    """The one array that an answer may hold under a name.

    Attributes:
        shape: Its shape.
        dtype: NumPy's name of its numbers.
        free: An axis that may be shorter than in ``shape``; None: no axis may.
        least: The shortest that axis may be.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    free: int | None = None
    least: int = 0

    def most_bytes(self) -> int:
        """Return the bytes that the array has at most, its header included."""
        return math.prod(self.shape) * _ITEMS[self.dtype] + len(_MAGIC) + 2 + _LONGEST

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Tell whether a shape keeps the promise."""
        if len(shape) != len(self.shape):
            return False
        return all(
            got == asked or (axis == self.free and self.least <= got < asked)
            for axis, (got, asked) in enumerate(zip(shape, self.shape, strict=True))
        )


def check_payload(name: str, array: Array) -> None:
    """Refuse an array whose header, told dtype and shape, and length don't agree to the byte.

    Raises:
        WireError: It is no array of NumPy's, its numbers are of a kind that never travels (objects
            are pickles), or the header promises more or less than there is.
    """
    shape, dtype, data = array.shape, array.dtype, array.data
    if array.stype != "numpy.ndarray" or not data.startswith(_MAGIC):
        raise WireError(f"{name}: can't be read, no NumPy array of version 1.0")
    begin = len(_MAGIC) + 2
    end = begin + int.from_bytes(data[begin - 2 : begin], "little")
    told = _WORDS.fullmatch(data[begin:end]) if end <= begin + _LONGEST else None
    if told is None or end > len(data):
        raise WireError(f"{name}: can't be read, its header is none that NumPy writes")
    if DTYPES.get(dtype) != told[1].decode():
        raise WireError(f"{name}: can't be read, dtype {told[1].decode()!r} is told as {dtype!r}")
    if shape != tuple(int(n) for n in re.findall(rb"\d+", told[2])):
        raise WireError(f"{name}: can't be read, its header and its shape {shape} differ")
    if len(data) - end != math.prod(shape) * _ITEMS[dtype]:
        raise WireError(
            f"{name}: can't be read, {len(data) - end} bytes for shape {shape} of {dtype}"
        )


def check_promise(name: str, array: Array, promise: Promise) -> None:
    """Refuse an array that is not the one asked for, before it is decoded.

    Raises:
        WireError: Its dtype or shape is another, or as in ``check_payload``.
    """
    if array.dtype != promise.dtype:
        raise WireError(f"{name}: dtype {array.dtype!r}, expected {promise.dtype!r}")
    if not promise.fits(array.shape):
        raise WireError(f"{name}: shape {array.shape}, expected {promise.shape}")
    check_payload(name, array)


def printable(text: object, longest: int = 500) -> str:
    """Return text that somebody else wrote as one line, cut, without control characters.

    Others' words go to a terminal, a table and a page: escapes and line ends stay out of them.
    """
    return "".join(c if c.isprintable() else "?" for c in str(text)[:longest])


def shown(value: object, longest: int = 100) -> str:
    """Return how Python writes a value that somebody else chose, as ``printable``.

    What is long is cut before it is written out, so that a refusal costs no copy of a message.
    """
    cut = value[:longest] if isinstance(value, str | bytes | list) else value
    return printable(repr(cut), longest)
