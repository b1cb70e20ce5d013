"""The texts that ``atlas predict`` is given: on the command line, in a file, or on its input."""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_flwr.errors import DataError

KINDS = (".csv", ".jsonl", ".txt")
# What Python makes of bytes that are no UTF-8, in arguments and on its input.
_LONE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Texts:
    """What is to be classified.

    Attributes:
        rows: One mapping of columns a text; typed texts and lines are under ``text``, their
            second texts under ``pair``.
        where: What errors call them.
        named: Whether the columns are those of a file; else they were typed, or are lines.
    """

    rows: Sequence[Mapping[str, str]]
    where: str = "TEXT"
    named: bool = False

    def columns(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the texts of each row, one or two as a task's columns say.

        A file's column may be called as the task calls it, or ``text`` and ``pair``. A column of
        any other name is refused, if it is the only one too: a file without a head line would
        lose its first text.

        Raises:
            DataError: A column or a second text is missing, there is one too many, or a row is
                empty or was not written in UTF-8.
        """
        if not self.rows:
            raise DataError(f"{self.where}: there is no text; give texts, or --file")
        found = [self._row(number, row, names) for number, row in enumerate(self.rows, 1)]
        for number, texts in enumerate(found, 1):
            if not any(text.strip() for text in texts):
                raise DataError(f"{self.where}: row {number} is empty; an empty text has no class")
            if any(_LONE.search(text) for text in texts):
                raise DataError(f"{self.where}: row {number} is not UTF-8; write it so")
        return found

    def _row(self, number: int, row: Mapping[str, str], names: Sequence[str]) -> tuple[str, ...]:
        if not self.named:
            if len(row) == len(names):
                return tuple(row.values())
            if len(names) == 2:
                raise DataError(
                    f"--pair: the task has two texts ({names[0]} and {names[1]}); give the second "
                    "with --pair, or a csv with both"
                )
            raise DataError("--pair: the task has one text; leave the second out")
        generic = ("text", "pair")[: len(names)]
        for wanted in (names, generic):
            if all(name in row for name in wanted):
                return tuple(row[name] for name in wanted)
        told = " and ".join(f"'{name}'" for name in names)
        raise DataError(
            f"{self.where}: row {number} has the columns {', '.join(row) or 'none'}; the task "
            f"reads {told} (or {' and '.join(generic)}); a csv names its columns in its first line"
        )


def read_texts(texts: Sequence[str], pairs: Sequence[str], file: str | None) -> Texts:
    """Return the texts of a command line.

    Args:
        texts: Those typed.
        pairs: Their second texts, as many, or none.
        file: A csv (with a head line), jsonl or txt file (a text a line); ``-`` reads lines from
            the input.

    Raises:
        DataError: Both were given, the numbers differ, or the file can't be read.
    """
    if file is not None:
        if texts or pairs:
            raise DataError(f"--file {file}: give texts on the command line or in a file, not both")
        return _read_file(file)
    if pairs and len(pairs) != len(texts):
        raise DataError(f"--pair: {len(texts)} texts and {len(pairs)} second texts; give each one")
    if not pairs:
        return Texts([{"text": text} for text in texts])
    return Texts([{"text": a, "pair": b} for a, b in zip(texts, pairs, strict=True)])


def _read_file(file: str) -> Texts:
    if file == "-":
        try:
            return Texts(_lines(sys.stdin.read()), "the input")
        except UnicodeDecodeError as error:
            raise DataError("--file -: the input is not UTF-8; write it so") from error
    path = Path(file).expanduser()
    if path.suffix.lower() not in KINDS:
        raise DataError(f"--file {file}: is none of {', '.join(KINDS)}")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DataError(f"--file {file}: can't be read ({reason})") from error
    match path.suffix.lower():
        case ".csv":
            return Texts(_csv(content, file), file, named=True)
        case ".jsonl":
            return Texts(_jsonl(content, file), file, named=True)
        case _:
            return Texts(_lines(content), file)


def _lines(content: str) -> list[dict[str, str]]:
    # Not splitlines, here and below: texts may hold U+2028 and other breaks that end no line.
    return [{"text": line} for line in content.split("\n") if line.strip()]


def _csv(content: str, file: str) -> list[dict[str, str]]:
    reader = csv.DictReader(io.StringIO(content), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise DataError(f"--file {file}: line {reader.line_num}: {error}") from error
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise DataError(f"--file {file}: line {number} has not as many fields as the head line")
    return [{str(name): str(text) for name, text in row.items()} for row in rows]


def _jsonl(content: str, file: str) -> list[dict[str, str]]:
    """Return the texts of each line's object; what is no text (null, a list) is left out."""
    rows = []
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            told = {str(k): str(v) for k, v in row.items() if isinstance(v, str | int | float)}
            rows.append(told)
        except (ValueError, AttributeError) as error:
            raise DataError(f"--file {file}: line {number} is no JSON object") from error
    return rows
