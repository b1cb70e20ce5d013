"""Finding the error that matters in a run's log, and keeping the log."""

import traceback

from hypothesis import given
from hypothesis import strategies as st

from atlas_flwr.engine.launch_area import private_area
from atlas_flwr.engine.launch_log import failure_line, keep_log
from atlas_flwr.errors import ConfigError

# As Flower 1.41 prints them: a client's error first, the ServerApp's after it.
FLOWER_LOG = """\
INFO :      Starting Flower Simulation
\x1b[31mERROR :     Traceback (most recent call last):\x1b[0m
  File "raybackend.py", line 195, in process_message
    raise ex
ray.exceptions.RayTaskError(ClientAppException): ray::ClientAppActor.run() (pid=1)
Exception ClientAppException occurred. Message: 'no'

ERROR :     Simulation raised an exception
Traceback (most recent call last):
  File "run_simulation.py", line 369, in _main_loop
    raise thread_ex
  File "server.py", line 15, in main
    raise RunFailed(text)
        ^^^^^^^^^^^^
atlas_flwr.errors.RunFailed: round 2: partition 1 was lost: out of memory
ERROR :     Exit Code: 700

An unhandled exception occurred when running the simulation.
"""


def trace(error: BaseException) -> str:
    try:
        raise error
    except type(error):
        return traceback.format_exc()


def test_the_servers_error_is_found_among_the_clients():
    assert failure_line(FLOWER_LOG) == "RunFailed: round 2: partition 1 was lost: out of memory"


def test_flowers_own_wrapper_is_passed_over():
    inner = trace(ConfigError("run.rounds: 0 is not positive"))
    wrapper = trace(RuntimeError("An error was encountered. Ending simulation."))
    assert failure_line(inner + "\n" + wrapper) == "ConfigError: run.rounds: 0 is not positive"


def test_the_last_of_a_chain_is_what_the_author_meant():
    chain = trace(KeyError("x")) + "\n" + trace(ConfigError("data.root: no such folder"))
    assert failure_line(chain) == "ConfigError: data.root: no such folder"


def test_a_ray_workers_prefix_is_dropped():
    lines = trace(ValueError("bad")).splitlines()
    log = "\n".join(f"(ClientAppActor pid=12, ip=1.2.3.4) {line}" for line in lines)
    assert failure_line(log) == "ValueError: bad"
    assert failure_line(f"{trace(ConfigError('the cause'))}{log}") == "ConfigError: the cause"


def test_an_error_without_a_message_is_its_name():
    assert failure_line(trace(AssertionError())) == "AssertionError"


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"])))
def test_any_one_line_message_comes_back(message):
    found = failure_line(f"noise\n{trace(ValueError(message))}more noise\n")
    assert found == f"ValueError: {message.strip()}".removesuffix(": ")


def test_no_traceback_no_line():
    assert failure_line("INFO : all is well\nValueError: mentioned in passing\n") == ""


def test_every_part_of_the_log_is_kept_without_colours(tmp_path):
    with private_area() as area:
        area.log.write_text("\x1b[92mINFO\x1b[0m : daemon\n")
        ray = area.root / "ray" / "session_2026-01-01_1" / "logs"
        ray.mkdir(parents=True)
        (ray / "raylet.err").write_text("raylet ran out of disk\n")
        (ray / "worker-1.err").write_text("shown in the run's log already\n")
        (ray / "gcs_server.err").write_text("")
        kept = keep_log(area, tmp_path / "new" / "out", "the run said no\n")
    text = kept.read_text()
    assert kept == tmp_path / "new" / "out" / "engine.log"
    for part in ("the run said no", "INFO : daemon", "raylet ran out of disk"):
        assert part in text
    assert "\x1b" not in text
    assert "already" not in text
    assert "gcs_server" not in text
