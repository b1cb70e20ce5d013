"""Wrong rows, files, overrides and command lines: exit 2, one line, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fakes import task_rows, write_experiment, write_rows
from runs import assert_refused


def rows_with(**changes: Any) -> list[dict[str, Any]]:
    """Return good rows of which the third is changed."""
    rows = task_rows(40)
    rows[2] |= changes
    return rows


# The train rows, a change of the ``[[task]]`` section, and what the one line must hold.
WRONG_ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], tuple[str, ...]]] = {
    "missing text column": (
        task_rows(40),
        {"text": "txt"},
        ("train.jsonl", "'txt'", "did you mean 'text'"),
    ),
    "missing label column": (task_rows(40), {"label": "labels"}, ("train.jsonl", "'labels'")),
    "label below 0": (rows_with(label=-1), {}, ("train.jsonl", "'label'", "row 3", "-1")),
    "label above a gap": (rows_with(label=7), {}, ("train.jsonl", "'label'", "7")),
    "label a fraction": (rows_with(label=0.5), {}, ("train.jsonl", "'label'", "row 3", "0.5")),
    "label a word": (rows_with(label="good"), {}, ("train.jsonl", "'label'", "row 3", "'good'")),
    "label missing": (rows_with(label=None), {}, ("train.jsonl", "'label'", "row 3")),
    "text empty": (rows_with(text=" "), {}, ("train.jsonl", "'text'", "row 3")),
    "text a number": (rows_with(text=3), {}, ("train.jsonl", "'text'", "row 3", "3")),
    "one class only": ([row for row in task_rows(40) if row["label"]], {}, ("train.jsonl",)),
    "no rows": ([], {}, ("train.jsonl", "no rows")),
    "too few rows": (task_rows(40), {}, ("data.samples-per-client", "40", "mine")),
    "no text key": (task_rows(40), {"text": None}, ("task.mine.text",)),
    "unknown key": (task_rows(40), {"lable": "label"}, ("task", "lable", "did you mean 'label'")),
    "a built-in's name": (task_rows(40), {"name": "sst2"}, ("task.name", "'sst2'")),
    "label map of files": (task_rows(40), {"label-map": [1, 0]}, ("task.mine.label-map",)),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_wrong_rows_are_refused(
    refused: Callable[..., None], tree: dict[str, Any], tmp_path: Path, case: str
) -> None:
    rows, change, words = WRONG_ROWS[case]
    write_rows(tmp_path / "mine" / "train.jsonl", rows)
    write_rows(tmp_path / "mine" / "validation.jsonl", task_rows(20, seed=9))
    task = {"name": "mine", "path": str(tmp_path / "mine"), "text": "text", "label": "label"}
    task = {key: value for key, value in (task | change).items() if value is not None}
    tree["task"], kept = [task], tree["task"]
    try:
        refused(*words, data={"tasks": ["mine"]})
    finally:
        tree["task"] = kept


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, ("task.mine.path", "mine", "does not exist")),
        ({"train.csv": "text,label\n"}, ("task.mine.path", "no validation.*")),
        ({"validation.csv": "text,label\n"}, ("task.mine.path", "no train.*")),
        (
            {"train.csv": "text,label\na,b,c\n", "validation.csv": "text,label\na,0\n"},
            ("train.csv", "line 2", "3 cells"),
        ),
        ({"train.jsonl": "{", "validation.jsonl": "{"}, ("train.jsonl", "line 1")),
        ({"train.parquet": "x", "validation.parquet": "x"}, ("train.parquet", "can't be read")),
        ({"train.csv": "a", "train.jsonl": "a"}, ("train.csv and train.jsonl", "keep one")),
    ],
)
def test_wrong_files_are_refused(
    atlas: Callable[..., Any],
    tree: dict[str, Any],
    tmp_path: Path,
    files: dict[str, str],
    words: tuple[str, ...],
) -> None:
    for name, text in files.items():
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    # A relative path starts at the experiment file's folder.
    task = {"name": "mine", "path": "mine", "text": "text", "label": "label"}
    file = write_experiment(tmp_path / "e.toml", {**tree, "task": [task]}, data={"tasks": ["mine"]})
    assert_refused(atlas("run", file, "--out", tmp_path / "out"), *words)
    assert_refused(atlas("check", file), *words)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ the file and the command line


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("run = [", ("e.toml", "not valid TOML")),
        ("[data]\ntasks = ['two']\n[data]\n", ("not valid TOML", "line 3")),
        ("[run]\nrounds = 2\n", ("data", "is required")),
        ("run = 3\n[data]\ntasks = ['two']\n", ("run", "3")),
        ("task = 3\n[data]\ntasks = ['two']\n", ("task", "3")),
        ("data = 3\n", ("data", "3")),
        ("[data]\ntasks = [3]\n", ("data.tasks", "3")),
        ("[model]\nname = 3\n[data]\ntasks = ['two']\n", ("model.name", "3")),
        ("[data]\ntasks = ['two']\n[[task]]\nname = 'two'\npath = 3\n", ("task.0.path", "3")),
    ],
)
def test_a_wrong_file_is_refused(
    atlas: Callable[..., Any], tmp_path: Path, text: str, words: tuple[str, ...]
) -> None:
    (tmp_path / "e.toml").write_text(text)
    assert_refused(atlas("check", tmp_path / "e.toml"), *words)


def test_a_file_that_is_no_text_is_refused(atlas: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_bytes(b"\xff\xfe\x00")
    assert_refused(atlas("check", tmp_path / "e.toml"), "e.toml", "can't be read")
    assert_refused(atlas("check", tmp_path / "none.toml"), "none.toml", "no such file")
    assert_refused(atlas("check", "demoo"), "demoo", "did you mean 'demo'")
    assert_refused(atlas("check", tmp_path), str(tmp_path))


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("rounds", ("'rounds'", "section.key=value")),
        ("=3", ("'=3'", "section.key=value")),
        ("run..rounds=3", ("'run..rounds=3'",)),
        ("run.rounds.deep=3", ("'run.rounds.deep=3'", "'rounds'")),
        ("run.rounds=", ("run.rounds", "''")),
        ("run.rounds=three", ("run.rounds", "'three'")),
        ("data.tasks.x=1", ("'data.tasks.x=1'", "'tasks'")),
        ("run.roundz=3", ("run.roundz", "did you mean 'rounds'")),
    ],
)
def test_a_wrong_override_is_refused(
    atlas: Callable[..., Any],
    tree: dict[str, Any],
    tmp_path: Path,
    item: str,
    words: tuple[str, ...],
) -> None:
    file = write_experiment(tmp_path / "e.toml", tree)
    assert_refused(atlas("run", file, "--set", item, "--out", tmp_path / "out"), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("run",), ("FILE",)),
        (("run", "demo", "--outt", "x"), ("--outt", "--out")),
        (("runn", "demo"), ("runn", "run")),
        (("run", "demo", "--engine", "warp"), ("engine.kind", "'warp'")),
        (("run", "demo", "more"), ("more",)),
        (("compare", "nowhere"), ("nowhere",)),
        (("compare",), ("RUNS",)),
    ],
)
def test_a_wrong_command_line_is_refused(
    atlas: Callable[..., Any], words: tuple[str, ...], named: tuple[str, ...]
) -> None:
    assert_refused(atlas(*words), *named)
    assert not list(Path.cwd().iterdir())
