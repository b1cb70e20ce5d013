"""One experiment on both engines and through Flower's own command: the same bits."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from atlas_flwr.apps.cli import main
from atlas_flwr.engine.launch_area import AppRefs, environment_for, free_port, private_area
from fakes import write_experiment
from federations import OF_TWO
from runs import Run
from strategies.registry import STRATEGIES

pytestmark = pytest.mark.ray
ROOT = Path(__file__).resolve().parents[2]
MODEL_KINDS = ("adapter", "head", "weights")
HEADS = {"ditto": "per_task"}  # its shared model needs one to train with


def assert_same(found: Run, expected: Run, models: int = 4) -> None:
    """Check that two runs differ in clocks, memory and the name of the engine alone."""
    assert len(expected.tensors()) == models
    assert found.tensors() == expected.tensors()
    assert found.measured() == expected.measured()
    for mine, theirs in zip(found.rounds, expected.rounds, strict=True):
        for way in ("by_kind_up", "by_kind_down"):
            assert {k: mine[way][k] for k in MODEL_KINDS} == {
                k: theirs[way][k] for k in MODEL_KINDS
            }
    kinds = found.summary["bytes"]["by_kind"]
    assert {k: kinds[k] for k in MODEL_KINDS} == {
        k: expected.summary["bytes"]["by_kind"][k] for k in MODEL_KINDS
    }
    assert found.rows().equals(expected.rows())
    kept = [run.folder / "vault" for run in (found, expected)]
    held = [{path.relative_to(root) for path in root.rglob("*.safetensors")} for root in kept]
    assert held[0] == held[1]
    for name in held[0]:
        assert (kept[0] / name).read_bytes() == (kept[1] / name).read_bytes()


def inline(file: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """Run the experiment in this process."""
    command = ["run", file, "--out", out, "--engine", "inline", "--set", "engine.workers=1"]
    monkeypatch.setattr(sys, "argv", ["atlas", *map(str, command), *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0


def names(found: Run) -> set[str]:
    files = {str(p.relative_to(found.folder)) for p in found.folder.rglob("*") if p.is_file()}
    return {name for name in files if not name.startswith(("vault", "engine.log"))}


def test_ray_and_inline_give_the_same_bits(
    program: Callable[..., subprocess.CompletedProcess[str]],
    leftovers: Callable[[str, str], list[psutil.Process]],
    tree: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write_experiment(tmp_path / "e.toml", tree)
    ray = program("run", file, "--out", tmp_path / "ray", "--engine", "ray")
    assert ray.returncode == 0, ray
    inline(file, tmp_path / "inline", monkeypatch)
    found, expected = Run.read(tmp_path / "ray"), Run.read(tmp_path / "inline")
    assert (found.summary["engine"], expected.summary["engine"]) == ("ray", "inline")
    assert_same(found, expected)
    assert names(found) == names(expected)
    # The progress of another process is shown as it comes, and the table at the end.
    assert "round 2/2" in ray.stdout
    assert str(tmp_path / "ray") in ray.stdout
    assert ray.stderr == ""
    assert leftovers("ATLAS_E2E", str(tmp_path)) == []
    assert not list((tmp_path / "cwd").iterdir())


# In `make test`: merged weights, single factors and what was missed, over mixed ranks.
QUICK = ("flora",)


# Files of exported models, where that isn't one for each client: a task's, a cluster's (of four
# clients in two label spaces), with the experts beside it under FedLEASE.
MODELS = {"centralised": 2, "cluster_fedavg": 3, "fl_tac": 2, "ifca": 3}


@pytest.mark.parametrize(
    "name",
    [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in sorted(STRATEGIES)],
)
def test_every_strategy_gives_the_same_bits_on_both_engines(
    program: Callable[..., subprocess.CompletedProcess[str]],
    tree: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Two rounds; half of the versions that clients carry are older than the run's.

    Half of the clients train in a round; all are scored, and then carry what they missed.
    """
    ranks = [2, 4, 8, 1] if STRATEGIES[name].mixed_ranks else 4
    sections: dict[str, dict[str, Any]] = {
        "run": {"fraction": 0.5},
        "lora": {"rank": ranks},
        "model": {"head": HEADS.get(name) or STRATEGIES[name].head or "local"},
    }
    chosen = {"strategy": {"name": name, "options": OF_TWO.get(name, {})}}
    file = write_experiment(tmp_path / "e.toml", {**tree, **chosen}, **sections)
    said = program("run", file, "--out", tmp_path / "ray", "--engine", "ray")
    assert said.returncode == 0, said
    inline(file, tmp_path / "inline", monkeypatch)
    found, expected = Run.read(tmp_path / "ray"), Run.read(tmp_path / "inline")
    assert (found.summary["engine"], expected.summary["engine"]) == ("ray", "inline")
    assert_same(found, expected, models=MODELS.get(name, 4))


