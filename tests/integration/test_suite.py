"""``atlas suite`` through the command line: kept, resumed, refused, tuned on held-out rows."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from filelock import FileLock

from atlas_flwr.apps.shipped import shipped_suites
from atlas_flwr.config.suite_cells import load_suite
from atlas_flwr.config.suite_choices import with_choices
from atlas_flwr.errors import DataError
from clients.base import FineTuneClient
from fakes import task_rows, tiny_task, write_experiment, write_rows
from runs import Said, assert_refused

pytestmark = pytest.mark.usefixtures("no_report")

RATES = [0.001, 0.01]


@pytest.fixture
def suite(atlas: Callable[..., Said], tree: dict[str, Any], tmp_path: Path) -> Callable[..., Said]:
    """Run a small suite, two strategies by two seeds of one round, into ``tmp_path/out``."""
    write_experiment(tmp_path / "base.toml", tree, run={"rounds": 1, "clients": 2})
    plain = {
        "name": "small",
        "base": "base.toml",
        "seeds": [1, 2],
        "setting": [{"name": "two", "set": {"data.tasks": ["two"]}}],
        "run": [{"strategy": "fedavg"}, {"name": "alone", "strategy": "local_only"}],
    }

    def command(*words: str | Path, **keys: Any) -> Said:
        file = {key: value for key, value in (plain | keys).items() if value is not None}
        (tmp_path / "s.toml").write_text(tomli_w.dumps(file))
        return atlas("suite", tmp_path / "s.toml", "--out", tmp_path / "out", *words)

    return command


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def rows_of(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "results.csv").read_text().splitlines()))


def stamps(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in out.rglob("summary.json")}


def test_rows_equal_the_summaries_and_finished_runs_are_kept(
    suite: Callable[..., Said], out: Path
) -> None:
    said = suite()
    assert said.code == 0, said
    rows = rows_of(out)
    places = [f"two/{label}/seed-{seed}" for label in ("fedavg", "alone") for seed in (1, 2)]
    assert [row["path"] for row in rows] == places
    for row in rows:
        summary = json.loads((out / row["path"] / "summary.json").read_text())
        final = summary["final"]
        assert float(row["accuracy"]) == final["accuracy"]
        assert float(row["worst_client_accuracy"]) == final["worst_client_accuracy"]
        assert float(row["own_accuracy"]) == final["own"]["accuracy"]
        assert float(row["accuracy_two"]) == final["by_task"]["two"]["accuracy"]
        assert int(row["bytes_up"]) == summary["bytes"]["up"]
        assert int(row["bytes_down"]) == summary["bytes"]["down"]
        assert float(row["seconds"]) == summary["seconds"]
        assert (row["strategy"], int(row["seed"])) == (summary["strategy"], summary["seed"])
        assert (row["status"], row["rounds"], row["ranks"]) == ("completed", "1", "2")
        assert float(row["learning_rate"]) == 0.01
    assert "[4/4] two/alone seed 2 … 0." in said.out
    before = stamps(out)
    again = suite("--seeds", "1,2")
    assert again.code == 0
    assert again.out.count("finished before") == 4
    assert stamps(out) == before
    assert rows_of(out) == rows
    told = json.loads((out / "provenance.json").read_text())
    assert tomllib.loads(told["suite"])["name"] == "small"
    assert (told["seeds"], told["argv"][-1], len(told["earlier"])) == ([1, 2], "1,2", 1)


def test_one_more_seed_and_one_label(suite: Callable[..., Said], out: Path) -> None:
    assert suite("--seeds", "2", "--only", "alone").code == 0
    assert [row["path"] for row in rows_of(out)] == ["two/alone/seed-2"]
    assert suite("--seeds", "9", "--only", "fedavg").code == 0
    assert suite("--seeds", "1", "--only", "alone").code == 0
    kept = ["two/fedavg/seed-9", "two/alone/seed-1", "two/alone/seed-2"]
    assert [row["path"] for row in rows_of(out)] == kept


@pytest.mark.parametrize("how", [RuntimeError("the disk is full"), KeyboardInterrupt()])
def test_a_suite_goes_on_after_a_run_that_broke(
    suite: Callable[..., Said], out: Path, monkeypatch: pytest.MonkeyPatch, how: BaseException
) -> None:
    real = FineTuneClient.fit

    def fails_in_the_second(self: FineTuneClient, parameters: Any, config: Any) -> Any:
        begun = [(out / "two" / label / "seed-2").exists() for label in ("fedavg", "alone")]
        if begun == [True, False]:
            raise how
        return real(self, parameters, config)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuneClient, "fit", fails_in_the_second)
        said = suite()
    stopped = isinstance(how, KeyboardInterrupt)
    assert said.code == (3 if stopped else 1)
    done = [row["path"] for row in rows_of(out)]
    # Seed 1 of both is there before seed 2 of either.
    assert done[:2] == ["two/fedavg/seed-1", "two/alone/seed-1"]
    assert done[2:] == ["two/alone/seed-2"] * (not stopped)
    if not stopped:
        assert "two/fedavg seed 2" in said.out
        assert "the disk is full" in said.out
        assert said.err.startswith("error: 1 failed")
    first = stamps(out)
    again = suite()
    assert again.code == 0, again
    assert "two/fedavg/seed-2: did not finish; kept as seed-2.failed-1" in again.out
    assert (out / "two" / "fedavg" / "seed-2.failed-1" / "summary.json").is_file()
    assert len(rows_of(out)) == 4
    kept = {place: time for place, time in first.items() if "fedavg/seed-2" not in place}
    assert kept.items() <= stamps(out).items()


def test_a_stopped_run_goes_on_within_its_rounds(
    suite: Callable[..., Said], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FineTuneClient.fit

    def stopped_in_round_2(self: FineTuneClient, parameters: Any, config: Any) -> Any:
        if self.job.round == 2:
            raise KeyboardInterrupt
        return real(self, parameters, config)

    only = {"run": [{"strategy": "fedavg", "set": {"run.rounds": 2}}], "seeds": [1]}
    with monkeypatch.context() as patch:
        patch.setattr(FineTuneClient, "fit", stopped_in_round_2)
        said = suite(**only)
    assert said.code == 3
    assert "the same atlas suite command goes on" in said.err
    assert suite(**only).code == 0
    told = json.loads((out / "two/fedavg/seed-1/provenance.json").read_text())
    assert [each["after_round"] for each in told["resumed"]] == [1]


def test_a_finished_run_of_another_config_is_refused(suite: Callable[..., Said], out: Path) -> None:
    assert suite("--seeds", "1", "--only", "alone").code == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    said = suite("--set", "run.rounds=2")
    assert_refused(said, str(out / "two" / "alone" / "seed-1"), "run.rounds: 1 there, 2 here")
    assert "[1/" not in said.out
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    # Where it lies is no difference, and neither is how many clients run at a time.
    assert suite("--seeds", "1", "--only", "alone", "--set", "engine.workers=1").code == 0


WRONG: dict[str, tuple[dict[str, Any], tuple[str, ...], tuple[str, ...]]] = {
    "unknown key": ({"seedz": [1]}, (), ("seedz", "did you mean 'seeds'")),
    "a required key mistyped": (
        {"seeds": None, "sedes": [1]},
        (),
        ("sedes", "did you mean 'seeds'"),
    ),
    "seeds that are a text": ({"seeds": "1..3"}, (), ("seeds", "should be a list", "'1..3'")),
    "no seeds": ({"seeds": []}, (), ("seeds", "should have at least 1 entry")),
    "a mistyped base": ({"base": "bse.toml"}, (), ("base: ", "bse.toml", "can't be read")),
    "a folder of rows that is not there": (
        {"setting": [{"name": "hub", "set": {"data": {"tasks": ["sst2"], "root": "/nowhere"}}}]},
        (),
        ("hub/fedavg", "data.root", "/nowhere/sst2/train.parquet"),
    ),
    "unknown key of a run": (
        {"run": [{"strategy": "fedavg", "sett": {}}]},
        (),
        ("run.0.sett", "did you mean 'set'"),
    ),
    "no runs": ({"run": []}, (), ("run",)),
    "no base": ({"base": None}, (), ("base", "required")),
    "a base that is not there": ({"base": "gone.toml"}, (), ("gone.toml", "can't be read")),
    "seeds that are words": ({"seeds": ["one"]}, (), ("seeds.0", "'one'")),
    "a seed twice": ({"seeds": [1, 1]}, (), ("seeds", "1", "twice")),
    "a label twice": (
        {"run": [{"strategy": "fedavg"}, {"strategy": "fedavg"}]},
        (),
        ("run.1.name", "'fedavg'"),
    ),
    "an unknown setting": (
        {"run": [{"strategy": "fedavg", "only": ["twoo"]}]},
        (),
        ("run.0.only", "'twoo'", "did you mean 'two'"),
    ),
    "a setting called tune": ({"setting": [{"name": "tune"}]}, (), ("setting.0.name", "'tune'")),
    "an unknown strategy": (
        {"run": [{"strategy": "fedavgg"}]},
        (),
        ("two/fedavgg", "strategy.name", "did you mean 'fedavg'"),
    ),
    "a wrong key in the last run": (
        {"run": [{"strategy": "fedavg"}, {"name": "b", "strategy": "fedavg", "set": {"run.x": 1}}]},
        (),
        ("two/b", "run.x"),
    ),
    "the suite's own key": ({"set": {"run": {"seed": 3}}}, (), ("set", "run.seed", "seeds")),
    "a grid of no list": ({"tune": {"keys": {"lora.rank": 3}}}, (), ("tune.keys", "lora.rank")),
    "a wrong value to try": (
        {"tune": {"keys": {"train.learning-rate": [-1.0]}}},
        (),
        ("two/fedavg", "train.learning-rate", "-1.0"),
    ),
    "a value that tuning chooses": (
        {"tune": {"keys": {"train.learning-rate": RATES}}},
        ("--set", "train.learning-rate=0.1"),
        ("--set", "train.learning-rate", "--no-tune"),
    ),
    "choices where nothing is tuned": ({}, ("--choices", "t.json"), ("--choices", "is tuned")),
    "choices that are not there": (
        {"tune": {"keys": {"train.learning-rate": RATES}}},
        ("--choices", "t.json"),
        ("--choices", "t.json", "No such file"),
    ),
    "an unknown label": ({}, ("--only", "fedavgg"), ("--only", "did you mean 'fedavg'")),
    "a setting that is not there": ({}, ("--setting", "tow"), ("--setting", "did you mean 'two'")),
    "a label that is not run in the setting": (
        {
            "setting": [{"name": "two"}, {"name": "three"}],
            "run": [
                {"strategy": "fedavg"},
                {"name": "alone", "strategy": "local_only", "only": ["two"]},
            ],
        },
        ("--setting", "three", "--only", "alone"),
        ("--only, --setting", "none of alone is run in three"),
    ),
    "seeds that are no numbers": ({}, ("--seeds", "1,x"), ("--seeds", "'1,x'")),
    "a wrong override": ({}, ("--set", "run.roundz=1"), ("run.roundz", "did you mean")),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_suite_is_refused(suite: Callable[..., Said], out: Path, case: str) -> None:
    keys, words, told = WRONG[case]
    assert_refused(suite(*words, **keys), *told)
    assert not out.exists()


def test_a_file_that_is_not_there_is_refused(atlas: Callable[..., Said]) -> None:
    assert_refused(atlas("suite", "suite_gleu"), "suite_gleu", "no such file")


# ------------------------------------------------------------------ tuning


def tuned(rates: list[float], rounds: int = 1) -> dict[str, Any]:
    keys = {"train.learning-rate": rates}
    return {"tune": {"keys": keys, "rounds": rounds, "seed": 5}, "seeds": [1]}


def test_tuning_never_sees_a_validation_row(
    suite: Callable[..., Said],
    tree: dict[str, Any],
    folder_of: Callable[[str], str],
    out: Path,
    tmp_path: Path,
) -> None:
    """With every validation label wrong, scores and choice are the same bits: the rate that learns.

    By its accuracy on those validation rows the other rate would win.
    """
    learner = {
        "model": {"name": folder_of("gpt2")},
        "train": {"batch-size": 4},
        "data": {"samples-per-client": 48},
        "task": [tiny_task(tmp_path / "two", "csv", seed=1)],
    }
    base = tree | {key: tree[key] | learner[key] for key in ("model", "train", "data")}
    base["task"] = learner["task"]
    write_experiment(tmp_path / "base.toml", base, run={"clients": 2})
    keys = {"run": [{"strategy": "fedavg"}], "set": {"run.rounds": 5}, **tuned([1e-6, 0.01], 4)}
    assert suite(**keys).code == 0
    told = json.loads((out / "tuned.json").read_text())
    first = rows_of(out)
    out.rename(tmp_path / "first")
    rows = [{**row, "label": 1 - row["label"]} for row in task_rows(48, seed=1001)]
    write_rows(tmp_path / "two" / "validation.csv", rows)
    assert suite(**keys).code == 0
    assert json.loads((out / "tuned.json").read_text()) == told
    assert float(first[0]["accuracy"]) > 0.7
    assert float(rows_of(out)[0]["accuracy"]) < 0.3

    pair = told["pairs"]["two/fedavg"]
    accuracies = [score["accuracy"] for score in pair["scores"]]
    assert accuracies[0] < accuracies[1]
    assert pair["chosen"] == {"train.learning-rate": 0.01}
    assert first[0]["learning_rate"] == "0.01"
    assert (first[0]["rounds"], pair["rounds"], pair["seed"]) == ("5", 4, 5)
    for score in pair["scores"]:
        config = tomllib.loads((out / score["path"] / "config.toml").read_text())
        summary = json.loads((out / score["path"] / "summary.json").read_text())
        assert config["data"]["holdout"] == pair["holdout"] == 0.2
        assert config["train"]["learning-rate"] == score["values"]["train.learning-rate"]
        assert summary["final"]["own"]["accuracy"] == score["accuracy"]
    config = tomllib.loads((out / "two" / "fedavg" / "seed-1" / "config.toml").read_text())
    assert config["data"]["holdout"] == 0


def test_tuning_is_kept_its_grid_may_grow_and_it_can_be_left_out(
    suite: Callable[..., Said], out: Path
) -> None:
    entry = {"run": [{"strategy": "fedavg"}, {"strategy": "local_only", "tune": {}}]}
    said = suite("--check", **entry, **tuned(RATES))
    assert said.code == 0, said
    assert "2 to tune" in said.out
    assert not out.exists()
    assert suite(**entry, **tuned(RATES)).code == 0
    before = stamps(out)
    assert len(before) == 4
    assert list(json.loads((out / "tuned.json").read_text())["pairs"]) == ["two/fedavg"]
    again = suite(**entry, **tuned(RATES))
    assert again.out.count("finished before") == 4
    assert [line.split()[1] for line in again.out.splitlines()[:4]] == [
        *("tune", "tune"),
        *("two/fedavg", "two/local_only"),
    ]
    assert stamps(out) == before
    said = suite("--only", "fedavg", "--seeds", "2", **entry, **tuned([*RATES, 0.02]))
    assert said.code == 0, said
    assert said.out.count("finished before") == 2
    chosen = json.loads((out / "tuned.json").read_text())["pairs"]["two/fedavg"]["chosen"]
    at_the_end = chosen["train.learning-rate"] in (min(RATES), 0.02)
    assert ("is an end of its grid in [tune]" in " ".join(said.out.split())) == at_the_end
    assert before.items() <= stamps(out).items()
    said = suite("--no-tune", "--seeds", "8", **entry, **tuned(RATES))
    assert said.code == 0, said
    assert "tune " not in said.out


def test_a_value_that_failed_before_it_began_is_tried_again(
    suite: Callable[..., Said], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {"run": [{"strategy": "fedavg"}]}
    with monkeypatch.context() as patched:
        patched.setattr("atlas_flwr.apps.server.prepare", _refuse)
        said = suite(**entry, **tuned(RATES))
    assert said.code == 1
    assert "the same command runs them again" in said.err
    assert "not the tuned values" not in said.err
    assert "atlas table" not in said.out  # of no row
    again = suite(**entry, **tuned(RATES))
    assert again.code == 0, again
    assert len(rows_of(out)) == 1


def _refuse(*_: Any) -> None:
    raise DataError("the rows are gone")


def test_a_value_that_fails_has_no_score_and_is_not_tried_again(
    suite: Callable[..., Said], out: Path
) -> None:
    entry = {"run": [{"strategy": "fedavg"}]}
    said = suite(**entry, **tuned([1e30, 0.01]))
    assert said.code == 1
    assert "1 failed; the same command runs them again, but not the tuned values" in said.err
    pair = json.loads((out / "tuned.json").read_text())["pairs"]["two/fedavg"]
    assert [score["accuracy"] is None for score in pair["scores"]] == [True, False]
    assert pair["scores"][0]["error"]
    assert pair["chosen"] == {"train.learning-rate": 0.01}
    again = suite(**entry, **tuned([1e30, 0.01]))
    assert again.code == 0, again
    assert "failed before" in again.out
    assert len(rows_of(out)) == 1


def test_without_a_score_nothing_is_run(suite: Callable[..., Said], out: Path) -> None:
    said = suite(run=[{"strategy": "fedavg"}], **tuned([1e30]))
    assert said.code == 1
    assert "no value of [tune] has a score" in said.out
    assert rows_of(out) == []


# ------------------------------------------------------------------ what is shipped


@pytest.mark.parametrize("name", shipped_suites())
def test_a_shipped_suite_is_right(atlas: Callable[..., Said], name: str) -> None:
    said = atlas("suite", name, "--check")
    assert said.code == 0, said
    assert name in said.out
    assert not list(Path.cwd().iterdir())
    text = shipped_suites()[name].read_text()
    assert tomllib.loads(text)["name"] == name
    assert "root =" not in text


def test_the_shipped_suite_is_the_table_of_the_issue() -> None:
    cells = load_suite(shipped_suites()["suite_glue"]).cells()
    assert {cell.setting for cell in cells} == {"sst2", "mrpc"}
    for cell in cells:
        config = cell.config
        assert config.data.tasks == (cell.setting,)
        assert (config.run.rounds, config.run.clients) == (6, 6)
        assert (config.data.samples_per_client, config.data.alpha) == (200, 0.5)
        assert (config.data.partitioner, config.model.name) == ("dirichlet", "minilm")
        assert config.data.root is None
    mixed = {cell.label for cell in cells if cell.config.lora.rank == (2, 4, 8, 16)}
    assert "local_only" in mixed
    assert "fedit" not in mixed


def test_the_command_has_a_line_in_the_help(atlas: Callable[..., Said]) -> None:
    said = atlas("--help")
    assert "suite" in said.out
    assert "strategies over settings and seeds" in said.out


def test_two_suites_never_write_to_one_folder(suite: Callable[..., Said], out: Path) -> None:
    out.mkdir()
    with FileLock(out / ".lock"):
        assert_refused(suite(), str(out), "another suite")
    assert not (out / "two").exists()


def test_a_suite_has_no_mirror_that_its_runs_would_share(suite: Callable[..., Said]) -> None:
    assert_refused(suite(**{"set": {"run.mirror": "/drive"}}), "run.mirror", "--out")


def test_when_a_run_stops_for_a_while_is_no_part_of_it(
    suite: Callable[..., Said], out: Path
) -> None:
    assert suite(**{"set": {"run.stop-after": "3h"}}).code == 0
    before = stamps(out)
    assert suite(**{"set": {"run.stop-after": "2h"}}).code == 0
    assert stamps(out) == before


# ------------------------------------------------------------------ values chosen elsewhere


def chosen(label: str, rate: object, **more: Any) -> dict[str, Any]:
    """What a ``tuned.json`` says of a pair."""
    return {f"two/{label}": {"chosen": {"train.learning-rate": rate}, "scores": [], **more}}


def test_what_another_suite_has_chosen_is_not_tuned_again(
    suite: Callable[..., Said], out: Path, tmp_path: Path
) -> None:
    """A published choice is taken; what has none is tuned, and both stand in ``tuned.json``."""
    keys = tuned(RATES)
    told = {"score": "s", "pairs": chosen("fedavg", RATES[0], seed=9)}
    (tmp_path / "told.json").write_text(json.dumps(told))
    said = suite("--choices", tmp_path / "told.json", **keys)
    assert said.code == 0, said
    assert not (out / "tune" / "two" / "fedavg").exists()
    assert len(stamps(out / "tune" / "two" / "alone")) == len(RATES)
    pairs = json.loads((out / "tuned.json").read_text())["pairs"]
    assert list(pairs) == ["two/fedavg", "two/alone"]
    assert pairs["two/fedavg"] == told["pairs"]["two/fedavg"]
    assert rows_of(out)[0]["learning_rate"] == str(RATES[0])
    before = stamps(out)
    assert suite("--choices", out / "tuned.json", **keys).code == 0
    assert stamps(out) == before
    other = chosen("fedavg", RATES[1]) | chosen("alone", RATES[0])
    (tmp_path / "told.json").write_text(json.dumps({"pairs": other}))
    assert_refused(suite("--choices", tmp_path / "told.json", **keys), "learning-rate", "--out")


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"pairs": chosen("fedavg", 5.0)}, "two/fedavg"),
        ({"pairs": {"two/fedavg": {"chosen": {"lora.rank": 2}, "scores": []}}}, "not in the grid"),
        ({"pairs": chosen("other", RATES[0])}, "no choice for this suite"),
        ({"pairs": {"two/fedavg": {"chosen": None, "scores": []}}}, "no choice for this suite"),
        ({"pairs": {"two/fedavg": 3}}, "no tuned.json"),
        ([], "no tuned.json"),
    ],
)
def test_choices_that_are_not_this_suite_s_are_refused(
    suite: Callable[..., Said], out: Path, tmp_path: Path, told: Any, says: str
) -> None:
    (tmp_path / "told.json").write_text(json.dumps(told))
    keys = tuned(RATES)
    assert_refused(suite("--choices", tmp_path / "told.json", **keys), "told.json", says)
    assert not out.exists()


def test_the_published_choices_are_those_of_the_shipped_suite() -> None:
    """``atlas suite suite_atlas --choices`` takes every pair of the committed file."""
    path = Path("experiments/results/atlas_glue_tuned.choices.json")
    known = with_choices(load_suite(shipped_suites()["suite_atlas"]), path).known
    assert {"/".join(pair) for pair in known} == json.loads(path.read_text())["pairs"].keys()
