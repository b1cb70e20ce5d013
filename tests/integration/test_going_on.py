"""What goes on under which experiment, and how a run ends whose server never got that far."""

from __future__ import annotations

import errno
import os
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from rich.console import Console

from atlas_flwr.apps import server
from atlas_flwr.apps.record import close_unfinished
from atlas_flwr.apps.resume import find_run, restore
from atlas_flwr.apps.run import run_experiment
from atlas_flwr.apps.up import bring_up
from atlas_flwr.config.load import load_config, with_out
from atlas_flwr.engine.launch import EngineOutcome
from atlas_flwr.errors import ResultError, RunFailed, RunStopped
from fakes import write_experiment
from killing import listing
from runs import Run, Said, assert_refused

pytestmark = pytest.mark.usefixtures("no_report")


def test_auto_refuses_another_experiment_where_one_is_finished(
    run: Callable[..., Run], atlas: Callable[..., Said], tree: dict[str, Any], tmp_path: Path
) -> None:
    out = run("a").folder
    file = write_experiment(tmp_path / "b.toml", tree, run={"rounds": 3})
    before = listing(out)
    said = atlas("run", file, "--out", out, "--resume", "auto")
    assert_refused(said, "run.rounds is 3 here, 2 there")
    assert listing(out) == before


def test_a_finished_run_is_not_made_longer(
    run: Callable[..., Run], atlas: Callable[..., Said]
) -> None:
    said = atlas("resume", run("a").folder, "--set", "run.rounds=9")
    assert_refused(said, "run.rounds makes another run of it")


def test_auto_goes_on_under_the_words_of_this_command(
    run: Callable[..., Run], atlas: Callable[..., Said], tree: dict[str, Any], tmp_path: Path
) -> None:
    out = run("a").folder
    (out / "summary.json").unlink()
    file = write_experiment(tmp_path / "b.toml", tree, run={"client-timeout": 77.0})
    assert atlas("run", file, "--out", out, "--resume", "auto").code == 0
    assert tomllib.loads((out / "config.toml").read_text())["run"]["client-timeout"] == 77.0


def test_a_page_of_an_earlier_end_does_not_stay(run: Callable[..., Run]) -> None:
    out = run("a").folder
    (out / "report.html").write_text("this run failed")
    restore(out, find_run(out).commit)
    assert not (out / "report.html").exists()


def test_a_folder_that_can_not_be_locked_is_one_line(
    run: Callable[..., Run], atlas: Callable[..., Said]
) -> None:
    out = run("a").folder
    (out / "summary.json").unlink()
    for name in (".command.lock", ".writer.lock"):
        (out / name).unlink()
        (out / name).mkdir()
        assert_refused(atlas("resume", out), name, "can't be locked")
        (out / name).rmdir()


