"""Suites with holes: seeds that diverged, files that people touched, targets nobody reaches."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from atlas_flwr.errors import ResultError
from atlas_flwr.results.record import ClientRow
from atlas_flwr.results.store import RunResult
from atlas_flwr.results.suites.compared import Analysis, analyse
from atlas_flwr.results.suites.draw import _bytes_axis
from atlas_flwr.results.suites.formats import to_latex, to_markdown
from atlas_flwr.results.suites.plots import Sheet, write_suite_plots
from atlas_flwr.results.suites.rows import heading, less_is_better, read_suites

HEAD = "setting,label,seed,accuracy,bytes_up,bytes_down"


def suite(folder: Path, *rows: str, head: str = HEAD, encoding: str = "utf-8") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.csv").write_text("\n".join([head, *rows]) + "\n", encoding=encoding)
    return folder


def analysed(folder: Path, *rows: str, head: str = HEAD, metric: str = "accuracy") -> Analysis:
    return analyse(read_suites([suite(folder, *rows, head=head)]), metric)


def test_a_file_saved_by_a_spreadsheet_is_read(tmp_path: Path) -> None:
    (run,) = read_suites([suite(tmp_path, "s,a,1,0.5,1,2", encoding="utf-8-sig")])
    assert (run.setting, run.value("bytes")) == ("s", 3.0)


def test_a_run_that_is_there_twice_in_one_file_says_so(tmp_path: Path) -> None:
    twice = suite(tmp_path, "s,a,1,0.5,1,2", "s,a,1,0.6,1,2")
    with pytest.raises(ResultError, match=r"s/a seed 1 is there twice; leave one line"):
        read_suites([twice])
    once = suite(tmp_path, "s,a,1,0.5,1,2")
    with pytest.raises(ResultError, match="name a folder once"):
        read_suites([once, once])


def test_a_task_called_error_is_still_an_accuracy(tmp_path: Path) -> None:
    head = "setting,label,seed,accuracy_no_error"
    found = analysed(tmp_path, "s,low,1,0.1", "s,high,1,0.9", head=head, metric="accuracy_no_error")
    assert found.lines["s", "high"].best
    assert less_is_better("truncation_error")


def test_number_formats_that_differ_are_told(tmp_path: Path) -> None:
    rows = ["s,a,1,0.1,fp32", "s,a,2,0.2,bf16", "s,b,1,0.3,fp32", "s,b,2,0.4,bf16", "t,a,1,0,fp32"]
    (told,) = analysed(tmp_path, *rows, head="setting,label,seed,accuracy,precision").notes
    assert told.startswith("s: trained in fp32 (seed 1) and in bf16 (seed 2); ")


@pytest.mark.parametrize("metric", ["bytes_up", "bytes", "seconds", "peak_memory_mb"])
def test_a_heading_keeps_its_unit(metric: str) -> None:
    first, _, unit = heading(metric).partition(" (")
    assert first[0].isupper()
    assert unit in ("MB)", "s)")


def test_a_seed_without_a_number_is_told(tmp_path: Path) -> None:
    found = analysed(tmp_path, "s,a,1,0.5,1,2", "s,a,2,,1,2", "s,b,1,0.4,1,2", "s,b,2,nan,1,2")
    assert found.notes == (
        "s/a: 1 of 2 runs without this number; its mean is over the others.",
        "s/b: 1 of 2 runs without this number; its mean is over the others.",
    )
    assert "1 of 2 runs without" in to_markdown(found)
    assert "1 of 2 runs without" in to_latex(found)


@pytest.mark.parametrize("target", [70, 0, -0.5, float("nan"), float("inf")])
def test_a_target_that_no_share_can_be_is_refused(tmp_path: Path, target: float) -> None:
    runs = read_suites([suite(tmp_path, "s,a,1,0.5,1,2,0.5", head=f"{HEAD},loss")])
    with pytest.raises(ResultError, match=r"--target: .*accuracy is a share.*0\.70"):
        analyse(runs, target=target)
    assert analyse(runs, "loss", target=70.0).target == 70.0
    with pytest.raises(ResultError, match="loss is a number above 0"):
        analyse(runs, "loss", target=float("nan"))


def test_who_moves_nothing_is_in_the_picture_against_bytes() -> None:
    from matplotlib.figure import Figure  # noqa: PLC0415

    for least, scale in ((0.0, "linear"), (0.001, "log")):
        axes = Figure().add_subplot()
        _bytes_axis(axes, [least, 1.0, 900.0])
        assert axes.get_xscale() == scale


def test_a_label_whose_seed_diverged_is_no_silent_gap_in_the_curves(
    make_run: Callable[..., RunResult], tmp_path: Path
) -> None:
    def diverged(rows: Sequence[ClientRow]) -> list[ClientRow]:
        return [dataclasses.replace(row, accuracy=None) for row in rows]

    rows = []
    for label in ("whole", "torn"):
        for seed in (1, 2):
            path = f"s/{label}/seed-{seed}"
            bad = {"change": diverged} if (label, seed) == ("torn", 2) else {}
            run = make_run(f"suite/{path}", name=label, **bad)
            assert json.loads((run.path / "summary.json").read_text())["final"]
            rows.append(f"s,{label},{seed},0.5,1,2,{path}")
    runs = read_suites([suite(tmp_path / "suite", *rows, head=f"{HEAD},path")])
    paths, missing = write_suite_plots(runs, analyse(runs), Sheet(tmp_path / "p", dpi=50))
    assert missing == ["s: no round with a number of every seed: torn not in curves"]
    torn = [run for run in runs if run.label == "torn"]
    paths, missing = write_suite_plots(torn, analyse(torn), Sheet(tmp_path / "q", dpi=50))
    assert "clients.png" in {path.name for path in paths}
    assert not any("-by-" in path.name for path in paths)
    assert missing[0].endswith("torn not in curves")
