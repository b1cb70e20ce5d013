"""`atlas export` and `atlas predict` on small runs: what a user takes away, and every refusal."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard

from atlas_flwr.models.reopen import open_model, open_tokenizer
from fakes import task_rows, write_experiment, write_rows
from hub import local_hub
from runs import Run, Said, assert_refused

Atlas = Callable[..., Said]
TEXTS = ("the film was great", "a dull plot")
pytestmark = pytest.mark.usefixtures("no_report")


@pytest.fixture
def done(run: Callable[..., Run]) -> Path:
    """Give a finished run of three clients, one task, two rounds."""
    return run().folder


def predicted(atlas: Atlas, *words: str | Path) -> list[dict[str, Any]]:
    said = atlas("predict", *words, "--json")
    assert said.code == 0, said
    return json.loads(said.out)


def chances(found: list[dict[str, Any]]) -> np.ndarray:
    return np.array([list(p["probabilities"].values()) for p in found])


def snippet_of(folder: Path) -> str:
    card = (folder / "README.md").read_text()
    return re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0]


def accuracy_of(folder: Path, rows: list[dict[str, Any]]) -> float:
    """Score a folder with plain transformers, row by row."""
    model, tokenizer = open_model(folder), open_tokenizer(folder)
    right = 0
    for row in rows:
        words = tokenizer(row["text"], truncation=True, max_length=16, return_tensors="pt")
        with torch.inference_mode():
            right += int(model(**words).logits.argmax()) == row["label"]
    return right / len(rows)


def test_all_forms_say_the_same_and_score_what_the_run_scored(
    atlas: Atlas, done: Path, tmp_path: Path
) -> None:
    whole, adapter = tmp_path / "whole", tmp_path / "adapter"
    assert atlas("export", done, "--global", "--merge", "--out", whole).code == 0
    assert atlas("export", done, "--global", "--out", adapter).code == 0
    run, merged, beside = (predicted(atlas, f, *TEXTS) for f in (done, whole, adapter))
    np.testing.assert_allclose(chances(merged), chances(run), atol=1e-5)
    np.testing.assert_allclose(chances(beside), chances(run), atol=1e-6)
    final = Run.read(done).summary["final"]["accuracy"]
    rows = task_rows(48, 2, 1001)  # the task's validation rows, as the fixture writes them
    assert accuracy_of(whole, rows) == pytest.approx(final, abs=1e-12)
    assert accuracy_of(adapter, rows) == pytest.approx(final, abs=1e-12)


@pytest.mark.parametrize("form", ["--merge", "adapter"])
def test_the_card_is_the_hubs_and_its_lines_run(
    form: str, atlas: Atlas, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "taken"
    words = ["--merge"] if form == "--merge" else []
    assert atlas("export", done, *words, "--out", out).code == 0
    card = ModelCard.load(out / "README.md")
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.library_name == ("transformers" if words else "peft")
    final = Run.read(done).summary["final"]["accuracy"]
    told = {r.metric_name: r.metric_value for r in card.data.eval_results}
    assert told["accuracy"] == pytest.approx(final, abs=1e-4)
    monkeypatch.chdir(out)
    exec(snippet_of(out), {})
    label, chance = capsys.readouterr().out.split()
    assert label in ("0", "1")
    assert 0 < float(chance) <= 1


def test_a_whole_model_names_no_folder_of_this_machine(
    atlas: Atlas, done: Path, tmp_path: Path
) -> None:
    out = tmp_path / "whole"
    assert atlas("export", done, "--merge", "--out", out).code == 0
    for file in out.glob("*"):
        if file.suffix != ".safetensors":
            assert str(tmp_path.parent) not in file.read_text(), file.name


def test_who_has_several_models_must_say_which(run: Callable[..., Run], atlas: Atlas) -> None:
    many = run(strategy={"name": "local_only"}).folder
    assert_refused(atlas("export", many), "3 models", "client-0, client-1, client-2", "--client")
    assert_refused(atlas("predict", many, "a film", "--task", "two"), "3 models", "--client")
    assert_refused(atlas("export", many, "--global"), "3 models", "; name one with --client")
    assert_refused(atlas("export", many, "--client", "3"), "--client 3", "clients 0 to 2")
    assert_refused(atlas("export", many, "--cluster", "0"), "--cluster 0", "no clusters")
    assert_refused(atlas("export", many, "--task", "twoo"), "--task twoo", "mean 'two'")
    assert_refused(atlas("export", many, "--task", "two", "--client", "1"), "--client 1 --task two")
    one, other = (predicted(atlas, many, *TEXTS, "--client", p) for p in ("0", "1"))
    assert not np.allclose(chances(one), chances(other))


def test_nothing_is_overwritten(atlas: Atlas, done: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    assert_refused(atlas("export", done, "--out", taken), str(taken), "not empty", "--out")
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    assert_refused(atlas("export", done, "--out", taken / "mine.txt"), "is a file")
    assert_refused(atlas("export", tmp_path / "none"), "holds no run")
    assert_refused(atlas("predict", tmp_path / "none", "a text"), "holds no run")


def test_names_of_classes_are_those_of_the_task_asked_for(
    atlas: Atlas, tree: dict[str, Any], tmp_path: Path
) -> None:
    """One head serves two tasks whose classes are called differently."""
    named = []
    for name, classes in (("two", ("bad", "good")), ("deux", ("mauvais", "bon"))):
        rows = [{**r, "label": classes[r["label"]]} for r in task_rows(120, 2, 3)]
        path = tmp_path / f"{name}.csv"
        write_rows(path, rows)
        named.append({"name": name, "path": str(path), "text": "text", "label": "label"})
    own = {**tree, "task": named}
    file = write_experiment(
        tmp_path / "e.toml", own, run={"rounds": 1, "clients": 2}, model={"head": "shared"},
        data={"tasks": ["two", "deux"]},
    )  # fmt: skip
    assert atlas("run", file, "--out", tmp_path / "out").code == 0
    two = predicted(atlas, tmp_path / "out", *TEXTS, "--task", "two")
    deux = predicted(atlas, tmp_path / "out", *TEXTS, "--client", "1")
    assert set(two[0]["probabilities"]) == {"bad", "good"}
    assert set(deux[0]["probabilities"]) == {"bon", "mauvais"}
    assert atlas("export", tmp_path / "out", "--task", "deux", "--out", tmp_path / "d").code == 0
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    assert sorted(config["id2label"].values()) == ["bon", "mauvais"]
    again = predicted(atlas, tmp_path / "d", *TEXTS)
    assert set(again[0]["probabilities"]) == {"bon", "mauvais"}


def test_a_run_that_was_stopped_gives_its_last_commit(
    run: Callable[..., Run], atlas: Atlas, tmp_path: Path
) -> None:
    whole = run(run={"rounds": 1}, out="short").folder
    stopped = run(run={"rounds": 3}, out="stopped").folder
    (stopped / "summary.json").unlink()  # as if it had been killed after round 1
    for name in ("adapters", "checkpoints/round-2", "checkpoints/round-3"):
        shutil.rmtree(stopped / name)
    both = (predicted(atlas, f, *TEXTS) for f in (whole, stopped))
    np.testing.assert_array_equal(*map(chances, both))
    said = atlas("export", stopped, "--out", tmp_path / "half")
    assert said.code == 0, said
    assert "after round 1" in said.out
    card = (tmp_path / "half" / "README.md").read_text()
    assert "| rounds | 1 of 3 |" in card
    assert "had not ended" in card
    shutil.rmtree(stopped / "checkpoints")
    assert_refused(atlas("export", stopped), "no round was committed", "atlas resume")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fedavg", {}, ["--global"]),
        ("flora", {}, ["--global"]),
        ("fedsa", {}, ["--client", "1"]),
        ("fedsb", {}, ["--global"]),
        ("atlas", {}, ["--client", "2"]),
        ("cluster_fedavg", {}, ["--client", "0"]),
    ],
)
def test_every_kind_of_model_can_be_taken_and_merged(
    name: str, options: dict[str, Any], words: list[str], run: Callable[..., Run],
    atlas: Atlas, tmp_path: Path,
) -> None:  # fmt: skip
    folder = run(strategy={"name": name, "options": options}, run={"rounds": 1}).folder
    for form in ([], ["--merge"]):
        out = tmp_path / f"taken{len(form)}"
        said = atlas("export", folder, *words, *form, "--out", out)
        assert said.code == 0, said
        found = predicted(atlas, out, *TEXTS)
        np.testing.assert_allclose(
            chances(found), chances(predicted(atlas, folder, *TEXTS, *words)), atol=1e-5
        )


def test_full_models_are_copied(run: Callable[..., Run], atlas: Atlas, tmp_path: Path) -> None:
    folder = run(model={"adaptation": "full"}, run={"rounds": 1}).folder
    said = atlas("export", folder, "--merge", "--out", tmp_path / "full")
    assert said.code == 0, said
    assert "whole model" in said.out
    both = (predicted(atlas, f, *TEXTS) for f in (folder, tmp_path / "full"))
    np.testing.assert_array_equal(*map(chances, both))


def test_a_mixture_is_asked_where_it_is_and_can_not_be_taken(
    run: Callable[..., Run], atlas: Atlas, tmp_path: Path
) -> None:
    folder = run(strategy={"name": "fedlease"}, run={"clients": 4, "rounds": 3}).folder
    mixtures = list(folder.glob("adapters/*/experts.safetensors"))
    assert mixtures
    key = mixtures[0].parent.name
    client = json.loads((mixtures[0].parent / "atlas.json").read_text())["clients"][0]
    said = atlas("export", folder, "--client", str(client), "--out", tmp_path / "none")
    assert_refused(said, key, "mixture of experts", "atlas predict")
    assert not (tmp_path / "none").exists()
    mixed = predicted(atlas, folder, *TEXTS, "--client", str(client))
    own = (str(mixtures[0].parent), *TEXTS)
    mixtures[0].rename(tmp_path / "experts")
    assert not np.allclose(chances(mixed), chances(predicted(atlas, *own)), atol=1e-6)


# ------------------------------------------------------------------ the texts


def test_texts_come_from_files_and_the_input_too(
    atlas: Atlas, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = chances(predicted(atlas, done, *TEXTS))
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n\n")
    pd.DataFrame({"text": TEXTS, "id": [1, 2]}).to_csv(tmp_path / "a.csv", index=False)
    write_rows(tmp_path / "a.jsonl", [{"text": text} for text in TEXTS])
    for name in ("a.txt", "a.csv", "a.jsonl"):
        found = predicted(atlas, done, "--file", tmp_path / name)
        np.testing.assert_array_equal(chances(found), expected)
    with (tmp_path / "a.txt").open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        np.testing.assert_array_equal(chances(predicted(atlas, done, "--file", "-")), expected)
    many = predicted(atlas, done, *TEXTS * 20)  # two batches; padding changes nothing
    np.testing.assert_allclose(chances(many[:2]), chances(many[-2:]), atol=1e-6)


def test_what_is_printed_for_people(atlas: Atlas, done: Path) -> None:
    said = atlas("predict", done, TEXTS[0], "plot " * 30)
    assert said.code == 0
    assert TEXTS[0] in said.out
    assert re.search(r"\d\d\.\d%", said.out)
    assert "1 of 2 cut to 16 tokens" in said.err


def test_texts_that_do_not_suit_are_refused(atlas: Atlas, done: Path, tmp_path: Path) -> None:
    assert_refused(atlas("predict", done), "there is no text")
    assert_refused(atlas("predict", done, "a", "--pair", "b"), "one text; leave the second out")
    assert_refused(atlas("predict", done, "a", "--file", "x.csv"), "not both")
    assert_refused(atlas("predict", done, "--file", tmp_path / "x.csv"), "can't be read")
    assert_refused(atlas("predict", done, "--file", "x.pdf"), ".csv, .jsonl, .txt")
    pd.DataFrame({"a": ["x"], "b": ["y"]}).to_csv(tmp_path / "x.csv", index=False)
    assert_refused(atlas("predict", done, "--file", tmp_path / "x.csv"), "columns a, b", "'text'")
    # Without a head line the first text would be taken for one.
    (tmp_path / "x.csv").write_text("a first text\na second\n")
    assert_refused(atlas("predict", done, "--file", tmp_path / "x.csv"), "a first text", "'text'")
    write_rows(tmp_path / "x.jsonl", [{"text": "a"}, {"text": None, "id": 7}])
    assert_refused(atlas("predict", done, "--file", tmp_path / "x.jsonl"), "row 2", "columns id")
    assert_refused(atlas("predict", done, "a", " "), "row 2 is empty")
    assert_refused(atlas("predict", done, "caf\udce9"), "row 1 is not UTF-8")


def test_a_text_is_what_was_written(atlas: Atlas, done: Path, tmp_path: Path) -> None:
    """Emoji's names, markup and breaks that end no line are not touched; an index is no text."""
    texts = ["so :smile: [bold]x[/bold]", "one\u2028two\x0bthree"]
    write_rows(tmp_path / "a.jsonl", [{"text": text, "label": None} for text in texts])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("\n\n")
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "a.csv")  # pandas' index has no name
    (tmp_path / "a.txt").write_text("\n".join(texts), encoding="utf-8")
    for name in ("a.jsonl", "a.csv", "a.txt"):
        found = predicted(atlas, done, "--file", tmp_path / name)
        assert [each["texts"] for each in found] == [[text] for text in texts], name


