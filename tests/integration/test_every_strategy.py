"""Every registered strategy from its file to its exported models, over mixed ranks where it may."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from atlas_flwr.apps.run import run_experiment
from atlas_flwr.config.load import load_config, with_out
from fakes import tiny_task, write_experiment
from federations import OF_TWO, ON_A_GRAPH, QUIET, ROBUST
from runs import Run
from strategies.registry import STRATEGIES
from strategies.rounds.rules import draw_cohort

pytestmark = pytest.mark.usefixtures("no_report")

NAMES = sorted(STRATEGIES)
MIXED = [2, 4, 8, 16]
SEED = 5
# Rules whose merge is the exact mean of the clients' products, and those that have none.
EXACT = {"centralised", "fedex", "fedsb", "ffa", "flexlora", "flora", "rolora"}
EXACT |= {"dp_fedavg"}  # FFA's, with next to no noise and as many rows each
NO_MERGE = {"fedsa", "local_only"} | ON_A_GRAPH
OWN_MODELS = {"ditto", "fedper", "fedrep", "fedsa", "local_only"} | ON_A_GRAPH
BY_CLUSTER = {"cluster_fedavg", "fedlease", "fl_tac", "ifca"}  # one model a cluster
# Defaults that are too careful for three short rounds.
BOLD = {"fedprox": {"mu": 1e-4}, **QUIET}
SLOW = {"fedadam"}
# PEFT has no layer that mixes adapters: what is exported says so (test_fedlease).
MIXTURES = {"fedlease"}
Runner = Callable[..., Run]


def ranks_of(name: str) -> list[int]:
    return MIXED if STRATEGIES[name].mixed_ranks else [4] * 4


@pytest.fixture(scope="module")
def runner(folder_of: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Give a function that runs a strategy with four clients, once per arguments and ``again``."""
    home = tmp_path_factory.mktemp("every")
    tree = {
        "run": {"rounds": 3, "clients": 4, "seed": SEED},
        "model": {"name": folder_of("distilbert"), "max-length": 16},
        "data": {"tasks": ["rows"], "samples-per-client": 32},
        "task": [tiny_task(home / "rows")],
        "train": {"learning-rate": 0.01, "batch-size": 8, "precision": "fp32"},
        "engine": {"kind": "inline", "device": "cpu"},
    }
    made: dict[str, Run] = {}

    def run(name: str, again: int = 0, **sections: dict[str, Any]) -> Run:
        key = f"{name}-{again}-{sections}"
        if key not in made:
            lora = {} if "model" in sections else {"lora": {"rank": ranks_of(name)}}
            chosen = {"strategy": {"name": name}, **lora}
            file = home / f"{len(made)}.toml"
            write_experiment(file, {**tree, **chosen}, **sections)
            config = with_out(load_config(file), str(home / f"out-{len(made)}"))
            made[key] = Run.read(run_experiment(config, lambda event: None))
        return made[key]

    return run


def learned(runner: Runner, name: str) -> Run:
    """Return the strategy's run of enough steps to learn."""
    bold = {"strategy": {"options": BOLD[name]}} if name in BOLD else {}
    return runner(name, train={"local-epochs": 4}, **bold)


def full(runner: Runner, name: str) -> Run:
    """Return the strategy's run under full fine-tuning."""
    return runner(name, model={"adaptation": "full"}, train={"learning-rate": 0.001})


def half(runner: Runner, name: str, again: int = 0) -> Run:
    """Return the strategy's run with half of the clients drawn each round."""
    own = {"strategy": {"options": OF_TWO[name]}} if name in OF_TWO else {}
    return runner(name, again, run={"fraction": 0.5}, data={"samples-per-client": 16}, **own)


