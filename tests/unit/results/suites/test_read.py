"""Suites read back and compared: rows, targets, tables in every format, pictures."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from scipy import stats

from atlas_flwr.errors import ResultError
from atlas_flwr.results.store import RunResult
from atlas_flwr.results.suites.compared import analyse
from atlas_flwr.results.suites.curves import bands, client_map
from atlas_flwr.results.suites.draw import pareto
from atlas_flwr.results.suites.formats import escape, to_csv, to_latex, to_markdown, to_rich
from atlas_flwr.results.suites.plots import Sheet, write_suite_plots
from atlas_flwr.results.suites.rows import SuiteRun, chosen, metrics_of, read_suites
from atlas_flwr.results.suites.table import suite_csv, suite_row

ACCURACIES = {
    ("iid", "fedavg"): [0.70, 0.72, 0.74, 0.71],
    ("iid", "fed_prox"): [0.75, 0.76, 0.80, 0.74],
    ("iid", "a&b"): [0.60, 0.72, 0.70, 0.69],
    ("skew", "fedavg"): [0.50],
    ("skew", "fed_prox"): [0.55],
}


def bare(folder: Path, accuracies: dict[tuple[str, str], list[float]] = ACCURACIES) -> Path:
    """Write an old results.csv that has no run directories beside it."""
    rows = [
        f"{setting},{label},{label},{seed},{accuracy},{accuracy / 2},1000000,{2000000 + seed},p"
        for (setting, label), values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]
    head = "setting,label,strategy,seed,accuracy,worst_client_accuracy,bytes_up,bytes_down,path"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.csv").write_text("\n".join([head, *rows]) + "\n")
    return folder


@pytest.fixture
def whole(make_run: Callable[..., RunResult], tmp_path: Path) -> Path:
    """Give a suite of two labels and two seeds with its run directories."""
    rows = []
    for label in ("one", "two"):
        for seed in (1, 2):
            run = make_run(f"suite/s/{label}/seed-{seed}", name=label)
            run.summary["seed"] = seed
            config = {"train": {"learning-rate": 0.1}, **run.config}
            row = suite_row(
                RunResult(run.summary, run.rounds, run.clients, config, run.path),
                "s",
                label,
                f"s/{label}/seed-{seed}",
            )
            rows.append(row)
    (tmp_path / "suite" / "results.csv").write_text(suite_csv(rows))
    return tmp_path / "suite"


def numbers(found: Any) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(found))))


# ---------------------------------------------------------------- reading


def test_a_bare_csv_is_read_in_its_order(tmp_path: Path) -> None:
    runs = read_suites([bare(tmp_path / "s")])
    assert [(r.setting, r.label) for r in runs][::4][:3] == list(ACCURACIES)[:3]
    assert all(run.folder is None for run in runs)
    assert runs[0].value("bytes") == 3_000_000
    assert runs[0].value("loss") is None
    assert read_suites([tmp_path / "s" / "results.csv"]) == runs
    assert metrics_of(runs) == [
        *("accuracy", "worst_client_accuracy", "bytes_up", "bytes_down", "bytes"),
    ]


def test_a_run_s_own_files_tell_what_the_csv_does_not(whole: Path) -> None:
    text = (whole / "results.csv").read_text()
    head, *rows = text.splitlines()
    columns = head.split(",")
    keep = [i for i, name in enumerate(columns) if name not in ("loss", "peak_memory_mb")]
    parsed = list(csv.reader([head, *rows]))
    with (whole / "results.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[row[i] for i in keep] for row in parsed])
    run = read_suites([whole])[0]
    assert run.result is not None
    assert run.value("loss") == run.result.summary["final"]["loss"]
    assert run.value("peak_memory_mb") == 512.5


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a,b\n1,2\n", "no column 'setting'"),
        ("setting,label,seed\ns,l,x\n", "line 2"),
        ("setting,label,seed\ns,l\n", "line 2"),
        ("setting,label,seed,status\ns,l,1,failed\n", "no finished run"),
        ("", "no column"),
    ],
)
def test_what_is_no_suite_is_refused(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "results.csv").write_text(text)
    with pytest.raises(ResultError, match=told):
        read_suites([tmp_path])


def test_a_folder_without_a_suite_and_one_run_twice_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match=r"no results\.csv"):
        read_suites([tmp_path])
    first, second = bare(tmp_path / "a"), bare(tmp_path / "b")
    with pytest.raises(ResultError, match=r"iid/fedavg seed 0 is in .* too"):
        read_suites([first, second])


def test_names_that_are_not_there_are_refused_with_the_nearest(tmp_path: Path) -> None:
    runs = read_suites([bare(tmp_path)])
    with pytest.raises(ResultError, match="did you mean 'accuracy'"):
        analyse(runs, "acuracy")
    with pytest.raises(ResultError, match=r"--baseline.*did you mean 'fedavg'"):
        analyse(runs, baseline="fedavgg")
    with pytest.raises(ResultError, match=r"--setting.*known: iid, skew"):
        chosen(runs, ["x"])
    with pytest.raises(ResultError, match="--target: bytes_up"):
        analyse(runs, "bytes_up", target=0.5)
    assert {run.label for run in chosen(runs, ["iid"], ["a&b"])} == {"a&b"}


# ---------------------------------------------------------------- numbers


def test_means_differences_and_tests_are_numpy_s_and_scipy_s(tmp_path: Path) -> None:
    found = analyse(read_suites([bare(tmp_path)]), baseline="fedavg")
    rows = {(row["setting"], row["label"]): row for row in numbers(found)}
    base = ACCURACIES["iid", "fedavg"]
    raw = []
    for label in ("fed_prox", "a&b"):
        values, row = ACCURACIES["iid", label], rows["iid", label]
        there = stats.ttest_rel(values, base)
        raw.append(there.pvalue)
        assert float(row["mean"]) == pytest.approx(np.mean(values))
        assert float(row["std"]) == pytest.approx(np.std(values, ddof=1))
        assert float(row["t_p"]) == pytest.approx(there.pvalue)
        assert float(row["low"]) == pytest.approx(there.confidence_interval().low)
        exact = stats.wilcoxon(values, base, method="exact") if label == "fed_prox" else None
        if exact is not None:
            assert float(row["wilcoxon_p"]) == pytest.approx(exact.pvalue)
    # One pair in the other setting is no test: the family is of two.
    assert rows["iid", "a&b"]["t_family"] == "2"
    smaller = min(raw)
    corrected = sorted(float(rows["iid", label]["t_p_holm"]) for label in ("fed_prox", "a&b"))
    assert corrected == pytest.approx([2 * smaller, max(*raw, 2 * smaller)])
    one = rows["skew", "fed_prox"]
    assert (one["pairs"], one["t_p"], one["std"], one["low"]) == ("1", "", "", "")
    assert float(one["difference"]) == pytest.approx(0.05)
    assert [key for key, row in rows.items() if row["best"] == "True"] == [
        ("iid", "fed_prox"),
        ("skew", "fed_prox"),
    ]


def test_of_bytes_fewer_are_best(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(
        "setting,label,strategy,seed,accuracy,worst_client_accuracy,bytes_up,bytes_down,path\n"
        "s,few,few,1,0.5,0.5,1,10,p\ns,many,many,1,0.5,0.5,1,20,p\n"
    )
    found = analyse(read_suites([tmp_path]), "bytes_down")
    assert found.lines["s", "few"].best
    assert not found.lines["s", "many"].best


def test_a_mean_over_fewer_seeds_is_not_the_best(tmp_path: Path) -> None:
    """It may have left out the seed that was bad for everybody."""
    found = analyse(read_suites([bare(tmp_path, {("s", "a"): [0.5, 0.7], ("s", "b"): [0.9]})]))
    assert found.lines["s", "a"].best
    assert not found.lines["s", "b"].best


def test_a_seed_without_a_partner_is_dropped_and_counted(tmp_path: Path) -> None:
    values = {("s", "a"): [0.5, 0.6, 0.7], ("s", "b"): [0.6, 0.7]}
    found = analyse(read_suites([bare(tmp_path, values)]))
    against = found.lines["s", "b"].against
    assert against is not None
    assert (against.n, against.dropped) == (2, 1)
    assert found.notes == ("Seeds that only one of the two has, in no difference: 1.",)


def test_when_a_target_is_reached(whole: Path) -> None:
    runs = read_suites([whole])
    # Accuracies by round: 0.53, 0.56, 0.59 for the first client, and 0.02 more for each other.
    result = runs[0].result
    assert result is not None
    at_two = result.rounds[1]["accuracy"]
    found = analyse(runs, target=at_two).lines["s", "one"].target
    assert found is not None
    moved = sum(r["bytes_up"] + r["bytes_down"] for r in result.rounds[:2])
    assert (found.reached, found.runs, found.rounds, found.bytes) == (2, 2, 2, moved)
    never = analyse(runs, target=0.999).lines["s", "one"].target
    assert never is not None
    assert (never.reached, never.rounds, never.bytes) == (0, None, None)


def test_without_run_directories_a_target_is_unknown_and_said_so(tmp_path: Path) -> None:
    found = analyse(read_suites([bare(tmp_path)]), target=0.7)
    assert found.lines["iid", "fedavg"].target is None
    assert "14 of 14 runs have no run directory" in to_markdown(found)
    assert "unknown" in to_markdown(found)


# ---------------------------------------------------------------- formats


def test_one_run_each_says_so_instead_of_a_p(tmp_path: Path) -> None:
    found = analyse(chosen(read_suites([bare(tmp_path)]), ["skew"]))
    assert "| fed\\_prox | 1 | +0.0500 | n = 1 | n = 1 | – | – | 1-0-0 |" in to_markdown(found)


def test_the_same_difference_everywhere_says_so(tmp_path: Path) -> None:
    values = {("s", "a"): [0.5, 0.6, 0.7], ("s", "b"): [0.6, 0.7, 0.8]}
    text = to_markdown(analyse(read_suites([bare(tmp_path, values)])))
    assert "| b | 3 | +0.1000 \\[+0.1000, +0.1000\\] | same | 0.250 | – | +1.00 | 3-0-0 |" in text


def test_every_row_of_markdown_has_its_columns(tmp_path: Path) -> None:
    text = to_markdown(analyse(read_suites([bare(tmp_path)]), target=0.7))
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 3
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "**0.7625 ± 0.0263 (4)**" in text


def test_latex_is_balanced_and_nothing_in_it_is_a_command_by_chance(tmp_path: Path) -> None:
    text = to_latex(analyse(read_suites([bare(tmp_path)]), target=0.7))
    assert all(ord(letter) < 128 for letter in text)
    assert text.count(r"\begin{") == text.count(r"\end{") == 6
    bare_text = re.sub(r"\\[{}&%$#_]", "", text)
    assert bare_text.count("{") == bare_text.count("}")
    assert bare_text.count("$") % 2 == 0
    for block in re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, re.S):
        width = len(block[0])
        lines = [line for line in block[1].splitlines() if line.endswith(r"\\")]
        for line in lines:
            if "multicolumn" not in line:
                assert len(re.findall(r"(?<!\\)&", line)) == width - 1
    assert r"a\&b" in text
    assert r"fed\_prox" in text
    assert re.search(r"(?<!\\)_", text.replace(r"\label{tab", "")) is None


@pytest.mark.parametrize("letter", '\\&%$#_{}~^<>|"[]')
def test_a_letter_that_latex_reads_is_escaped(letter: str) -> None:
    assert escape(letter) != letter


def test_the_terminal_shows_every_label(tmp_path: Path) -> None:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(to_rich(analyse(read_suites([bare(tmp_path)]))))
    text = console.export_text()
    for _, label in ACCURACIES:
        assert label in text
    assert "[−0." in text  # an interval is no markup


# ---------------------------------------------------------------- pictures


def test_curves_are_means_over_seeds(whole: Path) -> None:
    runs = read_suites([whole])
    band = bands(runs, "accuracy")[0]
    result = runs[0].result
    assert result is not None
    assert (band.label, band.n, list(band.rounds)) == ("one", 2, [1, 2, 3])
    assert band.mean == [r["accuracy"] for r in result.rounds]
    assert band.std == pytest.approx([0.0] * 3)
    moved = np.cumsum([r["bytes_up"] + r["bytes_down"] for r in result.rounds]) / 1e6
    assert band.mb == pytest.approx(moved)


def test_the_map_has_the_last_round_s_own_accuracies(whole: Path) -> None:
    found = client_map(read_suites([whole]), "s")
    assert found is not None
    assert list(found.rows) == ["one", "two"]
    assert list(found.columns) == ["0", "1", "2", "3"]
    assert [group.name for group in found.column_groups] == ["bbc", "tweets"]
    assert found.values[0] == pytest.approx([0.59, 0.61, 0.63, 0.65])


def test_the_front_is_what_nothing_beats(tmp_path: Path) -> None:
    assert pareto([(1, 0.5), (1, 0.5), (2, 0.5), (3, 0.9)]) == {0, 1, 3}
    assert pareto([(1, 0.5), (2, 0.4), (3, 0.6)], down=True) == {0, 1}


def test_pictures_of_a_whole_suite_at_their_dots(whole: Path, tmp_path: Path) -> None:
    runs = read_suites([whole])
    found = analyse(runs)
    paths, missing = write_suite_plots(runs, found, Sheet(tmp_path / "p", dpi=60))
    assert missing == []
    assert [path.name for path in paths] == [
        "own-accuracy-by-round.png",
        "own-accuracy-by-bytes.png",
        "clients.png",
        "final-accuracy.png",
        "accuracy-against-bytes.png",
        "difference-accuracy.png",
    ]
    with Image.open(paths[0]) as image:
        assert image.info["dpi"][0] == pytest.approx(60, abs=0.1)
    before = [path.read_bytes() for path in paths]
    write_suite_plots(runs, found, Sheet(tmp_path / "p", dpi=60))
    assert [path.read_bytes() for path in paths] == before


@pytest.mark.parametrize("form", ["pdf", "svg"])
def test_pictures_of_a_bare_csv_say_what_is_left_out(tmp_path: Path, form: Any) -> None:
    many = {("s", f"label_{i}"): [0.5 + i / 50, 0.51 + i / 60] for i in range(20)}
    runs = read_suites([bare(tmp_path / "s", many)])
    paths, missing = write_suite_plots(runs, analyse(runs), Sheet(tmp_path / "p", form))
    assert [path.suffix for path in paths] == [f".{form}"] * 3
    assert missing == ["s: no run directory beside results.csv: no curves, no clients"]


def test_pictures_are_not_put_into_a_run(whole: Path) -> None:
    runs: list[SuiteRun] = read_suites([whole])
    with pytest.raises(ResultError, match="holds a run"):
        write_suite_plots(runs, analyse(runs), Sheet(whole / "s" / "one" / "seed-1"))
