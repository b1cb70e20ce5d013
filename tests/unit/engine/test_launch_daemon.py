"""Starting a daemon and ending its whole tree, with stand-in programs."""

import http.server
import os
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from atlas_flwr.engine import launch_daemon
from atlas_flwr.engine.launch_area import AppRefs, environment_for, private_area
from atlas_flwr.engine.launch_daemon import ProcessTree, listens, start_superlink
from atlas_flwr.errors import RunFailed

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, __file__, *sys.argv[2:]], start_new_session=True)
    if sys.argv[1] == "leave":
        time.sleep(0.5)
        sys.exit()
time.sleep(300)
"""
FAKE_SUPERLINK = """
import http.server, sys
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Health).serve_forever()
"""


# The first thread ends by the system call, so the process is a zombie with a living thread.
HEADLESS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(300,)).start()
print("started", flush=True)
ctypes.CDLL(None).syscall(ctypes.c_long(60), ctypes.c_long(0))
"""


@pytest.fixture
def area():
    with private_area() as area:
        yield area


@pytest.fixture
def env(area):
    return environment_for(area, 1, AppRefs(), os.environ)


@pytest.fixture
def script(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "program.py"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


def nothing() -> None:
    """A tick that draws nothing."""


def wait_for(tree: ProcessTree, count: int) -> set[psutil.Process]:
    """Wait until `count` programs (the daemon included) have been started for good."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found = launch_daemon._marked(tree.mark)
        if len([p for p in found if "program.py" in " ".join(p.cmdline())]) >= count:
            time.sleep(0.3)
            return found | tree.look()
        time.sleep(0.05)
    raise AssertionError("the stand-in daemon did not come up")


def test_a_tree_that_ignores_sigterm_is_killed_whole(area, env, script):
    tree = ProcessTree.start([sys.executable, script(STUBBORN), "stay", "stay"], area, env)
    met = wait_for(tree, 3)
    assert tree.stop(grace=0.3) == []
    assert not any(launch_daemon.lives(process) for process in met)
    assert tree.daemon.returncode is not None


def test_a_child_in_another_session_is_found_after_its_parent_has_gone(area, env, script):
    tree = ProcessTree.start([sys.executable, script(STUBBORN), "leave"], area, env)
    tree.daemon.wait(timeout=20)
    orphans = launch_daemon._marked(tree.mark)
    assert len(orphans) == 1
    assert tree.stop(grace=0.2) == []
    assert not any(launch_daemon.lives(process) for process in orphans)


def test_processes_of_others_are_left_alone(area, env, script):
    path = script(STUBBORN)
    with subprocess.Popen([sys.executable, path]) as bystander:
        tree = ProcessTree.start([sys.executable, path], area, env)
        wait_for(tree, 1)
        assert tree.stop(grace=0.1) == []
        assert bystander.poll() is None
        bystander.kill()


def test_stopping_twice_is_harmless(area, env, script):
    tree = ProcessTree.start([sys.executable, script("pass")], area, env)
    tree.daemon.wait(timeout=20)
    assert tree.stop() == []
    assert tree.stop() == []


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine != "x86_64", reason="a system call by number"
)
def test_a_daemon_whose_first_thread_has_gone_is_ended_and_its_status_taken(area, env, script):
    tree = ProcessTree.start([sys.executable, script(HEADLESS)], area, env)
    root = psutil.Process(tree.daemon.pid)
    assert launch_daemon._wait_until(lambda: root.status() == psutil.STATUS_ZOMBIE, 20)
    assert launch_daemon.lives(root)
    assert tree.stop(grace=0.2) == []
    assert tree.daemon.returncode is not None


@pytest.mark.skipif(sys.platform != "linux", reason="the parent's death is told on Linux only")
def test_the_daemon_goes_when_its_starter_is_killed(area, env, script):
    starter = textwrap.dedent(f"""
        import os, sys, time
        from pathlib import Path
        from atlas_flwr.engine.launch_area import Area
        from atlas_flwr.engine.launch_daemon import ProcessTree
        root = Path({str(area.root)!r})
        area = Area(root, root / "home", root / "cwd", root / "app", root / "superlink.log")
        env = {{**os.environ, "FLWR_HOME": str(area.home)}}
        words = [sys.executable, "-c", "import time; time.sleep(300)"]
        print(ProcessTree.start(words, area, env).daemon.pid, flush=True)
        time.sleep(300)
    """)
    parent = subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, env=env)
    assert parent.stdout is not None
    daemon = psutil.Process(int(parent.stdout.readline()))
    time.sleep(1.0)
    assert launch_daemon.lives(daemon)
    parent.kill()
    parent.communicate()
    assert launch_daemon._wait_until(lambda: not launch_daemon.lives(daemon), 10)


def serve(monkeypatch, command):
    """Start stand-ins instead of Flower's SuperLink."""
    monkeypatch.setattr(launch_daemon, "_superlink_command", command)


def test_the_superlink_is_ready_when_our_own_process_answers(area, env, script, monkeypatch):
    path = script(FAKE_SUPERLINK)
    serve(monkeypatch, lambda port, words: [sys.executable, path, str(port)])
    trees: list[ProcessTree] = []
    port = start_superlink(area, env, trees.append, nothing)
    assert listens(trees[0].daemon.pid, port)
    assert not listens(os.getpid(), port)
    assert trees[0].stop() == []


def test_a_taken_port_is_left_for_another(area, env, script, monkeypatch):
    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    path = script(FAKE_SUPERLINK)
    serve(monkeypatch, lambda port, words: [sys.executable, path, str(port)])
    trees: list[ProcessTree] = []
    with http.server.HTTPServer(("127.0.0.1", 0), Health) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        free = launch_daemon.free_port
        ports = iter([other.server_port])
        monkeypatch.setattr(launch_daemon, "free_port", lambda: next(ports, None) or free())
        port = start_superlink(area, env, trees.append, nothing)
        assert port != other.server_port
        other.shutdown()
    assert len(trees) == 2
    assert trees[1].stop() == []


def test_a_daemon_that_dies_at_once_is_told(area, env, script, monkeypatch):
    path = script("raise SystemExit(3)")
    serve(monkeypatch, lambda port, words: [sys.executable, path])
    with pytest.raises(RunFailed, match="ended with code 3"):
        start_superlink(area, env, lambda tree: None, nothing)
    assert area.log.is_file()


def test_a_missing_program_is_named(area, env, tmp_path, monkeypatch):
    monkeypatch.setattr(launch_daemon, "program_folder", lambda: tmp_path)
    with pytest.raises(
        RunFailed, match=r"flower-superlink is missing: install 'flwr\[simulation\]'"
    ):
        start_superlink(area, env, lambda tree: None, nothing)
