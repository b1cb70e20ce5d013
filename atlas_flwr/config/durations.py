"""Spans of time as users write them: ``3h30m``, ``45m``, ``90s``."""

from __future__ import annotations

import re

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_FORM = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def seconds_in(text: str) -> int:
    """Return the seconds in a span such as ``3h30m``.

    Raises:
        ValueError: It is not days, hours, minutes and seconds in this order, or is nothing.

    >>> seconds_in("3h30m"), seconds_in("90s")
    (12600, 90)
    """
    found = _FORM.fullmatch(text)
    seconds = (
        sum(int(n or 0) * unit for n, unit in zip(found.groups(), _UNITS.values(), strict=True))
        if found
        else 0
    )
    if not seconds:
        raise ValueError("should be a span of time such as '3h30m', '45m' or '90s'")
    return seconds


def checked_span(text: str) -> str:
    """Return the text if it is a span of time; for pydantic."""
    seconds_in(text)
    return text