def test_a_finished_deployment_that_is_submitted_again_stays(
    run: Callable[..., Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run("a").folder
    before = listing(out)
    told: dict[str, Any] = {
        "config": str(tmp_path / "a.toml"),
        "out": str(out),
        "resume": "auto",
        "overrides": "engine.workers=1",
    }
    nobody: Any = object()
    server.main(nobody, Context(1, 1, {}, RecordDict(), told))
    assert "is finished" in capsys.readouterr().out
    assert listing(out) == before
    with pytest.raises(ResultError, match="seed is 8 here, 7 there"):
        server.main(nobody, Context(1, 1, {}, RecordDict(), {**told, "overrides": "run.seed=8"}))


def test_up_that_was_killed_before_its_run_began_begins_anew(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = Path(config.run.out)
    for name in ("client-0", "client-9"):
        (out / "nodes" / name).mkdir(parents=True)
    (out / "events.jsonl").touch()
    monkeypatch.setattr("atlas_flwr.apps.up.run_deployed", ends("no SuperLink here"))
    with pytest.raises(ResultError, match="is there already"):
        bring_up(Console(), config, None, tls=False, resume=False)
    with pytest.raises(RunFailed, match="no SuperLink here"):
        bring_up(Console(), config, None, tls=False, resume=True)
    assert sorted(each.name for each in (out / "nodes").iterdir()) == [
        f"client-{partition}" for partition in range(3)
    ]
    assert (out / "nodes" / "client-0" / "train.parquet").exists()


# ------------------------------------------------------------------ a server that never wrote


@pytest.fixture
def config(tree: dict[str, Any], tmp_path: Path) -> Any:
    file = write_experiment(tmp_path / "e.toml", tree)
    return with_out(load_config(file), str(tmp_path / "a"))


def ends(details: str) -> Any:
    return lambda *_, **__: EngineOutcome("failed", details, Path("engine.log"))


def test_a_server_that_ends_before_it_begins_says_why(config: Any) -> None:
    with pytest.raises(RunFailed, match="AtlasError: 1 of 3 clients came"):
        run_experiment(config, lambda _: None, deployed=ends("AtlasError: 1 of 3 clients came"))


def test_a_stopped_run_whose_server_does_not_start_has_failed(
    run: Callable[..., Run], config: Any
) -> None:
    out = run("a").folder
    text = (out / "summary.json").read_text()
    (out / "summary.json").write_text(text.replace('"completed"', '"stopped"'))
    with pytest.raises(RunFailed, match="no such file"):
        run_experiment(config, lambda _: None, find_run(out), ends("ModelError: no such file"))


def test_a_disk_that_is_full_for_the_engines_log_too(config: Any) -> None:
    def full(*_: Any) -> EngineOutcome:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "engine.log")

    with pytest.raises(RunFailed, match=r"engine.log: No space left on device; nothing was begun"):
        run_experiment(config, lambda _: None, deployed=full)


@pytest.mark.parametrize(
    ("error", "who"), [(KeyboardInterrupt(), "by Ctrl-C"), (SystemExit(143), "by SIGTERM")]
)
def test_stopped_before_it_had_begun(error: BaseException, who: str, config: Any) -> None:
    def stop(*_: Any) -> EngineOutcome:
        raise error

    with pytest.raises(RunStopped, match=f"^{who}, before the run had begun$"):
        run_experiment(config, lambda _: None, deployed=stop)


def test_a_signal_counts_before_an_engine_runs(
    config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("atlas_flwr.apps.run.prepare", load)
    engine = config.engine.model_copy(update={"kind": "ray"})
    with pytest.raises(RunStopped, match="by SIGTERM, before the run had begun"):
        run_experiment(config.model_copy(update={"engine": engine}), lambda _: None)


def test_killed_between_a_rounds_line_and_its_rows(run: Callable[..., Run], config: Any) -> None:
    out = run("a").folder
    for name in ("summary.json", "clients.parquet"):
        (out / name).unlink()
    close_unfinished(config, out, "ray", "killed", 1.0)
    assert Run.read(out).summary["status"] == "failed"
    assert Run.read(out).rounds == []


def test_a_deployed_run_does_not_go_on_as_a_simulation(
    run: Callable[..., Run], atlas: Callable[..., Said]
) -> None:
    """Its clients' own rows and private parts are not what the server would deal and find."""
    out = run("a").folder
    (out / "summary.json").unlink()
    told = out / "provenance.json"
    told.write_text(told.read_text().replace('"engine": "inline"', '"engine": "deployment"'))
    assert_refused(atlas("resume", out), "is a deployment", "atlas up", "resume='auto'")
    with pytest.raises(ResultError):
        find_run(out / "nowhere")


@pytest.mark.parametrize("words", [("--days", "0"), ("--days", "99999999"), ("--nodes", "-1")])
def test_keys_of_no_time_or_number(
    words: tuple[str, ...], atlas: Callable[..., Said], tmp_path: Path
) -> None:
    assert_refused(atlas("certs", tmp_path / "keys", "--host", "localhost", *words), words[0])
