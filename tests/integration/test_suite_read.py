"""``atlas table`` and ``atlas plot`` through the command line, on measured suites."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from runs import Said, assert_refused

RESULTS = Path(__file__).resolve().parents[2] / "experiments" / "results"
SUITES = sorted(set(RESULTS.glob("*.csv")) - {RESULTS / "fingerprints.csv"})  # is no suite


@pytest.mark.parametrize("file", SUITES, ids=lambda path: path.stem)
def test_committed_results_still_read(
    atlas: Callable[..., Said], file: Path, tmp_path: Path
) -> None:
    said = atlas("table", file, "--format", "csv", "--out", tmp_path / "new" / "t.csv")
    assert said.code == 0, said
    assert said.out.strip().endswith("t.csv")
    with file.open() as opened:
        there: dict[tuple[str, str], list[float]] = {}
        for row in csv.DictReader(opened):
            seeds = there.setdefault((row["setting"], row["label"]), [])
            seeds.append(float(row["accuracy"]))
    with (tmp_path / "new" / "t.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert sorted((row["setting"], row["label"]) for row in rows) == sorted(there)
    for row in rows:
        seeds = there[row["setting"], row["label"]]
        assert float(row["mean"]) == pytest.approx(sum(seeds) / len(seeds), rel=1e-12)
        assert row["n"] == str(len(seeds))


def test_every_format_goes_to_the_terminal(atlas: Callable[..., Said]) -> None:
    for form, told in (("text", "┃"), ("md", "| --- |"), ("latex", r"\toprule"), ("csv", "t_p")):
        said = atlas("table", SUITES[0], "--format", form, "--target", "0.7")
        assert said.code == 0, said
        assert told in said.out
        if form != "csv":
            assert "no run directory beside" in " ".join(said.out.replace("\n", " ").split())


@pytest.mark.parametrize(
    ("name", "told"),
    [("t.tex", r"\toprule"), ("t.MD", "| ---: |"), ("t.csv", "t_p"), ("t", "┃"), ("t.txt", "┃")],
)
def test_a_file_s_ending_is_its_format(
    atlas: Callable[..., Said], tmp_path: Path, name: str, told: str
) -> None:
    assert atlas("table", SUITES[0], "--out", tmp_path / name).code == 0
    assert told in (tmp_path / name).read_text()
    assert atlas("table", SUITES[0], "--format", "md", "--out", tmp_path / name).code == 0
    assert "| ---: |" in (tmp_path / name).read_text()


def test_plain_text_marks_the_best_mean(atlas: Callable[..., Said], tmp_path: Path) -> None:
    file = RESULTS / "atlas_glue_gpu.csv"
    labels = ("--only", "atlas", "--only", "local_only", "--setting", "iid")
    assert atlas("table", file, *labels, "--out", tmp_path / "t").code == 0
    scores = (tmp_path / "t").read_text().split("Difference")[0].splitlines()
    assert [line.split()[1] for line in scores if " * │" in line] == ["atlas"]
    assert "*: the highest" in " ".join(scores)


def test_pictures_of_a_bare_file_and_what_is_left_out(
    atlas: Callable[..., Said], tmp_path: Path
) -> None:
    said = atlas("plot", SUITES[0], "--out", tmp_path / "p", "--dpi", "60", "--baseline", "fedit")
    assert said.code == 0, said
    assert said.out.startswith("left out  iid: no run directory")
    assert len(list((tmp_path / "p").iterdir())) == 3


def test_slips_are_one_line(atlas: Callable[..., Said], tmp_path: Path) -> None:
    file = SUITES[0]
    assert_refused(atlas("table", tmp_path / "gone"), "gone", "holds no suite")
    assert_refused(atlas("table", file, "--metric", "acuracy"), "did you mean 'accuracy'")
    assert_refused(atlas("table", file, "--baseline", "fedti"), "did you mean 'fedit'")
    assert_refused(atlas("plot", file, "--out", tmp_path, "--setting", "x"), "--setting", "'x'")
    (tmp_path / "file").write_text("kept")
    for word in ("table", "plot"):
        assert_refused(atlas(word, file, "--out", tmp_path / "file" / "x"), "can't be written")
    assert (tmp_path / "file").read_text() == "kept"
