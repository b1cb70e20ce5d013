"""What a finding of `atlas doctor` is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What.
        status: ``"ok"``; ``"warn"``: some experiments won't run, or slowly; ``"fail"``: none will.
        told: What was found.
        fix: What to do about it, in plain words; empty where nothing is to be done.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    told: str
    fix: str = ""


def ok(name: str, told: str) -> Check:
    """Return a good finding."""
    return Check(name, "ok", told)


def warn(name: str, told: str, fix: str) -> Check:
    """Return a finding that some experiments mind."""
    return Check(name, "warn", told, fix)


def fail(name: str, told: str, fix: str) -> Check:
    """Return a finding that nothing runs with."""
    return Check(name, "fail", told, fix)
