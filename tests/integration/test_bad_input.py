"""Bad input through the real command line: exit 2, one line that says where and what, no trace."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import write_experiment
from runs import assert_refused

# What is laid over the small experiment, and what the one line must hold.
REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    # a key or value by itself
    "unknown key": ({"run": {"roundz": 3}}, ("run.roundz", "did you mean 'rounds'")),
    "unknown section": ({"runn": {"rounds": 3}}, ("runn", "did you mean 'run'")),
    "word for a number": ({"run": {"rounds": "many"}}, ("run.rounds", "'many'")),
    "number for a word": ({"run": {"name": 5}}, ("run.name", "5")),
    "text for a rate": ({"train": {"learning-rate": "0.1"}}, ("train.learning-rate", "'0.1'")),
    "truth for a share": ({"run": {"fraction": True}}, ("run.fraction", "True")),
    "truth for a count": ({"run": {"rounds": True}}, ("run.rounds", "True")),
    "part of a round": ({"run": {"rounds": 2.5}}, ("run.rounds", "2.5")),
    "word for tasks": ({"data": {"tasks": "two"}}, ("data.tasks", "'two'")),
    "no tasks": ({"data": {"tasks": []}}, ("data.tasks",)),
    "zero rounds": ({"run": {"rounds": 0}}, ("run.rounds", "0")),
    "no clients": ({"run": {"clients": 0}}, ("run.clients", "0")),
    "negative seed": ({"run": {"seed": -1}}, ("run.seed", "-1")),
    "fraction above one": ({"run": {"fraction": 1.5}}, ("run.fraction", "1.5")),
    "rate not a number": (
        {"train": {"learning-rate": float("nan")}},
        ("train.learning-rate", "nan"),
    ),
    "infinite rate": ({"train": {"learning-rate": float("inf")}}, ("train.learning-rate", "inf")),
    "more tokens than positions": (
        {"model": {"max-length": 8000}},
        ("model.max-length", "8000", "positions"),
    ),
    "a GPU share and a half": (
        {"engine": {"gpus-per-client": 1.5}},
        ("engine.gpus-per-client", "1.5"),
    ),
    "a home that nobody has": (
        {"data": {"root": "~nosuchuser/x"}},
        ("data.root", "~nosuchuser"),
    ),
    "rank zero": ({"lora": {"rank": 0}}, ("lora.rank", "0")),
    "rank zero in a list": ({"lora": {"rank": [2, 0]}}, ("lora.rank", "0")),
    "unknown partitioner": ({"data": {"partitioner": "iidd"}}, ("data.partitioner", "'iidd'")),
    "unknown head": ({"model": {"head": "both"}}, ("model.head", "'both'")),
    "name with a slash": ({"run": {"name": "../x"}}, ("run.name", "'../x'")),
    # names
    "unknown strategy": (
        {"strategy": {"name": "fedavgg"}},
        ("strategy.name", "'fedavgg'", "did you mean 'fedavg'"),
    ),
    "unknown option": (
        {"strategy": {"name": "fedprox", "options": {"mu2": 1}}},
        ("strategy.options.mu2", "did you mean 'mu'"),
    ),
    "option out of range": (
        {"strategy": {"name": "fedprox", "options": {"mu": -1}}},
        ("strategy.options.mu", "-1"),
    ),
    "option of a wrong type": (
        {"strategy": {"name": "fedavgm", "options": {"momentum": "0.5"}}},
        ("strategy.options.momentum", "'0.5'"),
    ),
    "unknown task": ({"data": {"tasks": ["twoo"]}}, ("data.tasks", "'twoo'", "did you mean 'two'")),
    "a task twice": ({"data": {"tasks": ["two", "two"]}}, ("data.tasks", "'two'", "twice")),
    # pairs
    "mixed ranks averaged": (
        {"lora": {"rank": [2, 4]}},
        ("lora.rank", "[2, 4]", "'flexlora'", "'fedsb'"),
    ),
    "one head for 2 and 3 labels": (
        {"data": {"tasks": ["two", "three"]}, "model": {"head": "shared"}},
        ("model.head", "'shared'", "[2, 3]"),
    ),
    "fewer clients than tasks": (
        {"data": {"tasks": ["two", "deux", "three"]}, "run": {"clients": 2}},
        ("run.clients", "2", "3 tasks"),
    ),
    "more results than clients": ({"run": {"min-results": 4}}, ("run.min-results", "4", "3")),
    "a GPU share of a CPU": (
        {"engine": {"gpus-per-client": 0.5}},
        ("engine.gpus-per-client", "0.5"),
    ),
    "CUDA with no share": (
        {"engine": {"device": "cuda", "gpus-per-client": 0}},
        ("engine.gpus-per-client", "0", "cuda"),
    ),
    "inline with workers": ({"engine": {"workers": 2}}, ("engine.workers", "2", "inline")),
    "half precision on a CPU": ({"train": {"precision": "fp16"}}, ("train.precision", "'fp16'")),
    "more classes than there are": (
        {"data": {"partitioner": "pathological", "num-classes-per-partition": 3}},
        ("data.num-classes-per-partition", "3", "two"),
    ),
    # rows
    "more rows than there are": (
        {"data": {"samples-per-client": 100}},
        ("data.samples-per-client", "300", "160", "two"),
    ),
    "partitions that must be larger": (
        {"data": {"partitioner": "quantity", "min-partition-size": 500}},
        ("data.min-partition-size", "500"),
    ),
    "no root": (
        {"data": {"tasks": ["sst2"], "root": "/nowhere"}},
        ("data.root", "/nowhere/sst2/train.parquet"),
    ),
    "a hub task offline": ({"data": {"tasks": ["sst2"]}}, ("data.tasks", "nyu-mll/glue")),
    # models
    "a model nobody has": (
        {"model": {"name": "no-such/model"}},
        ("model.name", "'no-such/model'", "minilm"),
    ),
    "a model folder that is not there": (
        {"model": {"name": "/nowhere/m"}},
        ("model.name", "/nowhere/m"),
    ),
    "no such module": ({"lora": {"targets": ["q_linn"]}}, ("lora.targets", "'q_linn'", "q_lin")),
}


def digest(folder: Path) -> dict[str, str]:
    """Return every path below a folder, with its content's hash and modification time."""
    return {
        str(path.relative_to(folder)): f"{path.stat().st_mtime_ns} "
        + (hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder")
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_experiment_is_refused(refused: Callable[..., None], case: str) -> None:
    sections, words = REFUSED[case]
    refused(*words, **sections)


def test_cuda_is_never_replaced_by_the_cpu(
    refused: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused("engine.device", "'cuda'", engine={"device": "cuda"})


def test_a_folder_that_is_no_model_is_refused(refused: Callable[..., None], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    refused("model.name", str(folder), "config.json", model={"name": str(folder)})
    (folder / "config.json").write_text("{")
    refused("model.name", str(folder), model={"name": str(folder)})
    (folder / "config.json").write_text('{"model_type": "bert"}')
    refused("model.name", str(folder), model={"name": str(folder)})


# ------------------------------------------------------------------ --out


def test_an_out_that_is_a_file_is_refused(
    atlas: Callable[..., Any], tree: dict[str, Any], tmp_path: Path
) -> None:
    file = write_experiment(tmp_path / "e.toml", tree)
    (tmp_path / "way").write_text("mine")
    assert_refused(atlas("run", file, "--out", tmp_path / "way"), str(tmp_path / "way"), "file")
    below = tmp_path / "way" / "out"
    assert_refused(atlas("run", file, "--out", below), str(below), "can't be written")
    assert (tmp_path / "way").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root; see the next test")
def test_an_out_without_permission_is_refused(
    atlas: Callable[..., Any], tree: dict[str, Any], tmp_path: Path
) -> None:
    file = write_experiment(tmp_path / "e.toml", tree)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    for out in (closed, closed / "out"):
        assert_refused(atlas("run", file, "--out", out), str(out), "can't be written")
    assert not list(closed.iterdir())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a read-only file system")
def test_an_out_on_a_read_only_file_system_is_refused(
    atlas: Callable[..., Any], tree: dict[str, Any], tmp_path: Path
) -> None:
    file = write_experiment(tmp_path / "e.toml", tree)
    out = "/proc/self/atlas-out"
    assert_refused(atlas("run", file, "--out", out), "/proc/", "atlas-out", "can't be written")


def test_a_finished_run_is_never_overwritten(
    atlas: Callable[..., Any], tree: dict[str, Any], tmp_path: Path
) -> None:
    file = write_experiment(tmp_path / "e.toml", tree, run={"rounds": 1})
    assert atlas("run", file, "--out", tmp_path / "out").code == 0
    before = digest(tmp_path / "out")
    assert len(before) > 10
    for words in ((), ("--set", "run.seed=8"), ("--engine", "ray")):
        said = atlas("run", file, "--out", tmp_path / "out", *words)
        assert_refused(said, str(tmp_path / "out"), "finished run", "--out")
        assert digest(tmp_path / "out") == before


def test_a_wrong_experiment_leaves_a_folder_that_was_there(
    atlas: Callable[..., Any], tree: dict[str, Any], tmp_path: Path
) -> None:
    file = write_experiment(tmp_path / "e.toml", tree, strategy={"name": "nope"})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    before = digest(tmp_path)
    assert_refused(atlas("run", file, "--out", tmp_path / "out"), "strategy.name", "'nope'")
    assert digest(tmp_path) == before
    assert_refused(atlas("run", file, "--out", tmp_path / "a" / "b" / "c"), "strategy.name")
    assert digest(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("rnu", "demo"), ("'rnu'", "Did you mean 'run'", "'atlas --help'")),
        (("run", "demmo"), ("demmo", "did you mean 'demo'")),
        (("run",), ("'FILE'", "'atlas run --help'")),
        (("run", "demo", "--ot", "x"), ("--ot", "--out", "'atlas run --help'")),
        (("run", "demo", "--resume", "alto"), ("'alto'", "'auto'", "'atlas run --help'")),
        (("suite", "suite_gleu"), ("suite_gleu", "did you mean 'suite_glue'")),
        (("list", "tasks"), ("tasks", "'atlas list --help'")),
    ],
)
def test_a_wrong_word_is_told_with_what_was_meant(
    atlas: Any, words: tuple[str, ...], said: tuple[str, ...]
) -> None:
    assert_refused(atlas(*words), *said)


# ------------------------------------------------------------------ the installed program


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("run.rounds=0", ("run.rounds", "0")),
        ("lora.rank=[2, 4]", ("lora.rank", "[2, 4]")),
    ],
)
def test_the_program_itself_refuses(
    tree: dict[str, Any], tmp_path: Path, item: str, words: tuple[str, ...]
) -> None:
    file = write_experiment(tmp_path / "e.toml", tree)
    program = Path(sys.executable).with_name("atlas")
    command = [program, "run", file, "--out", tmp_path / "out", "--set", item]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words)
    assert not (tmp_path / "out").exists()


def test_a_terminal_without_these_letters_gets_marks_instead_of_a_trace(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("atlas")
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ended = subprocess.run(
        [program, "run", "dämo"], capture_output=True, text=True, env=ascii_only, check=False
    )
    assert ended.returncode == 2, ended
    assert ended.stderr.startswith("error: d?mo: no such file (did you mean 'demo'?)")
