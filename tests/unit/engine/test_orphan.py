"""A run's server ends with the program that started it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest

from atlas_flwr.engine.orphan import PARENT, watch_parent


def test_nobody_is_watched_unless_named() -> None:
    assert watch_parent({}) is None


def test_a_parent_that_lives_ends_nothing() -> None:
    ended = threading.Event()
    watch_parent({PARENT: str(os.getpid())}, ended.set)
    assert not ended.wait(1.2)


@pytest.mark.parametrize("waited", [True, False])
def test_a_killed_parent_is_noticed(waited: bool) -> None:
    """Also one that nobody has asked for its status yet, a zombie."""
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    ended = threading.Event()
    watch_parent({PARENT: str(parent.pid)}, ended.set)
    parent.kill()
    if waited:
        parent.wait()
    try:
        assert ended.wait(5)
    finally:
        parent.wait()


def test_a_number_that_names_nobody() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ended = threading.Event()
    watch_parent({PARENT: str(gone.pid)}, ended.set)
    assert ended.wait(5)


def test_the_process_ends_with_all_it_started(tmp_path) -> None:
    program = (
        "import os, subprocess, sys, time; from atlas_flwr.engine.orphan import watch_parent;"
        "child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True);"
        "watch_parent(); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    server = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, PARENT: str(parent.pid)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    child = int(server.stdout.readline())
    parent.kill()
    parent.wait()
    began = time.monotonic()
    assert server.wait(10) == 1
    assert time.monotonic() - began < 5
    server.stdout.close()
    while psutil.pid_exists(child) and psutil.Process(child).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() - began < 10
        time.sleep(0.05)


def test_a_value_that_is_no_process_id() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        watch_parent({PARENT: "the shell"})
