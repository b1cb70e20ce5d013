"""Start Flower's SuperLink for one run, know all its descendants, and stop every one of them."""

from __future__ import annotations

import http.client
import signal
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

from atlas_flwr.engine.launch_area import LOOPBACK, SUPERLINK, free_port, program_folder
from atlas_flwr.errors import RunFailed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from atlas_flwr.engine.launch_area import Area

# As in flwr/cli/local_superlink.py, state in memory.
SIMULATION = ("--insecure", "--simulation", "--isolation", "subprocess")
PORT_TRIES = 5
START_SECONDS = 60.0
TERM_SECONDS = 3.0
KILL_SECONDS = 10.0
_PAUSE = 0.1
_MARK = "FLWR_HOME"
# Killed outright, we cannot stop anything: Linux then tells the daemon, and Flower's other
# programs watch their parent.
_FOLLOW_PARENT = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""


class PortTaken(Exception):
    """Another program took the port between our choosing it and the daemon's binding it."""


@dataclass
class ProcessTree:
    """A daemon and everything it started, known even after a parent in between has gone.

    Attributes:
        daemon: The process started here.
        mark: The run's Flower home: a process whose environment names it belongs to this run.
        seen: Every descendant met so far; psutil compares start times, so a reused pid is no match.
    """

    daemon: subprocess.Popen[bytes]
    mark: str
    seen: set[psutil.Process]

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        area: Area,
        env: Mapping[str, str],
        log_file: Path | None = None,
    ) -> ProcessTree:
        """Start `command` in the area's empty folder, in its own session, printing to a log.

        Args:
            command: The program and its words.
            area: The run's folders.
            env: Its whole environment.
            log_file: Its log; the area's unless given.
        """
        wrapped = [sys.executable, "-I", "-c", _FOLLOW_PARENT, *command]
        with (log_file or area.log).open("wb") as log:
            daemon = subprocess.Popen(
                wrapped,
                env=dict(env),
                cwd=area.cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return cls(daemon, env[_MARK], set())

    def look(self) -> set[psutil.Process]:
        """Return the living processes of the tree, after adding newly started ones."""
        try:
            root = psutil.Process(self.daemon.pid)
            self.seen |= {root, *root.children(recursive=True)}
        except psutil.NoSuchProcess:
            pass  # the daemon has gone; its descendants met before are still known
        return {process for process in self.seen if lives(process)}

    def find(self, program: str) -> psutil.Process | None:
        """Return a living process that runs the named program, or None."""
        return next((p for p in self.look() if program in _program_words(p)), None)

    def stop(self, grace: float = TERM_SECONDS) -> list[int]:
        """End every process of the tree: ask, wait `grace` seconds, then kill.

        Returns:
            The pids that could not be ended (normally none).
        """
        self._signal_all(signal.SIGTERM)
        _wait_until(lambda: not self.look(), grace)
        deadline = time.monotonic() + KILL_SECONDS
        while (left := self._signal_all(signal.SIGKILL)) and time.monotonic() < deadline:
            _wait_until(lambda: not self.look(), 0.5)
        try:
            # Its exit status is to be had only when its last thread has gone: a poll would come
            # too early at times, and leave a zombie.
            self.daemon.wait(KILL_SECONDS)
        except subprocess.TimeoutExpired:
            left.add(psutil.Process(self.daemon.pid))
        return sorted(process.pid for process in left)

    def _signal_all(self, number: signal.Signals) -> set[psutil.Process]:
        """Send a signal to every living process of the run and return whom it was sent to."""
        self.look()
        self.seen |= _marked(self.mark)
        living = {process for process in self.seen if lives(process)}
        for process in living:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue  # ended by itself in between
        return living


def lives(process: psutil.Process) -> bool:
    """Say whether a process runs.

    A zombie only waits for its parent to ask for its status, unless other threads survive its
    first one.
    """
    try:
        if not process.is_running():
            return False
        return bool(process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1)
    except psutil.NoSuchProcess:
        return False


def _marked(mark: str) -> set[psutil.Process]:
    """Return the processes whose environment carries this run's mark."""
    found = set()
    for process in psutil.process_iter():
        try:
            if process.environ().get(_MARK) == mark:
                found.add(process)
        except (psutil.Error, OSError):
            continue  # somebody else's, or gone
    return found


def _program_words(process: psutil.Process) -> list[str]:
    """Return the file names of the first two words of a command line: interpreter and script."""
    try:
        return [word.rsplit("/", 1)[-1] for word in process.cmdline()[:2]]
    except psutil.Error:
        return []


def _wait_until(done: Callable[[], bool], seconds: float) -> bool:
    """Poll `done` for at most `seconds`; say whether it came true."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.05)
    return True


def start_superlink(
    area: Area,
    env: Mapping[str, str],
    adopt: Callable[[ProcessTree], None],
    tick: Callable[[], None],
    words: Sequence[str] = SIMULATION,
    authority: Path | None = None,
    port: int | None = None,
) -> int:
    """Start a SuperLink on a free port and wait until it answers.

    Args:
        area: The run's folders.
        env: The run's environment.
        adopt: Is handed each process tree the moment it exists, so that the caller can stop it.
        tick: Called while waiting.
        words: What it serves and how; simulations in plain HTTP unless given.
        authority: Certificate of the authority it is checked against, where it speaks TLS.
        port: The one port to take; any free one unless given.

    Returns:
        The port.

    Raises:
        RunFailed: The daemon ended, did not answer in time, or found no free port.
    """
    for _ in range(PORT_TRIES):
        chosen = port or free_port()
        tree = ProcessTree.start(_superlink_command(chosen, words), area, env)
        adopt(tree)
        try:
            _wait_for_answer(tree, area, chosen, tick, authority)
        except PortTaken:
            tree.stop()
            continue
        return chosen
    raise RunFailed(f"no free port on {LOOPBACK} for Flower's SuperLink after {PORT_TRIES} tries")


def _superlink_command(port: int, words: Sequence[str]) -> list[str]:
    """Return the daemon's command line."""
    return [program_path(SUPERLINK), *words, "--host", LOOPBACK, "--port", str(port)]


def program_path(name: str) -> str:
    """Return where one of Flower's programs is.

    Raises:
        RunFailed: It is not installed beside this Python.
    """
    program = program_folder() / name
    if not program.is_file():
        raise RunFailed(f"{program} is missing: install 'flwr[simulation]' in this environment")
    return str(program)


def _wait_for_answer(
    tree: ProcessTree, area: Area, port: int, tick: Callable[[], None], authority: Path | None
) -> None:
    """Wait until our own daemon, and not some other program, answers on the port."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if (code := tree.daemon.poll()) is not None:
            if "address already in use" in area.log.read_text(errors="replace").lower():
                raise PortTaken
            raise RunFailed(f"Flower's SuperLink ended with code {code} before it was ready")
        if listens(tree.daemon.pid, port) and _healthy(port, authority):
            return
        tick()
        time.sleep(_PAUSE)
    raise RunFailed(f"Flower's SuperLink did not answer within {START_SECONDS:.0f} s")


def listens(pid: int, port: int) -> bool:
    """Say whether this very process listens on the port."""
    try:
        connections = psutil.Process(pid).net_connections("inet")
    except psutil.Error:
        return False
    return any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections)


def _healthy(port: int, authority: Path | None) -> bool:
    """Ask the SuperLink's /health; a direct connection, so that no proxy is asked."""
    if authority is None:
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
    else:
        trust = ssl.create_default_context(cafile=str(authority))
        connection = http.client.HTTPSConnection(LOOPBACK, port, timeout=2, context=trust)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
