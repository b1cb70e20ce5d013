"""One directory, one run; and a run that was killed says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from atlas_flwr.apps.record import EVENTS, close_unfinished
from atlas_flwr.apps.run import CLAIM, run_experiment
from atlas_flwr.config.load import load_config, with_out
from atlas_flwr.engine.lock import LOCK
from atlas_flwr.errors import ModelError, ResultError
from atlas_flwr.models.backbone import ModelSpec, forget, load_tokenizer, longest_input
from atlas_flwr.results.store import read_run
from fakes import tiny_model, write_experiment
from runs import Run


def test_a_directory_another_run_has_claimed_is_refused(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / EVENTS).touch()  # the other run has begun, and has written nothing else yet
    config = with_out(load_config(write_experiment(tmp_path / "e.toml", tree)), str(out))
    with FileLock(out / CLAIM), pytest.raises(ResultError, match="another run is writing there"):
        run_experiment(config, lambda event: None)
    assert {path.name for path in out.iterdir()} <= {EVENTS, CLAIM}


@pytest.mark.usefixtures("no_report")
def test_what_a_killed_run_claimed_before_it_began_is_free(run: Callable[..., Run]) -> None:
    """No config yet: there is nothing to go on with, and nothing in the way."""
    Path("../out").mkdir()
    for name in (EVENTS, CLAIM, LOCK, "provenance.json"):
        (Path("../out") / name).write_text("{}\n")
    assert run().summary["status"] == "completed"


@pytest.mark.usefixtures("no_report")
def test_a_killed_run_is_closed_with_the_rounds_it_ended(run: Callable[..., Run]) -> None:
    done = run(run={"rounds": 2})
    config = load_config(done.folder / "config.toml")
    close_unfinished(config, done.folder, "ray", "killed", 1.0)
    assert read_run(done.folder).summary["status"] == "completed"  # a finished run stays
    (done.folder / "summary.json").unlink()
    with (done.folder / "rounds.jsonl").open("a") as file:
        file.write('{"round": 3, "accu')  # the kill cut this line
    close_unfinished(config, done.folder, "ray", "killed", 1.0)
    closed = read_run(done.folder)
    assert (closed.summary["status"], closed.summary["rounds_completed"]) == ("failed", 2)
    assert closed.summary["final"]["accuracy"] is None
    counted = closed.summary["bytes"]
    assert counted["up"] == sum(record["bytes_up"] for record in closed.rounds) > 0
    last = (done.folder / EVENTS).read_text().splitlines()[-1]
    assert json.loads(last) == {"event": "error", "text": "killed"}


def test_the_stored_config_spells_out_options_and_workers(run: Callable[..., Run]) -> None:
    done = run(strategy={"name": "fedprox"})
    config = load_config(done.folder / "config.toml")
    assert config.strategy.options == {"mu": 0.01}
    assert config.engine.workers == 1


def test_a_model_folder_beside_the_file_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(tmp_path / "models" / "mine", "bert")
    file = tmp_path / "e.toml"
    file.write_text('[model]\nname = "models/mine"\n[data]\ntasks = ["sst2"]\n')
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_config(file).model.name == str(tmp_path / "models" / "mine")


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2"])
def test_positions_are_counted_as_the_model_uses_them(architecture: str, tmp_path: Path) -> None:
    tiny_model(tmp_path, architecture)
    told = json.loads((tmp_path / "config.json").read_text())
    positions = told.get("max_position_embeddings", told.get("n_positions"))
    lost = told["pad_token_id"] + 1 if architecture == "roberta" else 0
    assert longest_input(ModelSpec(str(tmp_path))) == positions - lost
    forget()


def test_a_broken_tokenizer_is_one_line(tmp_path: Path) -> None:
    tiny_model(tmp_path, "bert")
    (tmp_path / "tokenizer.json").write_text('{"a": 1}')
    with pytest.raises(ModelError) as refused:
        load_tokenizer(ModelSpec(str(tmp_path)))
    assert "\n" not in str(refused.value)
