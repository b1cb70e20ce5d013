"""Let a run be stopped by signals, and its stopping not be interrupted."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_ENDING = (signal.SIGTERM, signal.SIGHUP) if hasattr(signal, "SIGHUP") else (signal.SIGTERM,)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into SystemExit(128 + number) inside the block, as Ctrl-C raises.

    A handler that the caller has set is left alone. Only Python's main thread takes handlers; in
    any other this does nothing, and the signal does not reach that thread's code anyway.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def who_stopped(error: BaseException) -> str:
    """Return who stopped a run, in words: the error's own, Ctrl-C, or a signal by its name."""
    if isinstance(error, KeyboardInterrupt):
        return "by Ctrl-C"
    if isinstance(error, SystemExit) and isinstance(error.code, int) and error.code > 128:
        return f"by {signal.Signals(error.code - 128).name}"
    return str(error) or type(error).__name__


@contextmanager
def signals_wait() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back inside the block; the first is delivered at its end.

    For the few seconds in which a run's processes are stopped: a second Ctrl-C, which impatient
    people press, would otherwise leave half of them running. Handlers and not a signal mask: a
    mask holds for one thread, and the signal would reach another.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    numbers = [n for n in (signal.SIGINT, *_ENDING) if signal.getsignal(n) is not None]
    before = {n: signal.signal(n, lambda number, frame: came.append(number)) for n in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
