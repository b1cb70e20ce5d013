"""Checks of text and label columns; rows are counted from 1, the header apart."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_flwr.data.files import Columns
from atlas_flwr.errors import DataError

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def text_rows(columns: Columns, names: Sequence[str], place: str) -> list[tuple[str, ...]]:
    """Return the text columns as one tuple a row.

    Raises:
        DataError: A cell is missing, empty or not text; names place, column and row.
    """
    for name in names:
        for row, value in enumerate(columns[name], start=1):
            if not isinstance(value, str):
                what = "is missing" if _missing(value) else f"is not text: {_shown(value)}"
                raise DataError(f"{place}: column '{name}', row {row}: the text {what}")
            if not value.strip():
                raise DataError(f"{place}: column '{name}', row {row}: the text is empty")
    return list(zip(*(columns[name] for name in names), strict=True))


def label_values(values: Sequence[Any], column: str, place: str) -> list[int] | list[str]:
    """Return a label column as integers, or as strings when its values are words.

    Whole numbers written as text or floats (``"1"``, ``1.0``) and booleans are integers.

    Raises:
        DataError: A label is missing, a fraction, of another type, or words and numbers are mixed.
    """
    words: list[str] = []
    numbers: list[int] = []
    for row, value in enumerate(values, start=1):
        at = f"{place}: column '{column}', row {row}"
        if _missing(value) or value == "":
            raise DataError(f"{at}: the label is missing")
        if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
            words.append(value)
        else:
            numbers.append(_whole(value, at))
        if words and numbers:
            raise DataError(f"{at}: label {_shown(value)} is not an integer, or mixes with words")
    return words or numbers


def check_range(labels: Sequence[int], num_labels: int | None, column: str, place: str) -> None:
    """Refuse a negative label, or one that is not below a known number of classes.

    Raises:
        DataError: Names place, column, row and label.
    """
    for row, label in enumerate(labels, start=1):
        if label < 0 or (num_labels is not None and label >= num_labels):
            top = "C-1" if num_labels is None else str(num_labels - 1)
            raise DataError(
                f"{place}: column '{column}', row {row}: label {label} is out of range 0..{top}"
            )


def encode_labels(
    train: list[int] | list[str],
    validation: list[int] | list[str],
    column: str,
    places: tuple[str, str],
) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[str, ...]]:
    """Number the labels of a task whose classes are not known beforehand.

    Integers must be 0..C-1 with every class in train; words are numbered in sorted order.

    Returns:
        Train and validation labels, and the class names.

    Raises:
        DataError: A gap in the numbers, or a validation label that train does not have.
    """
    names = sorted({*train}, key=lambda label: (isinstance(label, str), label))
    if isinstance(names[0], int):
        check_range([label for label in train if isinstance(label, int)], None, column, places[0])
        for number, label in enumerate(names):
            if number != label:
                raise DataError(
                    f"{places[0]}: column '{column}': labels must be 0..C-1, but no row has "
                    f"{number} (largest: {names[-1]}); number the classes from 0, or name "
                    f"them in words, e.g. '{column} {names[-1]}'"
                )
    numbers = {label: number for number, label in enumerate(names)}
    for row, label in enumerate(validation, start=1):
        if label not in numbers:
            raise DataError(
                f"{places[1]}: column '{column}', row {row}: label {_shown(label)} "
                f"is not a label of {places[0]}"
            )
    return (
        np.array([numbers[label] for label in train], dtype=np.int64),
        np.array([numbers[label] for label in validation], dtype=np.int64),
        tuple(str(label) for label in names),
    )


def check_classes(
    labels: NDArray[np.int64], column: str, place: str, names: Sequence[str] = ()
) -> None:
    """Refuse a training set with fewer than two classes.

    Args:
        labels: Class numbers.
        column: Where they are from.
        place: The file or split.
        names: The classes as the file calls them; numbers are shown without.

    Raises:
        DataError: Names place, column and the only label.
    """
    found = np.unique(labels)
    if len(found) < 2:
        only = "no rows"
        if len(found):
            only = f"label {names[found[0]] if names else found[0]} only"
        raise DataError(f"{place}: column '{column}' has {only}; at least two classes are needed")


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _whole(value: Any, at: str) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float | str):
        number = float(value)
        if math.isfinite(number) and number.is_integer():
            return int(number)
    raise DataError(f"{at}: label {_shown(value)} is not an integer")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