@pytest.mark.slow
def test_a_federation_that_fails_says_so(
    program: Callable[..., subprocess.CompletedProcess[str]],
    leftovers: Callable[[str, str], list[psutil.Process]],
    tree: dict[str, Any],
    tmp_path: Path,
) -> None:
    """A rate that makes every client diverge: exit 1, one line with the partitions and the log."""
    file = write_experiment(tmp_path / "e.toml", tree, train={"learning-rate": 1e30})
    said = program("run", file, "--out", tmp_path / "out")
    assert said.returncode == 1, said
    (line,) = said.stderr.splitlines()
    assert line.startswith("error: ")
    for partition in range(4):
        assert f"partition {partition} lost: training: the " in line
    assert "train.learning-rate" in line
    found = Run.read(tmp_path / "out")
    assert (found.summary["status"], found.summary["rounds_completed"]) == ("failed", 0)
    assert found.lost() == {0, 1, 2, 3}
    assert (found.folder / "engine.log").is_file()
    assert str(found.folder / "engine.log") in line
    assert leftovers("ATLAS_E2E", str(tmp_path)) == []


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """Copy what a clone would hold."""
    words = ("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, listed.stdout.split("\0")):
        source, target = ROOT / name, tmp_path / "checkout" / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    return tmp_path / "checkout"


@contextmanager
def flower(leftovers: Callable[[str, str], list[psutil.Process]]) -> Iterator[dict[str, str]]:
    """Give the environment of a user of Flower; stop the daemon that `flwr run` leaves behind."""
    with private_area() as area:
        env = environment_for(area, 1, AppRefs(), os.environ)
        env.pop("PYTHONPATH", None)
        env["FLWR_LOCAL_SUPERLINK_HTTP_API_PORT"] = str(free_port())
        try:
            yield env
        finally:
            for _ in range(50):
                processes = leftovers("FLWR_HOME", str(area.home))
                for process in processes:
                    process.kill()
                if not processes:
                    break
                time.sleep(0.2)
            assert leftovers("FLWR_HOME", str(area.home)) == []


@pytest.mark.slow
def test_flwr_run_writes_the_same_directory(
    leftovers: Callable[[str, str], list[psutil.Process]],
    checkout: Path,
    tree: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, out = write_experiment(tmp_path / "e.toml", tree), tmp_path / "out"
    told = f"config='{file}' out='{out}' overrides='run.rounds=1; run.name=by-flower'"
    size = "num-supernodes=4 client-resources-num-cpus=1 init-args-num-cpus=2"
    with flower(leftovers) as env:
        flwr = Path(sys.executable).with_name("flwr")
        command = [flwr, "run", ".", "--run-config", told, "--federation-config", size, "--stream"]
        said = subprocess.run(
            command, cwd=checkout, env=env, capture_output=True, text=True, check=False, timeout=300
        )
    assert (out / "summary.json").is_file(), said
    words = ("--set", "run.rounds=1", "--set", "run.name=by-flower")
    inline(file, tmp_path / "inline", monkeypatch, *words)
    found = Run.read(out)
    assert (found.summary["experiment"], found.summary["status"]) == ("by-flower", "completed")
    assert_same(found, Run.read(tmp_path / "inline"))
    argv = json.loads((out / "provenance.json").read_text())["argv"]
    assert argv[argv.index("--token") + 1] == "***"
