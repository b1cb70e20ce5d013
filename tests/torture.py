"""Kill runs at random moments until they have ended, and compare them with undisturbed ones.

    make torture                       (100 kills over four strategies)
    .venv/bin/python tests/torture.py --kills 20 --seed 7 --strategies fedsa

Half of the kills come at a random time, half at a random change of a file below the run directory:
a file opened, renamed, removed, a folder made. Exit code 1 and the run directories kept where a
single bit differs.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
os.environ.setdefault("MPLBACKEND", "Agg")

import atlas_flwr.apps.client
import atlas_flwr.apps.going  # noqa: F401 - loaded once, before the forks
from fakes import tiny_model, tiny_task, write_experiment
from killing import ended, forked, kept

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"}
STRATEGIES: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "flora": {"lora": {"rank": [2, 3]}},
    "fedsa": {},
    "atlas": {"run": {"clients": 4}, "data": {"tasks": ["two", "three"]}},
}


def at_file_event(folder: Path, number: int) -> Callable[[], None]:
    """Prepare a process to die at its n-th change of a file below a folder."""
    left = number

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event not in FILE_EVENTS or not str(arguments[0]).startswith(str(folder)):
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(hook)


def torment(file: Path, out: Path, seconds: float, kills: int, rng: random.Random) -> int:
    """Begin a run and kill it until it has ended; return how often it was killed."""
    words: list[str | Path] = ["run", file, "--out", out, "--resume", "auto"]
    done = 0
    while done < kills:
        if done % 2:
            pid = forked(words, at_file_event(out, rng.randint(1, 80)))
        else:
            pid = forked(words)
            time.sleep(rng.uniform(0, 0.8 * seconds))
            os.kill(pid, signal.SIGKILL)
        code = ended(pid)
        if code == 0:
            return done
        if code != -signal.SIGKILL:
            raise SystemExit(f"{out}: ended with {code} after {done} kills")
        done += 1
    if (code := ended(forked(words))) != 0:
        raise SystemExit(f"{out}: ended with {code} after {done} kills")
    return done


def experiments(home: Path) -> dict[str, Path]:
    """Write a small experiment for each strategy: three clients, three rounds."""
    tree = {
        "run": {"name": "tiny", "rounds": 3, "clients": 3, "seed": 7},
        "model": {"name": tiny_model(home / "model", "distilbert"), "max-length": 16},
        "data": {"tasks": ["two"], "samples-per-client": 24},
        "task": [
            tiny_task(home / "two", "csv", seed=1),
            tiny_task(home / "three", "parquet", num_labels=3, seed=3),
        ],
        "train": {"batch-size": 8, "learning-rate": 0.01},
        "lora": {"rank": 2},
        "engine": {"kind": "inline", "device": "cpu"},
    }
    return {
        name: write_experiment(home / f"{name}.toml", tree, strategy={"name": name}, **sections)
        for name, sections in STRATEGIES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--strategies", nargs="*", default=list(STRATEGIES), choices=STRATEGIES)
    told = parser.parse_args()
    rng, killed, runs = random.Random(told.seed), 0, 0
    home = Path(tempfile.mkdtemp(prefix="atlas-torture-"))
    os.environ["ATLAS_CACHE"] = str(home / "cache")
    files = experiments(home)
    wholes: dict[str, tuple[float, dict[str, Any]]] = {}
    while killed < told.kills:
        for name in told.strategies:
            if name not in wholes:
                began = time.monotonic()
                assert ended(forked(["run", files[name], "--out", home / f"{name}-000"])) == 0
                wholes[name] = time.monotonic() - began, kept(home / f"{name}-000")
            seconds, whole = wholes[name]
            runs += 1
            out = home / f"{name}-{runs:03}"
            killed += (times := torment(files[name], out, seconds, 12, rng))
            if (found := kept(out)) != whole:
                parts = [part for part in whole if found.get(part) != whole[part]]
                raise SystemExit(f"{out}: differs from {name}-000 in {', '.join(parts)}")
            print(f"{name}: killed {times} times, the same bits ({killed} kills)", flush=True)
    print(f"{killed} kills in {runs} runs: every run ended with the same bits")


if __name__ == "__main__":
    main()
