"""The run directory: round trip, refusals that overwrite nothing, resume, exact columns."""

import csv
import json
import math
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from atlas_flwr.errors import ResultError
from atlas_flwr.results.record import Bytes, ClientRow, round_record
from atlas_flwr.results.store import RunWriter, prepare, read_run

PARQUET = [
    *("round", "partition", "task", "cluster", "phase", "num_examples", "loss", "accuracy"),
    *("f1", "macro_f1", "mcc", "ranks", "seconds", "bytes_up", "bytes_down", "peak_memory_mb"),
    *("precision", "status", "error"),
]
CSV = [
    *("Experiment", "Task", "Model", "LoRA", "Rounds", "Final Accuracy", "Final Loss"),
    *("Time (min)", "Avg Memory (MB)", "Avg Comm (MB)", "strategy", "engine", "seed", "status"),
]


def files(folder: Path):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_what_is_written_is_what_is_read(run):
    assert run.summary["status"] == "completed"
    assert run.summary["round_results"] == run.rounds
    assert [r["round"] for r in run.rounds] == [1, 2, 3]
    assert run.config["run"]["name"] == "demo"
    assert run.provenance["argv"][-1] == "a & b.toml"
    assert sum(run.summary["bytes"]["by_kind"].values()) == 3 * 310 + 50
    assert not [p for p in run.path.iterdir() if p.name.endswith(".tmp")]


def test_client_rows_have_the_contracts_columns_and_nulls(run):
    schema = pq.read_schema(run.path / "clients.parquet")
    assert schema.names == PARQUET
    assert len(run.clients) == 3 * 8 + 4
    assert run.clients["cluster"].isna().all()
    assert run.clients["f1"].isna().all()
    raw = pq.read_table(run.path / "clients.parquet")
    assert raw["f1"].null_count == raw.num_rows  # null, not NaN
    assert str(run.clients["partition"].dtype) == "Int64"


def test_summary_csv_is_one_row_with_the_named_columns(run):
    with (run.path / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert list(row) == CSV
    assert (row["Task"], row["LoRA"], row["Rounds"]) == ("bbc+tweets", "r=4,8", "3")
    assert float(row["Avg Comm (MB)"]) == pytest.approx(310 / 1e6)
    assert float(row["Final Accuracy"]) == run.summary["final"]["accuracy"]


def test_a_finished_run_is_refused_in_one_line_and_left_alone(run):
    before = files(run.path)
    with pytest.raises(ResultError, match="already holds a finished run") as caught:
        prepare(run.path)
    assert "\n" not in str(caught.value)
    assert files(run.path) == before


def test_an_unfinished_run_a_file_and_an_unwritable_place_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.toml").write_text("")
    with pytest.raises(ResultError, match="did not finish"):
        prepare(tmp_path / "a")
    (tmp_path / "b").write_text("")
    with pytest.raises(ResultError, match="is a file"):
        prepare(tmp_path / "b")
    with pytest.raises(ResultError, match="can't be written"):
        prepare(tmp_path / "b" / "c")
    with pytest.raises(ResultError, match="can't be written"):
        prepare(Path("/proc/nowhere"))


def test_the_second_to_claim_a_directory_is_refused(tmp_path):
    prepare(tmp_path)
    RunWriter(tmp_path).write_config("a = 1\n")
    with pytest.raises(ResultError, match="another run owns it"):
        RunWriter(tmp_path).write_config("a = 2\n")
    assert (tmp_path / "config.toml").read_text() == "a = 1\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", '{"experiment": ', "truncated"),
        ("summary.json", "{}", "not a run's summary"),
        ("rounds.jsonl", '{"round": 1}\n{"rou', "truncated"),
        ("rounds.jsonl", "", "holds 0 rounds"),
        ("clients.parquet", "PAR1", "not Parquet"),
        ("config.toml", "a = ", "not valid TOML"),
        ("config.toml", None, "missing"),
        ("summary.json", None, "missing"),
        ("clients.parquet", None, "missing"),
    ],
)
def test_a_broken_directory_names_its_file(run, name, content, said):
    path = run.path / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(ResultError, match=said) as caught:
        read_run(run.path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_from_before_clients_told_their_precision_is_read(run) -> None:
    path = run.path / "clients.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["precision"]), path)
    again = read_run(run.path).clients
    assert list(again.columns) == PARQUET
    assert again["precision"].isna().all()
    pd.testing.assert_frame_equal(
        again.drop(columns="precision"), run.clients.drop(columns="precision")
    )


def test_foreign_parquet_and_folders_are_refused(run, tmp_path):
    with pytest.raises(ResultError, match="no such run"):
        read_run(tmp_path / "nothing")
    pq.write_table(pq.read_table(run.path / "clients.parquet").select(["round"]), run.path / "x")
    (run.path / "x").replace(run.path / "clients.parquet")
    with pytest.raises(ResultError, match="columns differ"):
        read_run(run.path)


def test_a_round_is_on_disk_before_the_run_ends(tmp_path):
    prepare(tmp_path)
    writer = RunWriter(tmp_path)
    writer.write_config("")
    rows = [ClientRow(1, 0, "a", "evaluate", num_examples=2, accuracy=0.5)]
    writer.add_rows(rows)
    writer.append_round(round_record(1, rows, Bytes(), 1.0))
    assert json.loads((tmp_path / "rounds.jsonl").read_text())["accuracy"] == 0.5
    assert pq.read_table(tmp_path / "clients.parquet").num_rows == 1


def test_reopening_keeps_the_rounds_asked_for_and_drops_later_ones(tmp_path):
    prepare(tmp_path)
    writer = RunWriter(tmp_path)
    writer.write_config("")

    def add(to, round_):
        rows = [ClientRow(round_, 0, "a", "train", num_examples=1, loss=1.0)]
        to.add_rows(rows)
        to.append_round(round_record(round_, rows, Bytes(), 1.0))

    for round_ in (1, 2, 3):
        add(writer, round_)
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 4, "accu')  # a crash in the middle of a line
    again = RunWriter.reopen(tmp_path, 2)
    add(again, 3)
    lines = (tmp_path / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]
    assert pq.read_table(tmp_path / "clients.parquet")["round"].to_pylist() == [1, 2, 3]
    with pytest.raises(ResultError, match="holds 3 rounds, needs 9"):
        RunWriter.reopen(tmp_path, 9)


def test_a_name_may_hold_what_else_ends_a_line(run):
    path = run.path / "rounds.jsonl"
    *lines, last = path.read_text("utf-8").splitlines()
    lines.append(last[:-1] + ', "note": "a\u2028b\u0085c"}')
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    assert read_run(run.path).rounds[-1]["note"] == "a\u2028b\u0085c"
    reopened = RunWriter.reopen(run.path, len(lines))
    assert reopened is not None
    assert path.read_text("utf-8").count("\n") == len(lines)


def test_nan_and_wrong_keys_are_never_written(run, tmp_path):
    writer = RunWriter(tmp_path / "other")
    prepare(tmp_path / "other")
    writer.write_config("")
    with pytest.raises(ValueError, match="not JSON compliant"):
        writer.finish(run.summary | {"seconds": math.nan})
    with pytest.raises(ValueError, match="extra"):
        writer.finish(run.summary | {"extra": 1})
    assert not (tmp_path / "other" / "summary.json").exists()
