"""Comparing runs: one axis for one task set, separate panels otherwise, and the text says so."""

import csv
import io
from xml.etree import ElementTree

import pytest
from rich.console import Console

from atlas_flwr.errors import ResultError
from atlas_flwr.results.compare import compare
from atlas_flwr.results.compare_output import comparison_table, write_comparison


def test_runs_of_one_task_set_share_an_axis(make_run):
    a = make_run("a", name="a", strategy="fedavg")
    b = make_run("b", name="b", strategy="local_only", tasks=("tweets", "bbc"))
    found = compare([a, b])
    (panel,) = found.panels
    assert panel.tasks == ("bbc", "tweets")
    assert list(panel.runs) == ["a", "b"]
    assert "one axis" in found.text
    assert panel.differences["strategy.name"] == ("fedavg", "local_only")
    assert "run.name" not in panel.differences


def test_different_task_sets_never_share_an_axis(make_run, tmp_path):
    runs = [make_run("a"), make_run("b", tasks=("bbc",)), make_run("c")]
    found = write_comparison(runs, tmp_path / "out")
    assert [len(panel.runs) for panel in found.panels] == [2, 1]
    assert "can't be compared" in found.text
    page = (tmp_path / "out" / "comparison.html").read_text()
    tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert found.text in " ".join("".join(tree.itertext()).split())
    assert len(tree.findall(".//section")) == 2
    with (tmp_path / "out" / "comparison.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["tasks"] for row in rows] == ["bbc+tweets", "bbc+tweets", "bbc"]
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 10_000


def test_runs_of_one_name_are_told_apart(make_run):
    a = make_run("a")
    labels = [list(p.runs) for p in compare([a, make_run("b"), a]).panels]
    assert labels == [["demo (a) (#1)", "demo (b)", "demo (a) (#3)"]]


def test_the_terminal_table_holds_every_run_and_the_reason(make_run):
    out = io.StringIO()
    console = Console(file=out, width=100)
    console.print(comparison_table(compare([make_run("a", name="x"), make_run("b", tasks=("q",))])))
    said = " ".join(out.getvalue().split())
    assert "tasks: q" in said
    assert "can't be compared" in said


def test_nothing_to_compare_and_unwritable_places_are_refused(run, tmp_path):
    with pytest.raises(ResultError, match="no run directory"):
        compare([])
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="can't be written"):
        write_comparison([run], tmp_path / "file" / "out")


@pytest.mark.parametrize("held", ["summary.json", "config.toml"])
def test_a_folder_that_holds_a_run_is_left_alone(make_run, tmp_path, held):
    runs, out = [make_run("a"), make_run("b")], tmp_path / "out"
    out.mkdir()
    (out / held).write_text("{}")
    with pytest.raises(ResultError) as refused:
        write_comparison(runs, out)
    assert str(refused.value) == f"{out}: holds a run; name another --out"
    assert [path.name for path in out.iterdir()] == [held]
