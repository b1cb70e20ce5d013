"""`atlas watch`: what files say of a run that goes on, has ended, or was killed."""

import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from atlas_flwr.errors import ResultError
from atlas_flwr.results.store import read_run
from atlas_flwr.results.watch import look, runs_below, runs_in
from atlas_flwr.results.watch_view import lines, panel

START = {"event": "start", "clients": 4, "time": 100.0}


def events(run, *told):
    (run.path / "events.jsonl").write_text("".join(json.dumps(each) + "\n" for each in told))


def shown(view, width=90):
    out = io.StringIO()
    Console(file=out, width=width).print(view)
    return out.getvalue()


@pytest.fixture
def going(run):
    """A run after two of its three rounds, in the third."""
    (run.path / "summary.json").unlink()
    path = run.path / "rounds.jsonl"
    two = path.read_text().splitlines(keepends=True)[:2]
    path.write_text("".join(two) + two[0][:30])  # a third line is on its way
    events(
        run,
        START,
        {"event": "round", "time": 104.0},
        {"event": "round", "time": 108.0},
        {"event": "note", "partition": 2, "text": "micro-batch 4", "time": 109.0},
        {"event": "phase", "phase": "train", "clients": 4, "round": 3, "time": 109.0},
        {"event": "arrived", "done": 3, "total": 4, "time": 109.5},
    )
    return run


def test_a_run_that_goes_on(going):
    seen = look(going.path, now=110.0)
    assert (seen.status, seen.phase, seen.done, seen.total) == (None, "train", 3, 4)
    assert len(seen.rounds) == 2
    assert seen.seconds == 10.0
    assert seen.idle == 0.5
    assert seen.left == pytest.approx(2.5 - 2.0)  # a round takes 2.5 s, this one began 2 s ago
    assert seen.notes == ("client 2: micro-batch 4",)
    text = shown(panel(seen))
    for words in ("round 3/3", "training 3/4 clients", "10.0 s so far", "about 0.5 s left", "bbc"):
        assert words in text


def test_a_finished_run(run):
    seen = look(run.path)
    assert (seen.status, seen.left, seen.seconds) == ("completed", None, 9.0)
    text = shown(panel(seen))
    assert "round 3/3" in text
    assert "completed" in text
    assert f"accuracy {run.summary['final']['accuracy']:.4f}" in text


def test_a_killed_run_says_what_goes_on_with_it(going):
    text = shown(panel(look(going.path, now=500.0), writes=False), width=200)
    assert f"atlas resume {going.path} goes on" in text
    assert "left" not in text
    assert "9.5 s" in text  # its clock stands


@pytest.mark.parametrize("status", ["completed", "stopped"])
def test_the_time_of_a_run_that_ended_stays_what_it_was(run, status):
    events(run, START, {"event": "final", "time": 109.0})
    run.path.joinpath("summary.json").write_text(json.dumps({**run.summary, "status": status}))
    text = shown(panel(look(run.path, now=5000.0), writes=False))  # nobody writes it any more
    assert re.search(r"time +9\.0 s", text), text


def test_a_resumed_run_counts_the_rounds_before(going):
    path = going.path / "events.jsonl"
    again = {**START, "time": 1000.0, "resumed": [0.5, 0.5]}
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    seen = look(going.path, now=1003.0)
    assert (seen.seconds, seen.sessions) == (2.5 + 2.5 + 3.0, 2)
    assert seen.notes == ()


def test_events_of_an_older_version_have_no_clock(going):
    events(going, {"event": "start"}, {"event": "phase", "phase": "train", "clients": 4})
    seen = look(going.path)
    assert (seen.seconds, seen.idle) == (5.0, None)
    assert "training" in shown(panel(seen))