def assert_complete(found: Run) -> None:
    """Check that the run ended well and no number of its tables is missing."""
    summary = found.summary
    assert (summary["status"], summary["rounds_completed"]) == ("completed", 3)
    assert found.lost() == set()
    tables = [summary["final"], summary["final"]["own"]]
    for table in tables:
        assert 0 <= table["worst_client_accuracy"] <= table["accuracy"] <= 1
        for scores in (table, *table["by_task"].values()):
            assert math.isfinite(scores["loss"])
            assert 0 <= scores["accuracy"] <= 1
    final = found.clients[found.clients.phase == "final"]
    assert sorted(final.partition) == [0, 1, 2, 3]
    for line in found.rounds:
        assert math.isfinite(line["loss"])
        assert math.isfinite(line["train_loss"])


# ------------------------------------------------------------------ a run


@pytest.mark.parametrize("name", NAMES)
def test_it_completes_and_learns(runner: Runner, name: str) -> None:
    found = learned(runner, name)
    assert_complete(found)
    first, last = found.rounds[0], found.rounds[-1]
    if name not in SLOW:
        assert last["train_loss"] < first["train_loss"] - 0.005
        assert last["loss"] < 0.693  # better than not knowing: ln 2


@pytest.mark.parametrize("name", NAMES)
def test_its_merge_is_as_exact_as_it_says(runner: Runner, name: str) -> None:
    ranks = {str(rank) for rank in ranks_of(name)}
    for line in learned(runner, name).rounds:
        error, cut = line["aggregation_error"], line["truncation_error"]
        if name in NO_MERGE:
            assert error is cut is line["effective_rank"] is None
            continue
        assert (error < 1e-6) if name in EXACT else (1e-3 < error < 10)
        assert set(cut) == ranks
        # The widest receiver holds all; whoever holds all of it whatever its rank is told so.
        assert cut[max(ranks, key=int)] < 1e-6
        low = cut[min(ranks, key=int)]
        assert (low < 1e-6) == (name == "flora" or len(ranks) == 1)
        falling = [round(value, 12) for value in cut.values()]
        assert falling == sorted(falling, reverse=True) or low < 1e-6
        assert 1 <= line["effective_rank"] <= 16
        compressed = line["compression_error"]
        if name != "flasc":
            assert compressed is None
        else:
            assert 0 < compressed["up"] < 1
            assert 0 < compressed["down"] < 1


def models_of(name: str, found: Run) -> dict[str, int]:
    """Return each distinct model's folder, and a client that holds it."""
    if name in BY_CLUSTER:
        final = found.clients[found.clients.phase == "final"].set_index("partition").cluster
        none = "cluster-0" if name == "ifca" else "start"  # who was never drawn
        keys = {p: none if math.isnan(c) else f"cluster-{int(c)}" for p, c in final.items()}
        return {key: p for p, key in sorted(keys.items(), reverse=True)}
    if name in OWN_MODELS:
        return {f"client-{p}": p for p in range(4)}
    if name == "centralised":
        return {"task-rows": 0}
    if not STRATEGIES[name].mixed_ranks or name == "flora":
        return {"global": 0}
    return {f"global-rank-{rank}": p for p, rank in enumerate(MIXED)}


