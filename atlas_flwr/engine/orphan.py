"""End a run's server when the program that started the run has gone.

`kill -9` of ``atlas`` gives nobody the chance to stop anything. The kernel (Linux) then tells the
SuperLink, but Flower's simulation goes on training, and writing the run directory, to its last
round. So the server watches the program at the top, whose process id is in its environment.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping

import psutil

PARENT = "ATLAS_PARENT"
POLL_SECONDS = 0.5


def watch_parent(
    environment: Mapping[str, str] = os.environ, end: Callable[[], None] | None = None
) -> threading.Thread | None:
    """Watch the program whose process id is in ``ATLAS_PARENT``; when it has gone, end this one.

    Args:
        environment: Where the variable is looked up.
        end: Called once when the program has gone; by default this process and all it started end
            at once, as by SIGKILL, which a run's commits survive at any moment.

    Returns:
        The thread, or None where the variable is not set: a run that was handed to Flower by its
        own command belongs to its SuperLink.

    Raises:
        ValueError: The variable holds no process id.
    """
    told = environment.get(PARENT)
    if told is None:
        return None
    pid = int(told)

    def watch() -> None:
        try:
            parent = psutil.Process(pid)
            # Compares start times too: another process that got the number is not the parent.
            while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
                time.sleep(POLL_SECONDS)
        except psutil.NoSuchProcess:
            pass  # which is what is watched for
        (end or end_now)()

    thread = threading.Thread(target=watch, name="watch-parent", daemon=True)
    thread.start()
    return thread


def end_now() -> None:
    """End this process and all its descendants (Ray and its workers)."""
    for process in psutil.Process().children(recursive=True):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    os._exit(1)
