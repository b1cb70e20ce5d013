"""The report: well-formed, self-contained, escaped, and it says what the summary says."""

import dataclasses
import json
import re
from xml.etree import ElementTree

import pytest

from atlas_flwr.results.quarantine import quarantined
from atlas_flwr.results.report import publish, write_report

HOSTILE = "<script>alert('x')</script>&\"'"


def page_of(run):
    return write_report(run).read_text(encoding="utf-8")


def parsed(page):
    return ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))


def words(page):
    return " ".join("".join(parsed(page).find("body").itertext()).split())


def test_the_page_is_well_formed_and_says_what_ran(run):
    page = page_of(run)
    text = words(page)
    assert parsed(page).tag == "html"
    assert "fedavg on minilm: 4 clients, 2 tasks (bbc, tweets), 3 rounds, inline engine" in text
    assert f"{run.summary['final']['accuracy']:.3f}" in text
    assert "atlas run config.toml" in text
    assert page.count("<svg") > 6


def test_nothing_is_fetched(run):
    page = page_of(run)
    assert not re.findall(r'(?:src|href)\s*=\s*"', page)
    assert "url(" not in page
    assert "@import" not in page
    assert "<script" not in page
    # The only addresses are SVG's name space.
    assert set(re.findall(r"https?://[^\"'\s<]+", page)) == {"http://www.w3.org/2000/svg"}


def test_hostile_names_are_shown_and_never_run(run):
    summary = run.summary | {"experiment": HOSTILE}
    final = summary["final"]
    final["by_task"][HOSTILE] = final["by_task"]["bbc"]
    clients = run.clients.replace({"task": {"bbc": HOSTILE}})
    clients.loc[0, ["status", "error"]] = ["rejected", HOSTILE + "\x00\x1b"]
    rounds = [r | {"by_task": {HOSTILE: r["by_task"]["bbc"]}} for r in run.rounds]
    told = {"argv": [HOSTILE], "commit": HOSTILE}
    bad = dataclasses.replace(
        run, summary=summary, clients=clients, rounds=rounds, provenance=told, config_text=HOSTILE
    )
    page = page_of(bad)
    assert "<script" not in page
    assert words(page).count(HOSTILE) >= 5


@pytest.mark.parametrize(
    "options", [{"rounds": 1, "per_task": 1, "tasks": ("a",)}, {"per_task": 9}]
)
def test_small_and_large_runs(make_run, options):
    parsed(page_of(make_run(**options)))


def test_absent_values_are_dashes(make_run):
    def change(rows):
        return [dataclasses.replace(r, accuracy=None, loss=None, ranks=None) for r in rows]

    text = words(page_of(make_run(change=change)))
    assert "nan" not in text.lower().split()
    assert "nothing was measured" in text


def test_a_resumed_run_says_so(run):
    assert "Sessions" not in words(page_of(run))
    again = [{"after_round": 0}, {"after_round": 3, "argv": ["/bin/atlas", "resume", "runs/a"]}]
    page = words(page_of(dataclasses.replace(run, provenance={**run.provenance, "resumed": again})))
    assert "3 sessions" in page
    assert "33atlas resume runs/a" in page  # three cells: the third session, after round 3


def test_lost_clients_are_named(make_run):
    def change(rows):
        return [dataclasses.replace(rows[0], status="lost", error="timed out"), *rows[1:]]

    text = words(page_of(make_run(change=change)))
    assert "What went wrong" in text
    assert "timed out" in text


def test_refused_clients_are_named_with_their_reasons(make_run):
    reasons = ["norm of a 2e+05, at most 2.3", "norm of a 31, at most 2.2", "x: not \x1bfinite"]

    def change(rows):
        return [
            dataclasses.replace(r, status="rejected", error=reasons[r.round - 1])
            if (r.phase, r.partition) == ("train", 0)
            else r
            for r in rows
        ]

    run = make_run(change=change, rounds=3)
    page = page_of(run)
    parsed(page)
    text = words(page)
    assert "Quarantined clients" in text
    assert "What went wrong" not in text
    assert "\x1b" not in page
    found = quarantined(run.clients)
    assert [row[0] for row in found] == ["0", "0"]
    assert [row[3:6] for row in found] == [["1–2", "2", "3"], ["3", "1", "3"]]
    assert [row[6] for row in found] == reasons[1:]
    assert "Quarantined" not in words(page_of(make_run("clean")))


def test_publish_writes_pictures_and_page(run):
    publish(run.path)
    assert (run.path / "report.html").stat().st_size > 10_000
    assert len(list((run.path / "plots").glob("*.png"))) == 7


def test_a_failed_run_says_why_and_how_to_run_it_again(run):
    told = [
        {"event": "note", "partition": 1, "text": "micro-batch 4 of 8: out of memory"},
        {"event": "error", "text": "client 2 was lost: timed out"},
    ]
    lines = "".join(json.dumps(event) + "\n" for event in told)
    (run.path / "events.jsonl").write_text(lines, encoding="utf-8")
    failed = dataclasses.replace(run, summary=run.summary | {"status": "failed"})
    page = words(page_of(failed))
    assert "client 2 was lost: timed out" in page
    assert "client 1: micro-batch 4 of 8: out of memory" in page
    assert "atlas run config.toml --out again" in page
    assert "LoRA rank 4, 8 in turn" in page