def scores_by_peft(folder: Path, base: str, texts: list[str], labels: list[int]) -> Any:
    """Return loss and accuracy of an exported model as any PEFT user would compute them."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=2)
    model = PeftModel.from_pretrained(model, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    truth = torch.tensor(labels)
    with torch.inference_mode():
        logits = model(**batch).logits
    loss = F.cross_entropy(logits, truth)
    return loss.item(), (logits.argmax(dim=-1) == truth).float().mean().item()


@pytest.mark.parametrize("name", sorted({*NAMES} - MIXTURES))
def test_peft_scores_every_exported_model_as_the_table_does(
    runner: Runner, folder_of: Callable[[str], str], name: str
) -> None:
    """Oracle: PEFT opens each distinct model, merged weights and private parts included."""
    found = learned(runner, name)
    expected = models_of(name, found)
    assert {path.name for path in (found.folder / "adapters").iterdir()} == set(expected)
    config = load_config(found.folder / "config.toml")
    rows = pd.read_csv(Path(str(config.task[0].path)) / "validation.csv")
    final = found.clients[found.clients.phase == "final"].set_index("partition")
    for key, partition in expected.items():
        folder = found.folder / "adapters" / key
        texts, labels = list(rows["text"]), list(rows["label"])
        loss, accuracy = scores_by_peft(folder, folder_of("distilbert"), texts, labels)
        assert loss == pytest.approx(final.loss[partition], abs=2e-4), key
        assert accuracy == pytest.approx(final.accuracy[partition], abs=0.5 / len(rows)), key


@pytest.mark.parametrize("name", ["flora", "fedex"])
def test_what_was_merged_is_exported_at_its_own_rank(runner: Runner, name: str) -> None:
    found = learned(runner, name)
    tensors = load_file(found.folder / "adapters" / "global" / "adapter_model.safetensors")
    ranks = {n: t.shape[0] for n, t in tensors.items() if "lora_A" in n}
    # Three rounds of 30 or 12 ranks each are more than these layers have.
    assert set(ranks.values()) == {16}
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())


# ------------------------------------------------------------------ partial and repeated


@pytest.mark.parametrize("name", NAMES)
def test_half_of_the_clients_will_do_and_a_seed_is_a_run(runner: Runner, name: str) -> None:
    found, again = half(runner, name), half(runner, name, again=1)
    assert_complete(found)
    assert found.folder != again.folder
    assert found.measured() == again.measured()
    assert found.tensors() == again.tensors()
    assert len(found.tensors()) == len(models_of(name, found))
    for mine, theirs in zip(found.rounds, again.rounds, strict=True):
        for way in ("by_kind_up", "by_kind_down"):
            kinds = ("adapter", "head", "weights")
            assert [mine[way][kind] for kind in kinds] == [theirs[way][kind] for kind in kinds]
    if name != "centralised":
        for line in found.rounds:
            assert line["participants"] == draw_cohort(SEED, line["round"], 4, 0.5)


def test_the_seed_decides(runner: Runner) -> None:
    found = half(runner, "fedsb")
    other = runner("fedsb", run={"fraction": 0.5, "seed": 6}, data={"samples-per-client": 16})
    assert found.tensors() != other.tensors()


# ------------------------------------------------------------------ full fine-tuning


@pytest.mark.parametrize("name", [n for n in NAMES if not STRATEGIES[n].needs_lora])
def test_it_trains_all_weights(runner: Runner, name: str) -> None:
    found = full(runner, name)
    assert_complete(found)
    folders = {path.name for path in (found.folder / "models").iterdir()}
    assert folders == ({"global"} if name in ROBUST else set(models_of(name, found)))
    kinds = found.summary["bytes"]["by_kind"]
    assert kinds["adapter"] == 0
    assert (kinds["weights"] == 0) == (name == "local_only")
    assert (kinds["head"] == 0) == (name in OWN_MODELS - {"ditto"})
    for line in found.rounds:
        assert line["aggregation_error"] is None
        assert line["truncation_error"] in (None, {})
    # Trained, and not what was downloaded.
    weights = load_file(found.folder / "models" / sorted(folders)[0] / "model.safetensors")
    assert all(np.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize("name", [n for n in NAMES if STRATEGIES[n].needs_lora])
def test_it_refuses_to_train_all_weights(refused: Callable[..., None], name: str) -> None:
    words = ("model.adaptation", "'full'", "'lora'")
    refused(*words, model={"adaptation": "full"}, strategy={"name": name})


@pytest.mark.parametrize("name", [n for n in NAMES if not STRATEGIES[n].mixed_ranks])
def test_it_refuses_mixed_ranks(refused: Callable[..., None], name: str) -> None:
    words = ("lora.rank", "[2, 4]", "'flexlora'")
    refused(*words, lora={"rank": [2, 4]}, strategy={"name": name})
