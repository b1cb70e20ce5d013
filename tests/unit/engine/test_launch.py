"""A whole run over stand-ins for Flower's programs: no Ray, a second each."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from atlas_flwr.engine import launch_area, launch_daemon, launch_session
from atlas_flwr.engine.launch import EngineOutcome, run_on_ray
from atlas_flwr.engine.launch_signals import signals_raise, signals_wait
from atlas_flwr.errors import RunFailed

# Answers /health; on /start, starts flwr-simulation as Flower's SuperExec would.
SUPERLINK = """
import http.server, os, subprocess, sys
class Link(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/start":
            subprocess.Popen(["flwr-simulation"], start_new_session=True)
        if self.path == "/die":
            os._exit(9)
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Link).serve_forever()
"""
SIMULATION = """
import os, pathlib, time
app = (pathlib.Path(os.environ["FLWR_HOME"]).parent / "app" / "pyproject.toml").read_text()
print(app)
time.sleep(float(os.environ["TOY_SECONDS"]))
"""
FLWR = """
import http.client, json, os, pathlib, sys, tomllib
home = pathlib.Path(os.environ["FLWR_HOME"])
address = tomllib.loads((home / "config.toml").read_text())["superlink"]["atlas"]["address"]
def get(path):
    link = http.client.HTTPConnection(address, timeout=5)
    try:
        link.request("GET", path)
        link.getresponse().read()
    except OSError:
        pass
if sys.argv[1] == "run":
    if "TOY_REFUSE" in os.environ:
        print(json.dumps({"success": False, "error-message": "Error: bad app\\n  because"}))
        raise SystemExit(1)
    get("/start")
    print(json.dumps({"success": True, "run-id": "7"}))
if sys.argv[1] == "ls":
    status = os.environ.get("TOY_STATUS", "finished:completed")
    print(json.dumps({"runs": [{"status": status, "status-details": "why not"}]}))
if sys.argv[1] == "log":
    print(os.environ.get("TOY_LOG", ""))
"""
PROGRAMS = {"flower-superlink": SUPERLINK, "flwr-simulation": SIMULATION, "flwr": FLWR}
TRACE = "Traceback (most recent call last):\n  File 'x'\na.b.WireError: no such record"


@pytest.fixture(autouse=True)
def programs(tmp_path, monkeypatch):
    """Put stand-ins where Flower's programs would be, and see that none is left running."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in PROGRAMS.items():
        (folder / name).write_text(f"#!{sys.executable}\n{text}")
        (folder / name).chmod(0o755)
    for room in (launch_session, launch_area, launch_daemon):
        monkeypatch.setattr(room, "program_folder", lambda: folder)
    monkeypatch.setenv("TOY_SECONDS", "0.5")
    yield
    left = [p for p in psutil.process_iter() if str(folder) in " ".join(words(p))]
    assert left == []


def words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline() if launch_daemon.lives(process) else []
    except psutil.Error:
        return []


def run(tmp_path: Path, **more) -> EngineOutcome:
    return run_on_ray(tmp_path / "e.toml", tmp_path / "out", 2, 2, 1, 0.0, **more)


def test_a_completed_run_says_so_ticks_and_keeps_no_log(tmp_path):
    ticks = []
    started = time.monotonic()
    outcome = run(tmp_path, on_tick=lambda: ticks.append(1))
    assert outcome == EngineOutcome("completed", "", None)
    assert len(ticks) >= 2 * (time.monotonic() - started)
    assert not (tmp_path / "out").exists()


def test_a_failed_run_gives_the_servers_error_and_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_STATUS", "finished:failed")
    monkeypatch.setenv("TOY_LOG", TRACE)
    outcome = run(tmp_path)
    assert (outcome.status, outcome.details) == ("failed", "WireError: no such record")
    assert outcome.log == tmp_path / "out" / "engine.log"
    assert "WireError" in outcome.log.read_text()


@pytest.mark.parametrize(
    ("status", "details"),
    [("finished:failed", "why not"), ("finished:stopped", "why not"), ("running", "killed")],
)
def test_without_a_traceback_flowers_word_is_given(tmp_path, monkeypatch, status, details):
    monkeypatch.setenv("TOY_STATUS", status)
    outcome = run(tmp_path)
    assert outcome.status == "failed"
    assert details in outcome.details


def test_a_refused_run_is_one_line_with_the_log(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_REFUSE", "1")
    with pytest.raises(
        RunFailed, match=r"refused the run: Error: bad app because; see .*engine\.log"
    ):
        run(tmp_path)
    assert (tmp_path / "out" / "engine.log").is_file()


def test_a_daemon_that_dies_during_the_run_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_SECONDS", "60")
    died = []

    def kill_it() -> None:
        for process in psutil.process_iter():
            if "flwr-simulation" in " ".join(words(process)) and str(tmp_path) in str(
                words(process)
            ):
                died.append(process.parent())
                process.parent().kill()

    with pytest.raises(RunFailed, match="SuperLink died during the run"):
        run(tmp_path, on_tick=kill_it)
    assert died


def test_the_time_limit_stops_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_SECONDS", "60")
    outcome = run(tmp_path, timeout=1.0)
    assert (outcome.status, outcome.details) == ("failed", "stopped after the time limit of 1 s")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interruption_at_any_tick_leaves_nothing(tmp_path, monkeypatch, error):
    monkeypatch.setenv("TOY_SECONDS", "60")
    for when in (1, 4, 12):
        ticks = iter(range(when))

        def tick(ticks=ticks) -> None:
            if next(ticks, None) is None:
                raise error

        with pytest.raises(error):
            run(tmp_path, on_tick=tick)


def test_sigterm_stops_the_run_and_the_old_handler_returns(tmp_path, monkeypatch):
    monkeypatch.setenv("TOY_SECONDS", "60")
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(SystemExit) as caught:
        run(tmp_path)
    assert caught.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_handler_of_the_callers_is_kept(monkeypatch):
    told = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
    try:
        with signals_raise():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert told == [signal.SIGTERM]


def test_ctrl_c_waits_until_everything_is_stopped():
    reached = []
    done = threading.Event()
    other = threading.Thread(target=done.wait)  # a signal may reach any thread of the process
    other.start()

    def stop_while_interrupted() -> None:
        with signals_wait():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("the end")

    try:
        with pytest.raises(KeyboardInterrupt):
            stop_while_interrupted()
    finally:
        done.set()
        other.join()
    assert reached == ["the end"]


def test_runs_in_threads_do_not_disturb_each_other(tmp_path):
    outcomes = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    threads = [
        threading.Thread(target=lambda n=name: outcomes.append(run(tmp_path / n)))
        for name in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.status for outcome in outcomes] == ["completed", "completed"]
