"""Every error atlas-flwr raises on purpose.

AtlasError
├── UserError            the input is wrong: exit code 2, one line, no traceback
│   ├── ConfigError      a key, value or pair of values in the experiment file
│   ├── DataError        a task's files, columns, labels or row counts
│   ├── ModelError       a model that can't be had, or can't be adapted
│   └── ResultError      a run directory that is missing, foreign or already finished
├── WireError            a message that is not what both sides agreed on
├── WriteBackError       a tensor sent that is not the tensor loaded
├── AggregationError     updates that can't be averaged
├── RunFailed            the federation stopped: clients were lost, or too few replied
└── RunStopped           the run was stopped on purpose and can be resumed: exit code 3
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class AtlasError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class UserError(AtlasError):
    """The input is wrong; the message is one line that names the place, the value and the mend."""

    exit_code = 2


class ConfigError(UserError):
    """A key, value or pair of values of the experiment file is wrong."""


class DataError(UserError):
    """A task's files, columns, labels or row counts are wrong."""


class ModelError(UserError):
    """A model can't be had, or can't be adapted as asked."""


class ResultError(UserError):
    """A run directory is missing, foreign, unwritable or already finished."""


class WireError(AtlasError):
    """A message does not carry what both sides agreed on."""


class WriteBackError(AtlasError):
    """A tensor that was sent is not the tensor that was loaded (name, count or shape)."""


class AggregationError(AtlasError):
    """Updates can't be averaged: shapes differ, weights are not positive, or values not finite."""


class RunFailed(AtlasError):
    """The federation stopped before its last round."""


class RunStopped(AtlasError):
    """The run was stopped between two messages on purpose; what it committed can be resumed."""

    exit_code = 3


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" for the nearest known word, else an empty string.

    >>> did_you_mean("fedavgg", ["fedavg", "fedprox"])
    " (did you mean 'fedavg'?)"
    >>> did_you_mean("SST2", ["sst2"])
    " (did you mean 'sst2'?)"
    >>> did_you_mean("zzz", ["fedavg"])
    ''
    """
    spelled = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), list(spelled), n=1, cutoff=0.6)
    return f" (did you mean '{spelled[near[0]]}'?)" if near else ""