def test_a_long_text_is_cut_without_a_word_from_others(
    atlas: Atlas, done: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (found,) = predicted(atlas, done, "word " * 5000)
    assert found["cut"] is True
    assert not caplog.records


# ------------------------------------------------------------------ the hub


def pushed(run: Path, out: Path, url: str, token: str | None, *words: str) -> Said:
    """Export and push in a process of its own: the hub client reads its environment once."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env |= {"HF_ENDPOINT": url, "HF_HOME": str(out.parent / "hf"), "no_proxy": "127.0.0.1"}
    env |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "atlas_flwr.apps.cli", "export", str(run), "--out", str(out)]
    done = subprocess.run(
        [*command, "--push", "me/mine", *words], capture_output=True, text=True, check=False,
        env=env,
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_a_push_brings_the_whole_folder_to_the_hub(done: Path, tmp_path: Path) -> None:
    with local_hub() as hub:
        said = pushed(done, tmp_path / "mine", hub.url, hub.token, "--merge", "--private")
    assert said.code == 0, said
    assert "pushed to" in said.out
    assert hub.repos[0]["name"] == "mine"
    assert hub.repos[0]["visibility"] == "private" or hub.repos[0].get("private") is True
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.files)
    for name, content in hub.files.items():
        assert (tmp_path / "mine" / name).read_bytes() == content
    assert "pipeline_tag: text-classification" in hub.card_front


@pytest.mark.slow
def test_a_push_that_can_not_work_is_one_line(done: Path, tmp_path: Path) -> None:
    with local_hub() as hub:
        none = pushed(done, tmp_path / "a", hub.url, None, "--merge")
        assert_refused(none, "no token", "hf auth login")
        assert not (tmp_path / "a").exists()
        wrong = pushed(done, tmp_path / "b", hub.url, "hf_wrong", "--merge")
        assert (wrong.code, len(wrong.err.splitlines())) == (1, 1)
        assert "refused" in wrong.err
        adapter = pushed(done, tmp_path / "c", hub.url, hub.token)
        assert_refused(adapter, "a folder of this machine", "--merge")
        assert not hub.files
    gone = pushed(done, tmp_path / "d", hub.url, "hf_local", "--merge")
    assert (gone.code, len(gone.err.splitlines())) == (1, 1)
    assert "can't be reached" in gone.err
    assert (tmp_path / "d" / "model.safetensors").exists()


def test_names_and_switches_of_a_push_are_looked_at_first(
    atlas: Atlas, done: Path, tmp_path: Path
) -> None:
    for name in ("mine", "me/mine-", "me/a--b", "me/mine/too", "me/näme"):
        assert_refused(atlas("export", done, "--push", name), f"--push {name}", "OWNER/NAME")
    assert_refused(atlas("export", done, "--push", "me/mine"), "HF_HUB_OFFLINE")
    assert_refused(atlas("export", done, "--private"), "--push")
    assert not list(Path.cwd().iterdir())
