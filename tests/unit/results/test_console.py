"""Progress: exact plain lines, a live display in a terminal; the final table."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from atlas_flwr.results.console import Progress, print_results, sparkline

START = {
    "event": "start",
    "experiment": "demo [bold]",
    "strategy": "fedavg",
    "model": "minilm",
    "engine": "ray",
    "rounds": 5,
    "clients": 6,
    "tasks": ["bbc", "tweets"],
}
ROUND = {
    "event": "round",
    "round": 2,
    "accuracy": 0.72341,
    "loss": 0.5642,
    "time_seconds": 12.3,
    "communication_mb": 2.71,
    "lost": [],
}
EVENTS = [
    START,
    {"event": "phase", "round": 2, "phase": "train", "clients": 6},
    {"event": "client", "round": 2, "phase": "train", "partition": 4, "done": 3, "total": 6},
    {"event": "note", "partition": 4, "text": "micro-batch 8"},
    ROUND,
    ROUND | {"round": 3, "accuracy": None, "lost": [1, 4]},
    {"event": "final", "accuracy": 0.8, "loss": 1, "worst_client_accuracy": 0.7, "by_task": {}},
    {"event": "error", "text": "client 3 was lost"},
]


def test_plain_lines_when_stdout_is_not_a_terminal():
    out = io.StringIO()
    with Progress(Console(file=out, width=40)) as progress:
        for event in EVENTS:
            progress.handle(event)
    assert out.getvalue().splitlines() == [
        "demo [bold]: fedavg on minilm, 6 clients, 5 rounds, ray engine, tasks bbc, tweets",
        "note  client 4: micro-batch 8",
        "round 2/5  accuracy 0.7234  loss 0.5642  12.3 s  2.7 MB",
        "round 3/5  accuracy –  loss 0.5642  12.3 s  2.7 MB  lost 1, 4",
        "final  accuracy 0.8000  worst client 0.7000",
        "error  client 3 was lost",
    ]


def test_a_live_display_in_a_terminal():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with Progress(console) as progress:
        for event in EVENTS[:3]:
            progress.handle(event)
        with console.capture() as captured:
            console.print(progress.render())
        assert "training  3/6 clients" in captured.get()
        assert "round 1/5" in captured.get()
        progress.handle(ROUND)
    assert "round 2/5" in out.getvalue()


def test_replies_are_counted_as_they_arrive_and_a_resumed_run_says_where_it_is():
    out = io.StringIO()
    with Progress(Console(file=out, force_terminal=False, width=100)) as progress:
        progress.handle(START | {"resumed": [0.5, None, 0.7]})
        progress.handle({"event": "phase", "round": 4, "phase": "train", "clients": 6})
        progress.handle({"event": "arrived", "done": 5, "total": 6})
        assert (progress.done, progress.total) == (5, 6)
        progress.handle(EVENTS[2] | {"done": 1})  # judged one by one, once all are there
        assert progress.done == 5
        progress.handle({"event": "stop", "text": "after round 4 of 5"})
    assert out.getvalue().splitlines()[1:] == [
        "resumed after round 3",
        "stopped  after round 4 of 5",
    ]


def test_one_round_is_a_round(run):
    out = io.StringIO()
    with Progress(Console(file=out)) as progress:
        progress.handle(START | {"rounds": 1, "clients": 1})
    assert "1 client, 1 round, ray engine" in out.getvalue()
    out = io.StringIO()
    print_results(Console(file=out), run.summary | {"rounds_completed": 1}, run.path)
    assert "1 round in" in out.getvalue()


def test_unknown_events_are_refused():
    with pytest.raises(ValueError, match="none of"):
        Progress(Console(file=io.StringIO())).handle({"event": "party"})


def test_sparkline_rises_with_its_values():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([]) == ""
    assert sparkline([0.5, None, 0.5]) == "▄ ▄"
    assert len(sparkline(list(range(99)))) == 40


def test_results_end_with_the_whole_path(run):
    out = io.StringIO()
    path = Path("/a/very/long/folder" * 8)
    print_results(Console(file=out, width=80), run.summary, path)
    lines = out.getvalue().splitlines()
    assert lines[-1] == str(path)
    said = " ".join(out.getvalue().split())
    for word in ("bbc", "tweets", "worst client", "macro-F1", "3 rounds in 9.0 s"):
        assert word in said
    assert f"{run.summary['final']['accuracy']:.4f}" in said


def test_results_name_the_report_and_no_column_without_a_number(run):
    (run.path / "report.html").touch()
    for scores in run.summary["final"]["by_task"].values():
        scores["f1"] = None
    out = io.StringIO()
    print_results(Console(file=out, width=80), run.summary, run.path)
    said = out.getvalue()
    assert f"report: {run.path / 'report.html'}\n{run.path}\n" in said
    assert " F1 " not in said
    assert " macro-F1 " in said


def test_results_name_clusters_and_ranks_where_the_run_has_them(run):
    told = {"clusters": {"0": 0, "1": 1, "2": 0}}
    ranks = {
        "0": {"device": "phone", "ranks": {"q": 2, "v": 4}},
        "1": {"device": None, "cluster": 1, "ranks": {"q": 8}},
    }
    out = io.StringIO()
    print_results(Console(file=out, width=80), run.summary, run.path)
    assert "clusters:" not in out.getvalue()
    (run.path / "clusters.json").write_text(json.dumps(told))
    (run.path / "ranks.json").write_text(json.dumps({"how": "importance", "clients": ranks}))
    print_results(Console(file=out, width=80), run.summary, run.path)
    assert "clusters: 0, 2 | 1\nranks (importance) of cluster 1: 8; phone: 2–4\n" in out.getvalue()
