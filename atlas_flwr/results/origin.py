"""What was run, where a result comes from, and the commands that make it again."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from atlas_flwr.errors import ResultError
from atlas_flwr.results.provenance import without_home
from atlas_flwr.results.series import count
from atlas_flwr.results.store import RunResult

Pairs = list[tuple[str, str]]
PACKAGED_TASKS = ("tweets", "bbc")
NOTES = 40
_MORE = {"dp_fedavg": "dp"}


def what_ran(run: RunResult) -> Pairs:
    """Return what was run in a few pairs of name and words; what the config lacks is left out."""
    config = run.config
    pairs = [
        ("Model", _model(config.get("model", {}), config.get("lora", {}))),
        ("Data", _data(config.get("data", {}))),
        ("Training", _training(config.get("train", {}), run)),
        ("Strategy", _strategy(config.get("strategy", {}))),
        ("Clients", _clients(config)),
    ]
    return [(name, without_home(words)) for name, words in pairs if words]


def _model(model: Mapping[str, Any], lora: Mapping[str, Any]) -> str:
    words = [str(model.get("name", ""))]
    if model.get("adaptation") == "full":
        words.append("full fine-tuning")
    elif model:
        ranks = lora.get("rank", [])
        ranks = ranks if isinstance(ranks, list) else [ranks]
        said = f" rank {', '.join(map(str, ranks))}" if ranks else ""
        words.append(f"LoRA{said}" + (" in turn" if len(ranks) > 1 else ""))
    words += [f"{model[key]} {unit}" for key, unit in _OF_MODEL if key in model]
    return ", ".join(filter(None, words))


_OF_MODEL = (("head", "head"), ("max-length", "tokens at most"))


def _data(data: Mapping[str, Any]) -> str:
    words = [", ".join(data.get("tasks", []))]
    if "samples-per-client" in data:
        words.append(f"{data['samples-per-client']} training rows a client")
    split = data.get("partitioner")
    more = {"dirichlet": "alpha", "quantity": "alpha", "pathological": "num-classes-per-partition"}
    if split:
        key = more.get(split)
        words.append(f"{split}" + (f" ({key} {data.get(key)})" if key else ""))
    if data.get("holdout"):
        words.append(f"scored on a holdout of {data['holdout']} of the training rows")
    return "; ".join(filter(None, words))


def _training(train: Mapping[str, Any], run: RunResult) -> str:
    if not train:
        return ""
    rate = train.get("learning-rate")
    if rate is None:
        rate = "5e-05" if run.config.get("model", {}).get("adaptation") == "full" else "0.001"
    words = [
        f"{count(train.get('local-epochs', 1), 'epoch')} a round",
        f"batches of {train.get('batch-size', '?')}",
        f"AdamW at {rate}",
        f"precision {train.get('precision', '?')}",
    ]
    return ", ".join(words)


def _strategy(strategy: Mapping[str, Any]) -> str:
    options = {k: v for k, v in strategy.get("options", {}).items() if v is not None}
    said = ", ".join(f"{key} = {json.dumps(value)}" for key, value in options.items())
    return str(strategy.get("name", "")) + (f" ({said})" if said else "")


def _clients(config: Mapping[str, Any]) -> str:
    run = config.get("run", {})
    words = [count(run["clients"], "client")] if "clients" in run else []
    if run.get("fraction", 1.0) != 1.0:
        words.append(f"{run['fraction']} of them a round")
    if devices := config.get("devices", {}).get("profiles"):
        words.append(f"devices in turn: {', '.join(devices)}")
    return ", ".join(words)


def commands(run: RunResult) -> str:
    """Return the shell commands that make the run again, its data and packages named.

    Versions are the ones that ran; a local build's suffix is left out, for no index has it.
    """
    told, config = run.provenance, run.config
    versions = {k: v.partition("+")[0] for k, v in told.get("versions", {}).items() if v}
    extras = sorted(_extras(config))
    wanted = f"[{','.join(extras)}]" if extras else ""
    lines = []
    if commit := told.get("commit"):
        lines += [
            "# in a checkout of atlas-flwr",
            f"git checkout {commit}"
            + ("   # it had changes of its own" if told.get("dirty") else ""),
            f"pip install -e '.{wanted}'",
        ]
    else:
        version = versions.get("atlas-flwr")
        lines.append(f"pip install 'atlas-flwr{wanted}{f'=={version}' if version else ''}'")
    others = [f"{name}=={v}" for name, v in versions.items() if name != "atlas-flwr"]
    if others:
        lines.append("pip install " + " ".join(others))
    lines += [f"# data: {line}" for line in _sources(config)]
    if run.summary["engine"] == "deployment":
        lines.append("atlas up config.toml --out again   # each client with its own rows")
    else:
        lines.append("atlas run config.toml --out again")
    return without_home("\n".join(lines))


def _extras(config: Mapping[str, Any]) -> set[str]:
    found = {_MORE.get(config.get("strategy", {}).get("name", ""), "")} - {""}
    tasks = config.get("data", {}).get("tasks", [])
    if config.get("model", {}).get("name") == "minilm" or set(tasks) & set(PACKAGED_TASKS):
        found.add("packaged")
    return found


def _sources(config: Mapping[str, Any]) -> list[str]:
    """Return where each task's rows come from, one line each."""
    data = config.get("data", {})
    own = {task["name"]: task for task in config.get("task", [])}
    root, found = data.get("root"), []
    for task in data.get("tasks", []):
        if path := own.get(task, {}).get("path"):
            found.append(f"{task} from {path}")
        elif task in PACKAGED_TASKS:
            found.append(f"{task} comes with the extra 'packaged'")
        elif root:
            found.append(f"{task} from {PurePath(root) / task}/{{train,validation}}.parquet")
        else:
            found.append(f"{task} from the Hugging Face hub")
    return found