def test_a_mirror_shows_its_last_commit(going):
    for name in ("events.jsonl", "rounds.jsonl", "clients.parquet"):
        whole = (going.path / name).read_bytes()
        (going.path / name).unlink()
        if name == "rounds.jsonl":
            whole = whole[: whole.rfind(b"\n") + 1]
        for commit in ("round-9", "round-10"):
            folder = going.path / "checkpoints" / commit
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(whole if commit == "round-10" else b"")
    assert len(look(going.path).rounds) == 2


def test_the_slowest_client_of_the_last_round_is_named(make_run):
    def change(rows):
        return [dataclasses.replace(r, seconds=9.0) if r.partition == 2 else r for r in rows]

    who, seconds, middle = look(make_run(change=change).path).slowest
    assert (who, seconds, middle) == (2, 18.0, 3.0)  # training and evaluating


def test_a_folder_of_runs_is_one_line_each(make_run, tmp_path):
    make_run("suite/iid/fedavg/seed-1")
    make_run("suite/iid/fedavg/seed-2")
    found = runs_in(tmp_path / "suite")
    assert [path.name for path in found] == ["seed-1", "seed-2"]
    text = shown(lines([look(p) for p in found], tmp_path / "suite", True, [None, None]))
    assert "2 of 2 runs completed" in text
    assert "iid/fedavg/seed-2" in text


@pytest.mark.parametrize("width", [24, 40, 80])
def test_narrow_terminals_lose_no_number(going, width):
    text = shown(panel(look(going.path, now=110.0), unicode=False), width)
    assert all(len(line) <= width for line in text.splitlines())
    assert f"{going.rounds[1]['accuracy']:.4f}" in text


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ResultError, match="no such folder"):
        runs_in(tmp_path / "nothing")
    with pytest.raises(ResultError, match="holds no run yet"):
        runs_in(tmp_path)
    (tmp_path / "config.toml").write_text("[run")
    with pytest.raises(ResultError, match=r"config\.toml: can't be read"):
        look(tmp_path)


def test_a_broken_line_is_named(run):
    (run.path / "events.jsonl").write_text("{\n{}\n")
    with pytest.raises(ResultError, match=r"events\.jsonl: a line is not JSON"):
        look(run.path)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("events.jsonl", b"3\n"),
        ("events.jsonl", b'{"event": "phase"}\n'),
        ("events.jsonl", b"\0" * 9 + b"\n"),
        ("events.jsonl", b"\xc3\n"),
        ("rounds.jsonl", b'{"round": 4}\n'),
        ("config.toml", b"run = 3\n"),
        ("config.toml", b'[run]\nrounds = "many"\n'),
    ],
)
def test_what_no_run_writes_is_one_line_that_names_the_file(run, name, line):
    (run.path / name).write_bytes(line)
    with pytest.raises(ResultError, match=name.replace(".", r"\.")):
        look(run.path)


def test_a_letter_that_is_half_written_waits(going):
    with (going.path / "events.jsonl").open("ab") as file:
        file.write('{"event": "note", "partition": 1, "text": "größer"'.encode()[:-5])
    assert look(going.path).notes == ("client 2: micro-batch 4",)


def test_others_words_are_one_line_without_escapes(going):
    events(going, START, {"event": "note", "partition": 1, "text": "a\x1b[2J\nb" + "x" * 9999})
    text = shown(panel(look(going.path)), width=600)
    assert "client 1: a?[2J?bxxx" in text
    assert text.count("x") < 600


def test_a_run_that_was_put_away_is_no_run_of_the_suite(make_run, tmp_path):
    make_run("suite/iid/fedavg/seed-1")
    make_run("suite/iid/fedavg/seed-1.failed-1")
    assert [path.name for path in runs_in(tmp_path / "suite")] == ["seed-1"]


def test_a_folder_of_runs_is_no_run_but_names_one(run):
    assert runs_below(run.path.parent) == f"; it has runs below: name one, e.g. {run.path}"
    assert runs_below(run.path / "plots") == ""
    with pytest.raises(ResultError, match=r"has ended; it has runs below: name one, e\.g\. "):
        read_run(run.path.parent)