def origin(run: RunResult) -> Pairs:
    """Return where the result comes from: source, command, versions, machine."""
    told = run.provenance
    if not told:
        return [("provenance", "provenance.json is missing")]
    versions = told.get("versions", {}).items()
    gpus = ", ".join(told.get("machine", {}).get("gpus") or []) or "none"
    return [
        ("Source", _source(told)),
        ("Command", typed(told.get("argv", []))),
        ("Seed", str(told.get("seed"))),
        ("Python", str(told.get("python"))),
        ("Packages", ", ".join(f"{name} {version}" for name, version in versions if version)),
        ("Machine", _machine(told)),
        ("GPU", gpus),
        ("System", str(told.get("machine", {}).get("platform"))),
    ]


def typed(argv: Sequence[str]) -> str:
    """Return a command as it was typed: the program by its name alone, words quoted.

    >>> typed(["/opt/venv/bin/atlas", "run", "a b.toml"])
    "atlas run 'a b.toml'"
    """
    if not argv:
        return ""
    name = PurePath(argv[0]).name
    program = name if name in ("atlas", "flwr") else shlex.quote(argv[0])
    return (
        shlex.join(["python", *argv])
        if argv[0] == "-c"
        else " ".join([program, *map(shlex.quote, argv[1:])])
    )


SESSIONS = ("session", "after round", "command", "source", "machine")


def sessions(run: RunResult) -> list[list[str]]:
    """Return a row for each time a run was begun or gone on with; empty if it never stopped."""
    told = run.provenance
    again = told.get("resumed", [])
    if not again:
        return []
    rows = [["1", "–", *_session(told)]]
    for number, each in enumerate(again, 2):
        rows.append([str(number), str(each["after_round"]), *_session(each)])
    return rows


def _session(told: Mapping[str, Any]) -> list[str]:
    return [without_home(typed(told.get("argv", []))), _source(told)[:12], _machine(told)]


def _source(told: Mapping[str, Any]) -> str:
    if not told.get("commit"):
        return "an installed package, not a checkout"
    dirty = ", with changes that were not committed" if told.get("dirty") else ""
    return f"{told['commit']}{dirty}"


def _machine(told: Mapping[str, Any]) -> str:
    machine = told.get("machine", {})
    return (
        f"{machine.get('cpu')}, {machine.get('cpu_count')} CPUs, {machine.get('ram_gb')} GB memory"
    )


def said_on_the_way(run: RunResult) -> tuple[str, list[str]]:
    """Return how the run ended where it did not complete, and its notes, a repeated one once.

    Both come from ``events.jsonl``, which a mirror does not have.

    Raises:
        ResultError: The file is broken.
    """
    path = run.path / "events.jsonl"
    if not path.is_file():
        return "", []
    why, notes = "", dict[str, int]()
    try:
        # Not `splitlines`: it knows more ends of a line than JSON lines have.
        for line in filter(None, path.read_bytes().split(b"\n")):
            event = json.loads(line)
            if event["event"] == "start":
                why = ""
            elif event["event"] in ("stop", "error"):
                why = event["text"]
            elif event["event"] == "note":
                who = "server" if event["partition"] is None else f"client {event['partition']}"
                text = f"{who}: {event['text']}"
                notes[text] = notes.get(text, 0) + 1
    except (ValueError, LookupError, TypeError) as error:
        raise ResultError(f"{path}: a line is not an event ({error})") from error
    kept = [f"{text} (×{n})" if n > 1 else text for text, n in notes.items()]
    left = len(kept) - NOTES
    shown = kept[:NOTES] + ([f"… and {left} more in events.jsonl"] if left > 0 else [])
    ended = why if run.summary["status"] != "completed" else ""
    return without_home(_one_line(ended)), [without_home(_one_line(note)) for note in shown]


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
